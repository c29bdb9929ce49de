"""Options made from the fields of a run (`RunSpec`), where name, type, default and docstring are said once."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

if TYPE_CHECKING:
    from bench.run.spec import RunSpec

F = TypeVar("F", bound=Callable[..., Any])

SET = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A key of the run: requests=2000, nodes=4, profile=./my_gpu.json, dataset=./my_workload.py, router.ask=4, ...",
)
SEEDS = click.option(
    "--seeds", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="Seeds 0 to N - 1."
)
JOBS = click.option(
    "--jobs", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Side by side; 0: all cores."
)
_FLAGS = {"router.hold.when": "hold", "router.hold.order": "hold_order"}
"""Options whose name is not that of their field."""


class _Dataset(click.ParamType[str]):
    """A data set's word, or the path of a workload file."""

    name = "NAME"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from bench.data.named import dataset_names

        return value if value.endswith(".py") else click.Choice(dataset_names()).convert(value, param, ctx)


def option_name(key: str) -> str:
    """The option of a key of the run, with `_` for `-`: `router.ask` is ask, `duration_s` duration."""
    return _FLAGS.get(key) or key.removeprefix("router.").removesuffix("_s")


def spec_options(*keys: str, **defaults: Any) -> Callable[[F], F]:
    """Adds an option for each of these keys of a run. `defaults` are those of the command where they are its own."""

    def decorate(command: F) -> F:
        for key in reversed(keys):
            command = _option(key, defaults)(command)
        return command

    return decorate


def spec_values(options: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Key -> value of those options. Values of `router.hold.*` are one key, `router.hold`."""
    values = {key: options[option_name(key)] for key in keys if not key.startswith("router.hold.")}
    hold = {
        key.removeprefix("router.hold."): options[option_name(key)] for key in keys if key.startswith("router.hold.")
    }
    return values | ({"router.hold": hold} if hold else {})


def _option(key: str, defaults: Mapping[str, Any]) -> Callable[[F], F]:
    from bench.run.spec import POSITIVE, RunSpec
    from gateway.core.queue.queue import HoldConfig
    from gateway.core.router_config import RouterConfig

    struct: Any = HoldConfig if key.startswith("router.hold.") else RouterConfig if "." in key else RunSpec
    field = key.rpartition(".")[2]
    name = option_name(key)
    default = defaults.get(field, getattr(struct(), field))
    kind, text = _kind(typing.get_type_hints(struct)[field]), _docs(struct)[field]
    flag = f"--{name.replace('_', '-')}"
    if kind is bool and default is None:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    if kind is bool:
        return click.option(flag, name, is_flag=True, default=default, help=text)
    more: dict[str, Any] = {"type": kind, "metavar": name.upper() if kind is str else "X"}
    if key == "dataset":
        more = {"type": _Dataset(), "metavar": "NAME"}
    elif kind is int:
        more = {"type": click.IntRange(min=1 if field in POSITIVE or default is None else 0), "metavar": "N"}
    elif typing.get_origin(kind) is Literal:
        more = {"type": click.Choice(list(typing.get_args(kind)))}
    elif kind is float and field.endswith("_s"):
        more["metavar"] = "S"
    return click.option(flag, name, default=default, show_default=default not in (None, ""), help=text, **more)


def _kind(annotation: Any) -> Any:
    """The type without its None, a union of literals as one."""
    parts = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    if len(parts) > 1 and all(typing.get_origin(part) is Literal for part in parts):
        return Literal[tuple(word for part in parts for word in typing.get_args(part))]
    return parts[0]


@functools.cache
def _docs(struct: type) -> dict[str, str]:
    """Docstring of each field in one line; what None stands for as the default of the option."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(struct))).body
    assert isinstance(node, ast.ClassDef)
    found: dict[str, str] = {}
    field = ""
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            field = part.target.id
            found[field] = ""
        elif field and isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
            text = " ".join(str(part.value.value).split())
            found[field] = re.sub(r"[;.] (?:None|empty): ([^.]*)\.$", r". [default: \1]", text)
            field = ""
    return found


def split_pair(text: str, option: str) -> tuple[str, str]:
    """`KEY=VALUE`. Raises click.BadParameter."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise click.BadParameter(f"write KEY=VALUE, got {text!r}", param_hint=option)
    return key.strip(), value.strip()


def read_value(text: str) -> Any:
    """A whole number, a number, true or false, else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text.lower(), text)


def read_axis(text: str) -> tuple[str, list[Any]]:
    """`KEY=A,B,C` or, for numbers, `KEY=FROM:TO:STEP` with both ends. Raises click.BadParameter."""
    key, values = split_pair(text, "--axis")
    if values.count(":") == 2:
        parts = [read_value(part) for part in values.split(":")]
        if all(isinstance(part, (int, float)) for part in parts):
            first, last, step = parts
            if step <= 0 or last < first:
                raise click.BadParameter(f"write FROM:TO:STEP with a step above 0, got {values!r}", param_hint="--axis")
            count = int((last - first) / step + 1e-9) + 1
            return key, [round(first + step * index, 9) for index in range(count)]
    if re.fullmatch(r"[\d.]+:[\d.]+", values):
        raise click.BadParameter(f"write FROM:TO:STEP or A,B,C, got {values!r}", param_hint="--axis")
    return key, [read_value(part.strip()) for part in values.split(",") if part.strip()]


def base_spec(settings: Sequence[str], *, as_published: bool = False) -> RunSpec:
    """The run that all have in common. Raises SpecError."""
    from bench.run.spec import RunSpec, with_values

    pairs = (split_pair(text, "--set") for text in settings)
    return with_values(RunSpec(as_published=as_published), {key: read_value(value) for key, value in pairs})


def policy_variants(names: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Variant name -> values: names and files, with commas or repeated. Raises PolicyError."""
    from gateway.policy_files import policy_name

    found: dict[str, dict[str, Any]] = {}
    for name in (part.strip() for text in names for part in text.split(",") if part.strip()):
        found[policy_name(name)] = {"policy": str(Path(name).resolve()) if name.endswith(".py") else name}
    return found

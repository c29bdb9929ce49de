"""Options of commands that run many simulations: keys of a run, seeds, cores, where results go."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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


def base_spec(settings: Sequence[str]) -> RunSpec:
    """The run that all have in common. Raises SpecError, and ValueError for a profile that cannot be had."""
    from bench.run.spec import RunSpec, with_values

    return with_values(RunSpec(), with_blocks({}, settings))


def with_blocks(values: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """`settings` and over them `values`; a profile that is named brings its own KV blocks unless they are named too.

    Raises SpecError for unknown keys, and ValueError for a profile that cannot be had.
    """
    from bench.profile.step_time_file import blocks_of
    from bench.run.spec import RunSpec, check_field

    named = {check_field(key): value for key, value in (*map(_pair, settings), *values.items())}
    if "profile" in named and "num_blocks" not in named:
        block_size_tokens = named.get("block_size_tokens", RunSpec().block_size_tokens)
        if isinstance(block_size_tokens, int) and block_size_tokens > 0:
            named["num_blocks"] = blocks_of(str(named["profile"]), block_size_tokens)
    return named


def policy_variants(names: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Variant name -> values: names and files, with commas or repeated. Raises PolicyError."""
    from gateway.policy_files import policy_name

    found: dict[str, dict[str, Any]] = {}
    for name in (part.strip() for text in names for part in text.split(",") if part.strip()):
        found[policy_name(name)] = {"policy": str(Path(name).resolve()) if name.endswith(".py") else name}
    return found


def _pair(text: str) -> tuple[str, Any]:
    key, value = split_pair(text, "--set")
    return key, read_value(value)

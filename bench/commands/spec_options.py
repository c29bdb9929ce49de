"""Options of commands that run a `RunSpec`, and what else they read from the command line."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from protos.runtime.options import Option, docstrings, options, options_of

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
RATES = click.option(
    "--rate",
    type=float,
    multiple=True,
    metavar="R",
    help="Requests per second; may be repeated. [default: the data set's own arrivals]",
)
JOBS = click.option(
    "--jobs", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Side by side; 0: all cores."
)

CLUSTER = click.option(
    "--cluster",
    default="",
    metavar="TCP://HOST:PORT",
    help="Run on the workers of this Dask scheduler, not on this machine's cores.",
)


def policy_option(more: str = "") -> Callable[[F], F]:
    """Adds --policy, with more words for its help."""
    return click.option(
        "--policy",
        multiple=True,
        default=("round_robin", "llumnix_freeness", "min_total_latency"),
        show_default=True,
        metavar="NAME",
        help=f"A name or a policy file; may be repeated, or several with commas.{more}",
    )


def seeds_option(default: int) -> Callable[[F], F]:
    """Adds --seeds."""
    return click.option(
        "--seeds",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        metavar="N",
        help="Runs per point, with seeds 0 to N - 1.",
    )


@functools.cache
def _known() -> dict[str, tuple[type[msgspec.Struct], Option]]:
    """Every key of a run that can be an option, `nodes` or `router.hold.when`: the record it is of, and the option."""
    from bench.run.spec import RunSpec
    from gateway.core.router_config import RouterConfig

    records: tuple[tuple[type[msgspec.Struct], str], ...] = ((RunSpec, ""), (RouterConfig, "router."))
    return {start + ".".join(option.path): (kind, option) for kind, start in records for option in options_of(kind)}


SCALING_KEYS = (
    "scaler",
    "min_nodes",
    "max_nodes",
    "start_nodes",
    "cold_start",
    "price",
    "tick_s",
    "failed_starts",
    "spot_s",
    "slo_share",
)
SLO_KEYS = ("slo_ttft_s", "slo_tpot_s", "slo_e2e_s")


def scaling_options(command: F) -> F:
    """Adds the options of a fleet that grows and shrinks, and of what it must keep."""
    pairs = click.option(
        "--scaler-option",
        "scaler_options",
        multiple=True,
        metavar="KEY=VALUE",
        help="Of the scaling rule; where several are compared, NAME:KEY=VALUE is for one of them.",
    )
    return spec_options(*SCALING_KEYS)(pairs(spec_options(*SLO_KEYS)(command)))


def scaling_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value of those options, but the rule and its options. Raises click.UsageError without a scaler."""
    if not given["scaler"] and (unused := given_values(given, *SCALING_KEYS) or given["scaler_options"]):
        option = _known()[next(iter(unused))][1].flag if isinstance(unused, dict) else "scaler-option"
        raise click.UsageError(f"--{option} is for a fleet that is scaled: add --scaler NAME")
    return spec_values(given, *(key for key in (*SCALING_KEYS, *SLO_KEYS) if key != "scaler"))


def scaler_variants(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each scaler of `--scaler`, several with commas, by name: by what runs with it differ. One without a name where
    none is given. Raises click.BadParameter."""
    names = [name.strip() for name in given["scaler"].split(",") if name.strip()]
    if not names:
        return {"": {}}
    # `perfect` is known once this is there.
    import bench.simcluster.perfect  # noqa: F401
    from gateway.core.scale.config import ScaleError
    from gateway.rule_files import rule_name

    try:
        paths = {rule_name(name): str(Path(name).resolve()) if name.endswith(".py") else name for name in names}
    except ScaleError as error:
        raise click.BadParameter(str(error), param_hint="--scaler") from None
    names = list(paths)
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in given["scaler_options"]:
        key, value = split_pair(text, "--scaler-option")
        rule, colon, own = key.partition(":")
        if colon and rule not in options:
            raise click.BadParameter(
                f"{text!r} is for {rule!r}; the scalers are {', '.join(names)}", param_hint="--scaler-option"
            )
        for name in [rule] if colon else names:
            _set(options[name], (own if colon else key).split("."), read_value(value))
    return {name: {"scaler": path, "scaler_options": options[name]} for name, path in paths.items()}


def _set(table: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        table = table.setdefault(key, {})
    table[path[-1]] = value


def option_name(key: str) -> str:
    """The parameter of a key's option: `router.ask` is ask, `duration_s` duration."""
    return _known()[key][1].parameter


def spec_options(*keys: str, **defaults: Any) -> Callable[[F], F]:
    """Adds an option for each of these keys of a run. `defaults` are those of the command where they are its own."""

    def decorate(command: F) -> F:
        for key in reversed(keys):
            kind, option = _known()[key]
            # A data set's words are too many for one sentence.
            words = {"dataset": docstrings(kind)["dataset"]} if key == "dataset" else {}
            command = options(kind, only=[option.parameter], help_of=words, defaults=defaults)(command)
        return command

    return decorate


def spec_values(given: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Key -> value of those options. Values of `router.hold.*` are one key, `router.hold`; so with `router.moves.*`."""
    values: dict[str, Any] = {}
    for key in keys:
        table, _, name = key.rpartition(".")
        if table.startswith("router."):
            values.setdefault(table, {})[name] = given[option_name(key)]
        else:
            values[key] = given[option_name(key)]
    return values


def given_values(given: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The same of those options alone that the user gave."""
    source = click.get_current_context().get_parameter_source
    return spec_values(given, *(key for key in keys if source(option_name(key)) != click.core.ParameterSource.DEFAULT))


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
    found = [read_value(part.strip()) for part in values.split(",") if part.strip()]
    if not found:
        raise click.BadParameter(f"{key} has no value; write FROM:TO:STEP or A,B,C", param_hint="--axis")
    return key, found


def base_spec(settings: Sequence[str], **given: Any) -> RunSpec:
    """The run that all have in common: what `--set` says, over the options `given`. Raises SpecError."""
    from bench.run.spec import RunSpec, with_values

    pairs = (split_pair(text, "--set") for text in settings)
    return with_values(RunSpec(), {**given, **{key: read_value(value) for key, value in pairs}})


def check_one_fleet(options: Mapping[str, Any]) -> None:
    """Raises click.UsageError where both --nodes and --fleet are given."""
    source = click.get_current_context().get_parameter_source("nodes")
    if options["fleet"] and source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--fleet says how many nodes there are: leave --nodes out")

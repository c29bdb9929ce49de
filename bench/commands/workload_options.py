"""Options that replay, compare and simulate share: the data set, the arrivals, the policies."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bench.commands.spec_options import spec_options, spec_values

if TYPE_CHECKING:
    from rich.console import Console

    from bench.data.source import WorkloadSource
    from bench.run.spec import RunSpec

F = TypeVar("F", bound=Callable[..., Any])


WORKLOAD_KEYS = (
    "dataset",
    "dataset_path",
    "skip_bad",
    "tokenizer",
    "prompt_tokens",
    "output_tokens",
    "arrivals",
    "rate_steps",
    "day_curve",
    "shape",
    "burstiness",
    "rate_scale",
    "requests",
    "duration_s",
    "start_s",
    "rows",
    "lengths",
    "in_order",
    "high_share",
)


def workload_options(command: F) -> F:
    """Adds the options of a workload. The command gets them as keywords for `build_source`."""
    return spec_options(*WORKLOAD_KEYS, dataset="sharegpt", requests=None)(command)


def workload_of(options: Mapping[str, Any], *, rate: float | None, default_requests: int) -> RunSpec:
    """A run with the workload that the options describe.

    Without a rate the data set's own arrivals are used, all of them unless the options say how many.
    """
    from bench.data.named import check_name
    from bench.run.spec import RunSpec, SpecError, with_values
    from bench.run.workload import row_range
    from bench.workload.dataset_error import DatasetError
    from bench.workload.rate_profile import parse_steps

    if options["rate_steps"]:
        try:
            parse_steps(options["rate_steps"])
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--rate-steps") from None
        if rate is not None:
            raise click.UsageError("--rate-steps says the rate already: leave --rate out")
    if options["day_curve"] is not None and (rate is None or options["duration"] is None):
        raise click.UsageError("--day-curve needs --rate, its mean, and --duration, its length")
    is_file = options["dataset"].endswith(".py")
    if is_file:
        _check_own_file(options)
    else:
        try:
            check_name(options["dataset"])
        except DatasetError as error:
            raise click.BadParameter(str(error), param_hint="--dataset") from None
    try:
        row_range(options["rows"])
    except SpecError as error:
        raise click.BadParameter(str(error).removeprefix("rows: "), param_hint="--rows") from None
    check_positive("--duration", options["duration"], "seconds")
    check_positive("--burstiness", options["burstiness"], "(1 is Poisson, less is burstier)")
    check_positive("--rate-scale", options["rate_scale"], "(2 doubles the rate)")
    values = spec_values(options, *WORKLOAD_KEYS)
    if options["requests"] is None and (is_file or (rate is not None and options["duration"] is None)):
        values["requests"] = default_requests
    try:
        return with_values(RunSpec(), {**values, "rate_per_s": rate})
    except SpecError as error:
        raise click.UsageError(str(error)) from None


def read_source(console: Console, spec: RunSpec) -> WorkloadSource:
    """Reads the run's data set, with a line that says how far it is."""
    from bench.data.source import load_source
    from bench.run.workload import workload_spec

    with one_line_errors(), console.status("reading the data set") as status:
        source = load_source(workload_spec(spec), progress=lambda what, share: status.update(f"{what} {share:4.0%}"))
    placed = spec.rate_per_s is not None or spec.rate_steps or spec.concurrency is not None
    if not placed and not source.has_arrivals:
        raise click.UsageError("this data set has no arrival times: add --rate, in requests per second")
    if spec.arrivals == "recorded" and not source.has_arrivals:
        raise click.UsageError("this data set has no arrival times: choose another --arrivals")
    return source


def build_source(
    console: Console, options: Mapping[str, Any], *, rate: float | None, default_requests: int
) -> WorkloadSource:
    """Reads the data set that the options describe."""
    return read_source(console, workload_of(options, rate=rate, default_requests=default_requests))


def rates(values: Sequence[float]) -> list[float | None]:
    """Checked rates; [None], the data set's own arrivals, when there are none."""
    for value in values:
        check_positive("--rate", value, "requests per second")
    return list(values) or [None]


def policy_paths(names: Sequence[str]) -> dict[str, str]:
    """Name -> what it was given by, a name or a file's absolute path; each of `names` may hold several with commas.

    Raises click.BadParameter for an unknown one, a file that holds no policy, or names that are all empty.
    """
    from gateway.core.decision.policies.registry import PolicyError
    from gateway.policy_files import policy_name

    found: dict[str, str] = {}
    for given in (part.strip() for value in names for part in value.split(",") if part.strip()):
        try:
            found.setdefault(policy_name(given), str(Path(given).resolve()) if given.endswith(".py") else given)
        except PolicyError as error:
            raise click.BadParameter(str(error), param_hint="--policy") from None
    if names and not found:
        # As a shell's variable that was never set leaves it.
        raise click.BadParameter("it names no policy; write for example min_total_latency", param_hint="--policy")
    return found


def policies(names: Sequence[str]) -> list[str]:
    """The names of `policy_paths` alone."""
    return list(policy_paths(names))


def policy_variants(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The same as the values of a run by which each differs from the others."""
    return {name: {"policy": path} for name, path in policy_paths(names).items()}


def check_positive(option: str, value: float | None, unit: str) -> None:
    """Raises click.BadParameter unless the value is absent or a finite number above 0."""
    if value is not None and (not math.isfinite(value) or value <= 0):
        raise click.BadParameter(f"must be above 0 {unit}, got {value:g}", param_hint=option)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can cause becomes one line instead of a traceback."""
    from bench.client.session import GatewayError
    from bench.workload.dataset_error import DatasetError
    from engine_adapters.tokenizer import TokenizerError

    try:
        yield
    except (DatasetError, TokenizerError, GatewayError, OSError) as error:
        raise click.ClickException(str(error)) from None


def _check_own_file(options: Mapping[str, Any]) -> None:
    """Raises click.UsageError for options that say what a workload file decides."""
    said = {
        "--dataset-path": bool(options["dataset_path"]),
        "--rate-steps": bool(options["rate_steps"]),
        "--day-curve": options["day_curve"] is not None,
        "--arrivals": options["arrivals"] != "gamma",
        "--burstiness": options["burstiness"] != 1.0,
        "--rate-scale": options["rate_scale"] != 1.0,
        "--start": options["start"] > 0,
        "--rows": bool(options["rows"]),
    }
    for option, is_said in said.items():
        if is_said:
            raise click.UsageError(f"a workload file makes its own requests and arrivals: leave {option} out")

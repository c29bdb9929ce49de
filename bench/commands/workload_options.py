"""Options that replay, compare and simulate share: the data set, the arrivals, the policies. Light to import."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from bench.data.source import WorkloadSource

F = TypeVar("F", bound=Callable[..., Any])


class _Dataset(click.Choice[str]):
    """A data set's word, or the path of a workload file."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value if value.endswith(".py") else super().convert(value, param, ctx)


OPTIONS = (
    click.option(
        "--dataset",
        type=_Dataset(["sharegpt", "burstgpt", "azure", "mooncake", "servegen", "power-law", "lengths", "jsonl"]),
        default="sharegpt",
        show_default=True,
        help="sharegpt: JSON conversations (the installed package, or your file). burstgpt: its CSV, version 1 or 2. "
        "azure: LLM inference trace of 2023 or 2024. mooncake: JSON lines with hash_ids. servegen: X_arrivals.csv with "
        "X_lengths_quantiles.csv beside it. power-law: lengths drawn as Llumnix's, see --shape. "
        'lengths: CSV num_prefill_tokens,num_decode_tokens[,arrived_at]. jsonl: {"workload": text} or '
        '{"prompt_tokens": n, "output_tokens": m} a line. `astrolabe bench data list` says where to get them. '
        "Or a .py file of your own with a function `workload`.",
    ),
    click.option("--dataset-path", default="", metavar="FILE", help="The data set's file; .gz is undone."),
    click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be read, and say how many."),
    click.option(
        "--tokenizer", default="", metavar="NAME", help="Counts tokens of texts. [default: the best installed]"
    ),
    click.option(
        "--output-tokens",
        type=click.IntRange(min=1),
        default=128,
        show_default=True,
        metavar="N",
        help="Answer length for JSON lines that do not say theirs.",
    ),
    click.option(
        "--arrivals",
        type=click.Choice(["gamma", "poisson", "uniform", "recorded"]),
        default="gamma",
        show_default=True,
        help="Process that makes the arrivals when a rate is given; recorded: the data set's own, scaled to the rate.",
    ),
    click.option(
        "--rate-steps",
        default="",
        metavar="RxS,...",
        help="A rate that changes: 20x1200,30x600 is 20 requests/s for 1200 s, then 30 for 600 s.",
    ),
    click.option(
        "--day-curve",
        type=click.FloatRange(min=1),
        default=None,
        metavar="X",
        help="One day squeezed into --duration: the rate swings by this factor around --rate (BurstGPT: 11.7).",
    ),
    click.option(
        "--shape",
        default="medium-medium",
        show_default=True,
        metavar="P-A",
        help="power-law: short, medium or long, of prompts and answers; S-L is short-long.",
    ),
    click.option(
        "--burstiness",
        type=float,
        default=1.0,
        show_default=True,
        metavar="B",
        help="Shape of gamma gaps: 1 is Poisson, less is burstier.",
    ),
    click.option(
        "--rate-scale",
        type=float,
        default=1.0,
        show_default=True,
        metavar="X",
        help="For recorded arrivals (no rate given): 2 is twice as dense.",
    ),
    click.option("--requests", type=click.IntRange(min=1), metavar="N", help="Length of the run in requests."),
    click.option("--duration", type=float, metavar="S", help="Length of the run in seconds."),
    click.option(
        "--start",
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="S",
        help="Recorded arrivals: begin S seconds into the trace.",
    ),
    click.option("--rows", default="", metavar="A:B", help="Use data rows A to B only, counted from 1."),
    click.option(
        "--lengths",
        type=click.Choice(["known", "none", "predicted"]),
        default="known",
        show_default=True,
        help="What the router is told of each answer's length: the truth, nothing (a live gateway then has its own "
        "length model's belief, see its --lengths), the data set's prediction.",
    ),
    click.option("--in-order", is_flag=True, help="Rows in file order. [default: a seeded random order]"),
)


def workload_options(command: F) -> F:
    """Adds the options of a workload. The command gets them as keywords for `build_source`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def build_source(
    console: Console, options: Mapping[str, Any], *, rate_given: bool, default_requests: int
) -> WorkloadSource:
    """Reads the data set that the options describe.

    Without a rate the data set's own arrivals are used, all of them unless the options say how many.
    """
    from bench.data.datasets import DatasetSpec
    from bench.data.source import WorkloadSpec, load_source
    from bench.workload.rate_profile import parse_steps
    from engine_adapters.tokenizer import default_tokenizer

    try:
        steps = tuple(parse_steps(options["rate_steps"])) if options["rate_steps"] else ()
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--rate-steps") from None
    if steps and rate_given:
        raise click.UsageError("--rate-steps says the rate already: leave --rate out")
    if options["day_curve"] is not None and not (rate_given and options["duration"] is not None):
        raise click.UsageError("--day-curve needs --rate, its mean, and --duration, its length")
    file = options["dataset"] if options["dataset"].endswith(".py") else ""
    if file:
        _check_own_file(options)
    first_row, max_rows = _row_range(options["rows"])
    requests, duration_s = options["requests"], options["duration"]
    check_positive("--duration", duration_s, "seconds")
    check_positive("--burstiness", options["burstiness"], "(1 is Poisson, less is burstier)")
    check_positive("--rate-scale", options["rate_scale"], "(2 doubles the rate)")
    spec = WorkloadSpec(
        file=file,
        dataset=DatasetSpec(
            name="sharegpt" if file else options["dataset"],
            path=options["dataset_path"],
            tokenizer=options["tokenizer"] or default_tokenizer(),
            start_s=options["start"],
            duration_s=None if rate_given or steps or duration_s is None else duration_s * options["rate_scale"],
            first_row=first_row,
            max_rows=max_rows,
            default_output_tokens=options["output_tokens"],
            skip_bad=options["skip_bad"],
            shape=options["shape"],
        ),
        arrivals=options["arrivals"],
        burstiness=options["burstiness"],
        rate_scale=options["rate_scale"],
        requests=default_requests if requests is None and (file or (rate_given and duration_s is None)) else requests,
        duration_s=duration_s,
        rate_steps=steps,
        day_peak_to_valley=options["day_curve"],
        shuffle=not options["in_order"],
    )
    with one_line_errors(), console.status("reading the data set") as status:
        source = load_source(spec, progress=lambda what, share: status.update(f"{what} {share:4.0%}"))
    if not rate_given and not steps and not source.has_arrivals:
        raise click.UsageError("this data set has no arrival times: add --rate, in requests per second")
    if options["arrivals"] == "recorded" and not source.has_arrivals:
        raise click.UsageError("this data set has no arrival times: choose another --arrivals")
    return source


def rates(values: Sequence[float]) -> list[float | None]:
    """Checked rates; [None], the data set's own arrivals, when there are none."""
    for value in values:
        check_positive("--rate", value, "requests per second")
    return list(values) or [None]


def policies(names: Sequence[str]) -> list[str]:
    """Names, of files those that they give themselves; each may hold several with commas.

    Raises click.BadParameter for an unknown one or a file that holds no policy.
    """
    from gateway.core.decision.policies.registry import PolicyError
    from gateway.policy_files import policy_name

    found: list[str] = []
    for name in (part.strip() for value in names for part in value.split(",") if part.strip()):
        try:
            canonical = policy_name(name)
        except PolicyError as error:
            raise click.BadParameter(str(error), param_hint="--policy") from None
        if canonical not in found:
            found.append(canonical)
    return found


def policy_files(names: Sequence[str]) -> list[str]:
    """Absolute paths of those policies that are given by a file."""
    parts = (part.strip() for value in names for part in value.split(","))
    return [str(Path(part).resolve()) for part in parts if part.endswith(".py")]


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


def _row_range(text: str) -> tuple[int, int | None]:
    if not text:
        return 1, None
    match = re.fullmatch(r"(\d*):(\d*)", text)
    first = int(match[1] or 1) if match else 0
    last = int(match[2]) if match and match[2] else None
    if first < 1 or (last is not None and last < first):
        raise click.BadParameter(f"write A:B with 1 <= A <= B, for example 1:5000; got {text!r}", param_hint="--rows")
    return first, None if last is None else last - first + 1

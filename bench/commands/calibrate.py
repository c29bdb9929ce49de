"""`astrolabe bench calibrate`: how fast a node's step times are learned from its trace, from wrong priors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.workload_options import build_source, check_positive, one_line_errors, workload_options
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from bench.profile.calibration import LearningCurve
    from simcore.cost.step_time import StepTimeModel

DEFAULT_PRIORS = ("x3", "x0.333", "h100/llama-2-7b")
SIDE_STEPS = 200
"""Least number before and after the change of speed."""
REQUESTS_PER_STEP = 0.4
"""Enough for the node never to run dry, so that the run has all its steps."""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Example: an A30 that is taken for three times slower, three times faster and an H100.
  astrolabe bench calibrate --plot calibration.png

\b
Example: an H100 under load, taken for an L40S, with much noise and no change of speed.
  astrolabe bench calibrate --profile h100/llama-2-7b --prior l40s/llama-2-7b --rate 12 --noise 0.1 --change-at 0
""",
)
@click.option(
    "--profile", default="a30/llama-2-7b", show_default=True, metavar="GPU/MODEL", help="What the hidden node is."
)
@click.option(
    "--prior",
    "priors",
    multiple=True,
    default=DEFAULT_PRIORS,
    show_default=True,
    metavar="PRIOR",
    help="What it is taken for: a profile, or xN for its own with all times N-fold. May be repeated.",
)
@click.option("--rate", type=float, default=2.2, show_default=True, metavar="R", help="Requests per second.")
@click.option(
    "--steps", type=click.IntRange(min=200), default=8000, show_default=True, metavar="N", help="Steps of the run."
)
@click.option(
    "--change-at",
    type=click.IntRange(min=0),
    metavar="N",
    help="Step at which the hardware's speed changes; 0: never.  [default: after 5/8 of the steps]",
)
@click.option(
    "--change-factor", type=float, default=1.6, show_default=True, metavar="X", help="Steps take X times as long then."
)
@click.option(
    "--overhead-ms",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="MS",
    help="CPU time in every step that no profile tells of.",
)
@click.option(
    "--noise",
    type=click.FloatRange(min=0, max=1),
    default=0.03,
    show_default=True,
    metavar="S",
    help="Spread of each duration (a ratio).",
)
@click.option(
    "--pauses",
    type=click.FloatRange(min=0, max=0.5),
    default=0.003,
    show_default=True,
    metavar="P",
    help="Share of steps that take 10 to 100 times as long.",
)
@click.option("--max-num-seqs", type=click.IntRange(min=1), default=48, show_default=True, metavar="N")
@click.option("--max-num-batched-tokens", type=click.IntRange(min=1), default=512, show_default=True, metavar="N")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N")
@workload_options
@click.option("--plot", default="", metavar="FILE", help="Write the picture (PNG).")
@json_option
def calibrate(priors: Sequence[str], plot: str, as_json: bool, **options: Any) -> None:
    """Learn the step times of a simulated node whose hardware nobody has told of, from its trace alone.

    The error at a step is that of the model in use there on the next 100 steps, pauses included, median of
    |predicted - actual| / actual. Noise of 3 % alone makes an error of 2 %.
    """
    import msgspec
    from rich.console import Console

    from bench.profile.calibration import Hardware, learn, record
    from bench.show.tables import out_console
    from simcore.cost.shipped import load_profile
    from simcore.types import EngineConfig

    check_positive("--rate", options["rate"], "requests per second")
    check_positive("--change-factor", options["change_factor"], "(1 is no change)")
    steps, change_at = options["steps"], options["change_at"]
    if change_at is None:
        change_at = min(max(5 * steps // 8, SIDE_STEPS), steps - SIDE_STEPS) if steps >= 2 * SIDE_STEPS else 0
    if change_at and not SIDE_STEPS <= change_at <= steps - SIDE_STEPS:
        raise click.BadParameter(f"must be 0 or leave {SIDE_STEPS} steps on either side", param_hint="--change-at")
    console = Console(stderr=True)
    try:
        profile = load_profile(options["profile"])
        named = [(name, _prior(name, profile.step_time_model())) for name in priors]
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    needed = int(steps * REQUESTS_PER_STEP)
    source = build_source(console, options, rate=1.0, default_requests=needed)
    hardware = Hardware(
        host_overhead_s=options["overhead_ms"] * 1e-3,
        noise=options["noise"],
        pause_share=options["pauses"],
        change_at_step=change_at,
        change_factor=options["change_factor"],
    )
    config = EngineConfig(
        model=profile.model,
        max_num_seqs=options["max_num_seqs"],
        max_num_batched_tokens=options["max_num_batched_tokens"],
        block_size_tokens=profile.kv.block_size_tokens,
        num_blocks=profile.kv.num_blocks,
    )
    with one_line_errors(), console.status("learning"):
        source.keep_fitting(min(config.max_model_len_tokens, config.num_blocks * config.block_size_tokens))
        try:
            items = source.workload(rate_per_s=options["rate"], seed=options["seed"])
            trace = record(items, config, profile.step_time_model(), hardware, steps=steps, seed=options["seed"])
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        courses = [learn(trace, model, name=name, change_at_step=change_at) for name, model in named]
        scene = (
            f"{profile.name} at {options['rate']:g} requests/s, {steps:,} steps, {options['overhead_ms']:g} ms CPU "
            f"overhead untold, noise {hardware.noise:.0%}, {hardware.pause_share:.1%} pauses 10 to 100 steps long"
        )
        if plot:
            from bench.show.plots_calibration import plot_calibration

            plot_calibration(
                Path(plot),
                courses,
                change_at_step=change_at,
                change=f"Steps suddenly take {hardware.change_factor:g} times as long",
                noise=0.6745 * hardware.noise,
                title=f"A node learns its own step times: hidden {profile.name}",
                caption=f"{scene}; seed {options['seed']}",
            )
    if as_json:
        document = {"profile": profile.name, "rate_per_s": options["rate"], "steps": steps, "seed": options["seed"]}
        click.echo(msgspec.json.encode(document | {"hardware": hardware, "courses": courses}))
        return
    out = out_console()
    out.print(f"{scene}; seed {options['seed']}", highlight=False)
    _show(out, courses)
    if plot:
        out.print(f"picture: {plot}", highlight=False)


def _prior(name: str, hidden: StepTimeModel) -> StepTimeModel:
    """Raises ValueError."""
    from simcore.cost.shipped import load_profile

    if name[:1] == "x" and name[1:].replace(".", "", 1).isdigit():
        factor = float(name[1:])
        if factor <= 0:
            raise ValueError(f"prior {name!r}: the factor must be above 0")
        return hidden.scaled(factor)
    return load_profile(name).step_time_model()


def _show(out: Any, courses: Sequence[LearningCurve]) -> None:
    from rich.table import Table

    from bench.profile.calibration import BARS
    from bench.show.tables import print_table

    errors = Table(title="Step-time error after learning from so many steps", title_justify="left", header_style="bold")
    errors.add_column("prior", no_wrap=True)
    errors.add_column("none", justify="right")
    for mark in courses[0].at_steps:
        errors.add_column(f"{mark:,}", justify="right")
    errors.add_column("end", justify="right")
    errors.add_column("prefill", justify="right")
    speed = Table(title="Steps until the error stays below", title_justify="left", header_style="bold")
    speed.add_column("prior", no_wrap=True)
    for error, within in BARS:
        speed.add_column(f"{error:.0%}\n(bar: {within:,})", justify="right")
    again = bool(courses[0].steps_to_again)
    if again:
        for error, _ in BARS:
            speed.add_column(f"{error:.0%} after\nthe change", justify="right")
    speed.add_column("models\nused", justify="right")
    speed.add_column("CPU per\nstep", justify="right")
    for course in courses:
        prefill = "–" if course.final_prefill is None else f"{course.final_prefill:.1%}"
        at_steps = (f"{e:.1%}" for e in course.at_steps.values())
        errors.add_row(course.prior, f"{course.before:.1%}", *at_steps, f"{course.final:.1%}", prefill)
        reached = [*course.steps_to.values(), *course.steps_to_again.values()]
        speed.add_row(
            course.prior,
            *("never" if n is None else f"{n:,}" for n in reached),
            str(course.versions),
            f"{course.cost_s_per_step * 1e6:.0f} us",
        )
    print_table(out, errors)
    print_table(out, speed)

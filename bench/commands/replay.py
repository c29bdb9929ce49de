"""`astrolabe bench replay`: an open-loop workload against a live gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bench.commands.endpoint_options import endpoint_options, replay_endpoints, urls_of, with_aliases
from bench.commands.workload_options import (
    build_source,
    check_positive,
    one_line_errors,
    policies,
    rates,
    workload_options,
)
from deploy.gateway_client import gateway_option
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from bench.client.open_loop import ReplayPlan
    from bench.data.source import WorkloadSource

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_REQUESTS = 200

LIVE_OPTIONS = (
    click.option(
        "--natural-length",
        is_flag=True,
        help="Let the model end its answers. [default: run to the data set's length]",
    ),
    click.option("--model", default="", metavar="NAME", help="Model to ask for. [default: the only one]"),
    click.option(
        "--timeout",
        type=float,
        default=600.0,
        show_default=True,
        metavar="S",
        help="Give a request up after that long.",
    ),
    click.option(
        "--time-scale",
        type=float,
        default=1.0,
        show_default=True,
        metavar="X",
        help="That of emulated nodes: the workload runs X times as fast, times are told on its own scale.",
    ),
)


def live_options(command: F) -> F:
    """Adds what only runs against a live gateway have."""
    for option in reversed(LIVE_OPTIONS):
        command = option(command)
    return command


@click.command(
    epilog="""\b
Example: 300 ShareGPT conversations at 8 requests per second, one JSON line each.
  astrolabe bench replay --rate 8 --requests 300 --output results/run.jsonl

\b
Example: ten minutes of a BurstGPT file, three times as dense, under another policy.
  astrolabe bench replay --dataset burstgpt --dataset-path BurstGPT_1.csv \\
      --start 792000 --duration 600 --rate-scale 3 --policy llumnix_freeness

\b
Example: two plain vLLM servers on ports 8000 and 8001, their metrics and figures, no gateway.
  astrolabe bench replay --num-nodes 2 --base-port 8000 --average-interval 0.16 --maxq 50
"""
)
@click.option("--rate", type=float, metavar="R", help="Requests per second. [default: the data set's own arrivals]")
@click.option(
    "--policy",
    default="",
    metavar="NAME",
    help="Policy during the run; the one before comes back. [default: the gateway's]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of arrivals, row order and made-up prompts.")
@workload_options
@live_options
@endpoint_options
@click.option("--output", default="", metavar="FILE", help="Write a header line and one JSON line per request.")
@gateway_option
@json_option
def replay(gateway: str, as_json: bool, **options: Any) -> None:
    """Send a workload to a live gateway, or to plain servers, each request when it is due, and measure here."""
    from rich.console import Console

    from bench.run.files import write_results
    from bench.run.live import Job, complaints, context_tokens, look_up, replay_jobs
    from bench.run.provenance import header
    from bench.show.tables import out_console, print_table, summary_lines, summary_table

    console = Console(stderr=True)
    options = with_aliases(options)
    urls = urls_of(options)
    (rate,) = rates([] if options["rate"] is None else [options["rate"]])
    chosen = policies([options["policy"]] if options["policy"] else [])
    check_live_options(options)
    source = build_source(console, options, rate=rate, default_requests=DEFAULT_REQUESTS)
    if urls:
        replay_endpoints(console, urls, source, rate=rate, options={**options, "as_json": as_json})
        return
    with one_line_errors():
        nodes = look_up(gateway)
        source.keep_fitting(context_tokens(nodes, options["model"]))
        job = Job(policy=chosen[0] if chosen else "", plan=live_plan(source, rate, options["seed"], options))
        config = {**options, "gateway": gateway, "policy": job.policy or nodes.policy, "dataset_notes": source.notes}
        head = header(config, seed=options["seed"])
        (done,) = replay_jobs(gateway, [job], console=console)
        summary = done.run.summary
        if options["output"]:
            write_results(Path(options["output"]), head, done.results)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"header": head, "summary": summary}))
    else:
        out = out_console()
        for note in source.notes:
            out.print(f"[dim]{note}[/]", highlight=False)
        print_table(out, summary_table(summary, title=f"{job.policy or nodes.policy} at {gateway}"))
        for line in summary_lines(summary):
            out.print(line, highlight=False)
        if options["output"]:
            out.print(f"one line per request: {options['output']}", highlight=False)
    for complaint in complaints(summary, time_scale=options["time_scale"]):
        console.print(f"[yellow]warning:[/] {complaint}", highlight=False)


def check_live_options(options: dict[str, Any]) -> None:
    """Raises click.BadParameter."""
    check_positive("--timeout", options["timeout"], "seconds")
    check_positive("--time-scale", options["time_scale"], "emulated seconds per second")


def live_plan(
    source: WorkloadSource,
    rate: float | None,
    seed: int,
    options: dict[str, Any],
    shares: Mapping[str, float] | None = None,
) -> ReplayPlan:
    """The run that the options describe, `shares` of its requests by model where there are several.

    Raises click.ClickException when there cannot be one.
    """
    from bench.client.open_loop import ReplayPlan
    from bench.run.live import run_id
    from bench.workload.item import belief_of, check_sent_by_the_clock
    from bench.workload.models import with_models

    try:
        items = with_models(source.workload(rate_per_s=rate, seed=seed), shares or {}, seed)
        check_sent_by_the_clock(items)
        belief_of(items[0], options["lengths"])
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    return ReplayPlan(
        items=items,
        run_id=run_id(),
        lengths=options["lengths"],
        natural_length=options["natural_length"],
        model=options["model"],
        seed=seed,
        timeout_s=options["timeout"],
        time_scale=options["time_scale"],
    )

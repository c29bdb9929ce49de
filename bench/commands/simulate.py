"""`astrolabe bench simulate`: the gateway's own router over simulated nodes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from bench.commands.workload_options import (
    build_source,
    one_line_errors,
    policies,
    policy_files,
    rates,
    workload_options,
)
from deploy.gateway_client import json_option

if TYPE_CHECKING:
    from bench.run.simulate import Settings

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_REQUESTS = 2000

NODE_OPTIONS = (
    click.option(
        "--profile", default="a30/llama-2-7b", show_default=True, metavar="GPU/MODEL", help="Step times of the nodes."
    ),
    click.option(
        "--max-num-seqs",
        type=click.IntRange(min=1),
        default=48,
        show_default=True,
        metavar="N",
        help="Requests in one batch.",
    ),
    click.option(
        "--max-num-batched-tokens",
        type=click.IntRange(min=1),
        default=512,
        show_default=True,
        metavar="N",
        help="Token budget of one step.",
    ),
    click.option(
        "--block-size-tokens",
        type=click.IntRange(min=1),
        default=16,
        show_default=True,
        metavar="N",
        help="Tokens per KV block.",
    ),
    click.option(
        "--num-blocks",
        type=click.IntRange(min=1),
        metavar="N",
        help="KV blocks of a node. [default: what the profile's memory gives]",
    ),
    click.option(
        "--max-model-len-tokens",
        type=click.IntRange(min=1),
        default=4096,
        show_default=True,
        metavar="N",
        help="Prompt plus answer limit.",
    ),
)

SIMULATION_OPTIONS = (
    click.option(
        "--ask",
        type=click.IntRange(min=0),
        default=4,
        show_default=True,
        metavar="K",
        help="Nodes asked for a forecast per decision; 0: all.",
    ),
    click.option(
        "--hold",
        type=click.Choice(["never", "forecast", "always"]),
        default="forecast",
        show_default=True,
        help="Hold what every node would keep waiting, under policies that forecast or all.",
    ),
    click.option(
        "--hold-order",
        type=click.Choice(["fcfs", "shortest_forecast", "deadline"]),
        default="fcfs",
        show_default=True,
        help="Order of held requests.",
    ),
    click.option(
        "--sample",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="K",
        help="Nodes drawn at random per decision; 0: the policy's default.",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="Simulations side by side; 0: one per core.",
    ),
)


def node_options(command: F) -> F:
    """Adds what an emulated or simulated node can be told. KV blocks that nobody names are the profile's."""

    @functools.wraps(command)
    def with_blocks(**options: Any) -> Any:
        from bench.profile.step_time_file import blocks_of

        if options["num_blocks"] is None:
            try:
                options["num_blocks"] = blocks_of(options["profile"], options["block_size_tokens"])
            except ValueError as error:
                raise click.ClickException(str(error)) from None
        return command(**options)

    decorated = cast(F, with_blocks)
    for option in reversed(NODE_OPTIONS):
        decorated = option(decorated)
    return decorated


def simulation_options(command: F) -> F:
    """Adds what only simulations have."""
    for option in reversed(SIMULATION_OPTIONS):
        command = option(command)
    return command


@click.command(
    epilog="""\b
Example: three policies at five rates over 12 A30 nodes with ShareGPT requests.
  astrolabe bench simulate --policy round_robin,llumnix_freeness,min_total_latency \\
      --rate 20 --rate 24 --rate 28 --rate 32 --rate 36 --requests 10000
"""
)
@click.option(
    "--policy",
    multiple=True,
    default=("round_robin", "llumnix_freeness", "min_total_latency"),
    show_default=True,
    metavar="NAME",
    help="May be repeated, or several with commas.",
)
@click.option(
    "--rate",
    type=float,
    multiple=True,
    metavar="R",
    help="Requests per second; may be repeated. [default: the data set's own arrivals]",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Runs per point, with seeds 0 to N - 1.",
)
@click.option("--nodes", type=click.IntRange(min=1), default=12, show_default=True, metavar="N", help="Equal nodes.")
@node_options
@simulation_options
@workload_options
@click.option(
    "--output", default="", metavar="DIR", help="Write one file per run: a header line, then one JSON line per request."
)
@click.option(
    "--timeline",
    default="",
    metavar="FILE",
    help="Write the first run's --timeline-node in Chrome's trace format, for ui.perfetto.dev.",
)
@click.option(
    "--timeline-node", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Its index."
)
@json_option
def simulate(as_json: bool, **options: Any) -> None:
    """Run the gateway's own router over simulated nodes: a table per policy and rate, in seconds instead of hours."""
    from rich.console import Console

    from bench.run import simulate_run
    from bench.show.tables import out_console

    console = Console(stderr=True)
    if options["timeline_node"] >= options["nodes"]:
        raise click.BadParameter(
            f"there are {options['nodes']} nodes, 0 to {options['nodes'] - 1}", param_hint="--timeline-node"
        )
    names, points = policies(options["policy"]), rates(options["rate"])
    source = build_source(console, options, rate_given=bool(options["rate"]), default_requests=DEFAULT_REQUESTS)
    with one_line_errors():
        settings = simulation_settings(options)
        source.keep_fitting(settings.shape.longest_tokens)
        seeds = range(options["seeds"])
        head = simulate_run.header_of(settings, source, options)
        done = simulate_run.simulate_source(
            console, source, settings, policies=names, rates=points, seeds=seeds, jobs=options["jobs"]
        )
        if options["output"]:
            simulate_run.write_folder(Path(options["output"]), head, done)
        if options["timeline"]:
            simulate_run.write_timeline(Path(options["timeline"]), settings, done[0], options["timeline_node"])
    if as_json:
        click.echo(simulate_run.as_document(head, done))
    else:
        out = out_console()
        simulate_run.show(out, source, settings, done)
        if options["output"]:
            out.print(f"one line per request: {options['output']}/", highlight=False)
        if options["timeline"]:
            out.print(f"timeline for ui.perfetto.dev: {options['timeline']}", highlight=False)


def simulation_settings(options: Mapping[str, Any]) -> Settings:
    """Raises click.ClickException for a profile that is not shipped."""
    from bench.run.simulate import ClusterShape, Settings

    shape = ClusterShape(**{name: options[name] for name in ClusterShape.__struct_fields__})
    try:
        shape.specs()
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    return Settings(
        shape=shape,
        lengths=options["lengths"],
        sample=options["sample"],
        ask=options["ask"],
        hold=options["hold"],
        hold_order=options["hold_order"],
        keep_results=bool(options.get("output") or options.get("timeline")),
        policy_files=tuple(policy_files(options["policy"])),
    )

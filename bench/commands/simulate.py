"""`astrolabe bench simulate`: the gateway's own router over simulated nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bench.commands.run_errors import run_errors
from bench.commands.spec_options import (
    JOBS,
    RATES,
    check_one_fleet,
    given_values,
    policy_option,
    scaler_variants,
    scaling_options,
    scaling_values,
    seeds_option,
    spec_options,
    spec_values,
)
from bench.commands.workload_options import (
    one_line_errors,
    policy_variants,
    rates,
    read_source,
    workload_of,
    workload_options,
)
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from rich.console import Console

    from bench.data.source import WorkloadSource
    from bench.run.provenance import Provenance
    from bench.run.simulated import Done
    from bench.run.spec import RunSpec

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_REQUESTS = 2000
NODE_KEYS = (
    "profile",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size_tokens",
    "num_blocks",
    "max_model_len_tokens",
    "scheduling_policy",
)
SIMULATED_KEYS = (
    "fleet",
    "models",
    "as_published",
    "concurrency",
    "warm_up_s",
    "priority_blind",
    "moves_asked",
    "moves_gently",
)
ROUTER_KEYS = (
    "router.ask",
    "router.hold.when",
    "router.hold.order",
    "router.moves.rule",
    "router.moves.every_s",
    "router.moves.share",
    "router.moves.at_once",
    "sample",
)
node_options = spec_options(*NODE_KEYS)
"""The engine of an emulated or simulated node."""


def simulation_options(command: F) -> F:
    """Adds what only simulations have."""
    return spec_options(*SIMULATED_KEYS, *ROUTER_KEYS)(scaling_options(JOBS(command)))


@click.command(
    epilog="""\b
Example: three policies at five rates over 12 A30 nodes with ShareGPT requests.
  astrolabe bench simulate --policy round_robin,llumnix_freeness,min_total_latency \\
      --rate 20 --rate 24 --rate 28 --rate 32 --rate 36 --requests 10000

\b
Example: a fleet that grows and shrinks, beside one that is always whole and one that knows the future.
  astrolabe bench simulate --scaler forecast,static,perfect --min 1 --max 8 --cold-start 30 --price 8 \\
      --policy min_total_latency --rate-steps 2x300,8x300,3x300 --plot results/scaling.png
"""
)
@policy_option()
@RATES
@seeds_option(1)
@spec_options("nodes")
@node_options
@simulation_options
@workload_options
@click.option(
    "--output", default="", metavar="DIR", help="Write one file per run: a header line, then one JSON line per request."
)
@click.option("--plot", default="", metavar="FILE", help="A picture of scaled fleets over time, as PNG.")
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
    if options["plot"] and not options["scaler"]:
        raise click.UsageError("--plot shows scaled fleets: add --scaler NAME, or use bench compare --simulate")
    from rich.console import Console

    from bench.show import simulated
    from bench.show.tables import out_console

    console = Console(stderr=True)
    base = simulated_spec(options, DEFAULT_REQUESTS)
    if options["timeline_node"] >= base.size:
        raise click.BadParameter(f"there are {base.size} nodes, 0 to {base.size - 1}", param_hint="--timeline-node")
    source, head, done = simulate_runs(console, base, options, keep_results=bool(options["timeline"]))
    if options["timeline"]:
        simulated.write_timeline(Path(options["timeline"]), done[0], options["timeline_node"])
    if options["plot"]:
        simulated.plot_scaling(Path(options["plot"]), done, title=simulated.title_of(base), caption=head.command)
    if as_json:
        click.echo(simulated.as_document(head, done))
        return
    out = out_console()
    simulated.show(out, source.notes, base, done)
    if options["output"]:
        out.print(f"one line per request: {options['output']}/", highlight=False)
    if options["plot"]:
        out.print(f"picture: {options['plot']}", highlight=False)
    if options["timeline"]:
        out.print(f"timeline for ui.perfetto.dev: {options['timeline']}", highlight=False)


def simulated_spec(options: Mapping[str, Any], default_requests: int) -> RunSpec:
    """The run that all have in common. Raises click.ClickException for one that cannot be."""
    from bench.run.spec import SpecError, check_spec, with_values

    check_one_fleet(options)
    points = rates(options["rate"])
    workload = workload_of(options, rate=points[0], default_requests=default_requests)
    try:
        values = spec_values(options, "nodes", *SIMULATED_KEYS, *NODE_KEYS)
        scaler = next(iter(scaler_variants(options).values()))
        base = with_values(workload, values | given_router(options) | scaling_values(options) | scaler)
        check_spec(base)
    except SpecError as error:
        raise click.ClickException(str(error)) from None
    return base


def given_router(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those keys of the router that were given; the others stay as the router has them."""
    return given_values(options, *ROUTER_KEYS)


def simulate_runs(
    console: Console, base: RunSpec, options: Mapping[str, Any], *, keep_results: bool = False
) -> tuple[WorkloadSource, Provenance, list[Done]]:
    """Every policy of the options at every rate and seed, policies fastest; `--output` is written."""
    import msgspec

    from bench.run.executor import run_all
    from bench.run.files import write_run, write_scaling
    from bench.run.grid import make_tasks
    from bench.run.provenance import header
    from bench.run.simulated import Done
    from bench.run.workload import items_of
    from bench.workload.item import belief_of

    source = read_source(console, base)
    variants = {
        "+".join(filter(None, (scaler, policy))): {**of_policy, **of_scaler}
        for scaler, of_scaler in scaler_variants(options).items()
        for policy, of_policy in policy_variants(options["policy"]).items()
    }
    folder = Path(options["output"]) if options["output"] else None
    with one_line_errors(), run_errors():
        source.keep_fitting(base.longest_tokens)
        belief_of(items_of(source, base)[0], base.lengths)
        head = header({**options, **msgspec.to_builtins(base), "dataset_notes": source.notes})
        tasks = [
            task
            for rate in rates(options["rate"])
            for seed in range(options["seeds"])
            for task in make_tasks(base, group="simulate", variants=variants, axes={"rate_per_s": [rate]}, seeds=[seed])
        ]
        results: dict[str, Done] = {}
        scaled: list[Done] = []

        def on_results(done: Done) -> None:
            if folder is not None:
                write_run(folder, head, done.line.run, done.results)
                if done.scaling is not None:
                    scaled.append(done)
            results[done.line.key] = done

        executed = run_all(
            tasks,
            console=console,
            jobs=options["jobs"],
            on_results=on_results if keep_results or folder is not None else None,
            title="simulated",
        )
    if folder is not None and scaled:
        with one_line_errors():
            write_scaling(folder, head, scaled)
    kept = results if keep_results else {}
    return source, head, [kept.get(line.key) or Done(line=line) for line in executed.lines]

"""`astrolabe bench compare`: the same workload under several policies, live or simulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.replay import check_live_options, live_options, live_plan
from bench.commands.simulate import (
    NODE_KEYS,
    given_router,
    node_options,
    simulate_runs,
    simulated_spec,
    simulation_options,
)
from bench.commands.spec_options import (
    RATES,
    check_one_fleet,
    policy_option,
    scaling_values,
    seeds_option,
    spec_values,
)
from bench.commands.workload_options import (
    build_source,
    one_line_errors,
    policies,
    policy_paths,
    rates,
    workload_options,
)
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from rich.console import Console

    from bench.client.open_loop import ReplayPlan
    from bench.data.source import WorkloadSource
    from bench.measure.results import Run
    from bench.run.live import LiveRun
    from bench.run.spec import RunSpec

DEFAULT_LIVE_REQUESTS, DEFAULT_SIMULATED_REQUESTS = 200, 2000
DEFAULT_LIVE_NODES, DEFAULT_SIMULATED_NODES = 4, 12


@click.command(
    epilog="""\b
Example: against a gateway that runs.
  astrolabe bench compare --gateway 127.0.0.1:8200 --rate 8 --requests 200

\b
Example: with a local cluster of four emulated nodes of its own, twice as fast as real ones.
  astrolabe bench compare --rate 8 --requests 200 --time-scale 2

\b
Example: a policy of your own against the product's, five paired seeds, with intervals.
  astrolabe bench compare --simulate --policy llumnix_freeness,./my_policy.py --rate 30 --seeds 5

\b
Example: simulated, over several rates.
  astrolabe bench compare --simulate --rate 20 --rate 28 --rate 36 --requests 10000
"""
)
@policy_option(" The first is the baseline.")
@RATES
@seeds_option(1)
@click.option("--simulate", "simulated", is_flag=True, help="Simulated nodes instead of processes.")
@click.option(
    "--gateway",
    metavar="HOST:PORT",
    default="",
    envvar="ASTROLABE_GATEWAY",
    show_envvar=True,
    help="A running gateway. [default: a local cluster, started for this]",
)
@click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="Equal nodes. [default: 4 local, 12 simulated]")
@node_options
@simulation_options
@workload_options
@live_options
@click.option(
    "--plot", default="results/compare.png", show_default=True, metavar="FILE", help="Where the picture goes."
)
@click.option("--output", default="", metavar="DIR", help="Write one file per run, one JSON line per request.")
@json_option
def compare(as_json: bool, **options: Any) -> None:
    """Send the same workload under several policies: a table, and a picture as PNG."""
    from rich.console import Console

    console = Console(stderr=True)
    names, points = policies(options["policy"]), rates(options["rate"])
    check_live_options(options)
    simulated = options["simulated"]
    if simulated and options["gateway"] and not _from_environment("gateway"):
        raise click.UsageError("--simulate and --gateway exclude each other")
    check_one_fleet(options)
    options["nodes"] = options["nodes"] or (DEFAULT_SIMULATED_NODES if simulated else DEFAULT_LIVE_NODES)
    if simulated:
        _simulated(console, options, as_json=as_json)
        return
    if options["gateway"] and (options["fleet"] or options["models"]):
        raise click.UsageError("the gateway has nodes of its own: leave --fleet and --models out, or --gateway")
    scaling_values(options)
    if options["scaler"]:
        raise click.UsageError("--scaler is for --simulate; live, start the gateway with it")
    if options["as_published"]:
        raise click.UsageError("--as-published is for --simulate; say --ask 0 --hold never")
    source = build_source(console, options, rate=points[0], default_requests=DEFAULT_LIVE_REQUESTS)
    with one_line_errors():
        _live(console, source, names, points, options, as_json=as_json)


def _simulated(console: Console, options: dict[str, Any], *, as_json: bool) -> None:
    from bench.measure.differences import difference_table, differences
    from bench.show import simulated
    from bench.show.tables import out_console, print_table

    base = simulated_spec(options, DEFAULT_SIMULATED_REQUESTS)
    source, head, done = simulate_runs(console, base, options)
    runs = [one.line.run for one in done]
    caption = f"{source.notes[0]}. {head.command}"
    if base.scaler:
        simulated.plot_scaling(Path(options["plot"]), done, title=simulated.title_of(base), caption=caption)
    else:
        _plot(runs, simulated.title_of(base), options, caption=caption)
    found = differences(runs)
    if as_json:
        click.echo(simulated.as_document(head, done, differences=found))
        return
    out = out_console()
    simulated.show(out, source.notes, base, done)
    if found and options["seeds"] > 1:
        print_table(out, difference_table(found))
    click.echo(f"picture: {options['plot']}")


def _live(
    console: Console,
    source: WorkloadSource,
    names: Sequence[str],
    points: Sequence[float | None],
    options: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    from bench.run.live import local_cluster
    from bench.run.spec import RunSpec, SpecError, check_spec, with_values
    from deploy.local_cluster import ClusterError, ClusterSpec

    def run(address: str, title: str, router: str) -> None:
        done = _replays(console, address, source, names, points, options, base, router=router)
        _report(console, source, done, title, options, as_json=as_json)

    base = RunSpec()
    if options["gateway"]:
        run(options["gateway"], f"live at {options['gateway']}", f"router of the gateway at {options['gateway']}")
        return
    try:
        own = spec_values(options, "nodes", "fleet", "models", *NODE_KEYS)
        base = with_values(base, own | ({"models": {options["model"]: 1.0}} if options["model"] else {}))
        check_spec(base)
    except SpecError as error:
        raise click.UsageError(str(error)) from None
    spec = ClusterSpec(
        nodes=base.size,
        gateway_port=0,
        first_node_port=0,
        predictor={"time_scale": options["time_scale"]},
        per_node=base.node_options(),
        gateway={
            **{name: options[name] for name in ("sample", "ask", "hold", "hold_order")},
            "policy_file": [path for path in policy_paths(options["policy"]).values() if path.endswith(".py")],
        },
    )
    try:
        with local_cluster(console, spec) as cluster:
            router = with_values(RunSpec(), given_router(options)).router_text
            run(cluster.address, f"emulated nodes, live: {base.fleet_text}", router)
    except ClusterError as error:
        if error.log:
            click.echo(error.log, err=True)
        raise click.ClickException(error.summary) from None


def _replays(
    console: Console,
    address: str,
    source: WorkloadSource,
    names: Sequence[str],
    points: Sequence[float | None],
    options: dict[str, Any],
    base: RunSpec,
    *,
    router: str,
) -> list[LiveRun]:
    from bench.run.live import context_tokens, jobs_of, look_up, replay_jobs, with_groups

    shares = {} if options["model"] else base.model_shares
    source.keep_fitting(context_tokens(look_up(address), options["model"]))

    def make_plan(rate: float | None, seed: int) -> ReplayPlan:
        return live_plan(source, rate, seed, options, shares)

    jobs = jobs_of(make_plan, policies=names, rates=points, seeds=range(options["seeds"]), router=router)
    return with_groups(replay_jobs(address, jobs, console=console), base)


def _report(
    console: Console,
    source: WorkloadSource,
    done: Sequence[LiveRun],
    title: str,
    options: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    import msgspec

    from bench.measure.differences import difference_table, differences
    from bench.run.files import write_run
    from bench.run.live import complaints
    from bench.run.provenance import header
    from bench.show.groups import show_groups
    from bench.show.tables import comparison_table, out_console, print_table

    head = header({**options, "dataset_notes": source.notes})
    runs = [one.run for one in done]
    for one in done if options["output"] else ():
        write_run(Path(options["output"]), head, one.run, one.results)
    _plot(runs, title, options, caption=f"{source.notes[0]}. {head.command}")
    if as_json:
        click.echo(msgspec.json.encode({"header": head, "runs": runs, "differences": differences(runs)}))
    else:
        out = out_console()
        for note in source.notes:
            out.print(f"[dim]{note}[/]", highlight=False)
        print_table(out, comparison_table(runs, title=title))
        show_groups(out, runs)
        if options["seeds"] > 1 and (found := differences(runs)):
            print_table(out, difference_table(found))
        out.print(f"picture: {options['plot']}", highlight=False)
    for run in runs:
        for complaint in complaints(run.summary, time_scale=options["time_scale"]):
            console.print(f"[yellow]warning:[/] {run.policy}: {complaint}", highlight=False)


def _plot(runs: Sequence[Run], title: str, options: dict[str, Any], *, caption: str) -> None:
    from bench.show.plots import plot_comparison

    plot_comparison(Path(options["plot"]), runs, title=title, caption=caption)


def _from_environment(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source == click.core.ParameterSource.ENVIRONMENT

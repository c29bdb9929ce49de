"""The demo: finds a load by simulation, compares policies live at it on a mixed fleet, then simulates a larger one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from bench.client.open_loop import ReplayPlan
from bench.data.source import WorkloadSource, load_source
from bench.measure.capacity import capacities
from bench.measure.results import Run
from bench.run.executor import run_all
from bench.run.files import write_run
from bench.run.live import (
    LiveRun,
    complaints,
    context_tokens,
    jobs_of,
    lateness_warnings,
    local_cluster,
    look_up,
    replay_jobs,
    run_id,
    with_groups,
)
from bench.run.provenance import header
from bench.run.simulated import Task
from bench.run.spec import RunSpec, with_values
from bench.run.workload import workload_spec
from bench.show.groups import show_groups
from bench.show.plots import plot_demo
from bench.show.simulated import CAPACITY_LIMITS_S
from bench.show.tables import capacity_table, comparison_table, milliseconds, print_table, rate_text
from deploy.local_cluster import ClusterSpec
from protos.runtime.kernels import compiling_beside

POLICIES = ("round_robin", "least_requests", "min_total_latency")
PROFILES = ("a30/llama-2-7b", "l40s/llama-2-7b", "a100/llama-2-7b")
"""The live nodes, one of each: more or faster ones bring more tokens a second than two cores carry."""
SEARCHED = "least_requests"
"""The policy whose limit is the measure of the load: round robin's is that of the slowest GPU, three times over."""
SEARCH_RATES = tuple(12.0 + step for step in range(9))
"""Requests per second at which its limit is looked for."""
LIMIT_S = 3.0
"""P99 TTFT at which a policy counts as at its limit: the stricter of the two used for Block."""
LOAD = 1.1
"""The live runs offer this multiple of that limit."""

REPEATS = 6
"""Simulations of each live run."""

LARGER = 4
"""How many times the live nodes the simulated fleet has."""
FLEET_LOADS = (0.6, 0.8, 1.0, 1.2)
"""Rates of the simulated fleet, as multiples of the live load per node."""
SHOWN_LOAD = 1.0
"""The one at which the table by group is printed."""


class DemoSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How much to do."""

    requests: int
    """Conversations per live run."""
    time_scale: float
    """How much faster than their profile the emulated nodes run; all times are told in the profile's own seconds."""
    fleet_requests: int
    seed: int
    folder: Path


def run_demo(out: Console, progress: Console, spec: DemoSpec) -> None:
    """Raises DatasetError, ClusterError, GatewayError, OSError."""
    with compiling_beside("warm_node"):
        _run(out, progress, spec)


def _run(out: Console, progress: Console, spec: DemoSpec) -> None:
    head = header(msgspec.to_builtins(spec, enc_hook=str), seed=spec.seed)
    out.rule("1. real conversations", align="left")
    base = with_values(
        RunSpec(), {"fleet": _fleet_text(1), "dataset": "sharegpt", "requests": spec.requests, "seed": spec.seed}
    )
    source = _source(out, progress, base)
    out.rule("2. a load at which placement matters", align="left")
    rate = _find_load(out, progress, base)
    expected = _expect(progress, base, rate)
    out.rule(f"3. live: {base.size} nodes and a gateway, each a process, gRPC between them", align="left")
    live = _live(progress, out, source, base, rate, spec)
    _report_live(out, live, expected, spec)
    out.rule(f"4. simulated: {LARGER * base.size} nodes, the same router code", align="left")
    fleet = _fleet(progress, out, msgspec.structs.replace(base, requests=spec.fleet_requests), rate)
    picture = spec.folder / "demo.png"
    plot_demo(
        picture,
        [one.run for one in live],
        fleet,
        title="The same requests, placed differently",
        caption=f"{', '.join(PROFILES)}; ShareGPT conversations, lengths known to the router. Live at "
        f"{spec.time_scale:g} times the profiles' speed, times in their own seconds. {head.machine['cores']} cores, "
        f"{head.machine['cpu']}.",
    )
    for one in live:
        write_run(spec.folder / "demo", head, one.run, one.results)
    out.print(f"picture: [bold]{picture}[/]; one line per live request: {spec.folder / 'demo'}/", highlight=False)


def _source(out: Console, progress: Console, base: RunSpec) -> WorkloadSource:
    with progress.status("reading ShareGPT") as status:
        source = load_source(workload_spec(base), progress=lambda what, share: status.update(f"{what} {share:4.0%}"))
    source.keep_fitting(base.longest_tokens)
    for note in source.notes:
        out.print(note, highlight=False)
    return source


def _find_load(out: Console, progress: Console, base: RunSpec) -> float:
    tasks = [
        Task(group="demo", variant=SEARCHED, spec=with_values(base, {"policy": SEARCHED, "rate": rate}))
        for rate in SEARCH_RATES
    ]
    found = run_all(tasks, console=progress, title=f"{SEARCHED} at rising rates")
    limit = capacities([line.run for line in found.lines], [LIMIT_S])[0].rate_per_s or SEARCH_RATES[0]
    rate = round(LOAD * limit, 1)
    out.print(f"the nodes: {base.fleet_text}", highlight=False)
    out.print(
        f"simulated, {SEARCHED} reaches a P99 TTFT of {LIMIT_S:g} s there at {limit:.1f} requests/s; the live runs "
        f"offer a tenth more: [bold]{rate:g} requests/s[/]",
        highlight=False,
    )
    return rate


def _expect(progress: Console, base: RunSpec, rate: float) -> list[list[Run]]:
    """The live runs, simulated beforehand with the very same requests, `REPEATS` times each: a router's seed decides
    ties and draws, so the simulations of one policy differ in these alone."""
    tasks = [
        Task(
            group="demo",
            variant=policy,
            spec=with_values(base, {"policy": policy, "rate": rate, "router.seed": base.seed + repeat}),
        )
        for policy in POLICIES
        for repeat in range(REPEATS)
    ]
    runs = [line.run for line in run_all(tasks, console=progress, title="what is run live next").lines]
    return [runs[index : index + REPEATS] for index in range(0, len(runs), REPEATS)]


def _live(
    progress: Console, out: Console, source: WorkloadSource, base: RunSpec, rate: float, spec: DemoSpec
) -> list[LiveRun]:
    cluster_spec = ClusterSpec(
        nodes=base.size,
        gateway_port=0,
        first_node_port=0,
        predictor={"time_scale": spec.time_scale},
        per_node=base.node_options(),
    )

    def plan(rate: float | None, seed: int) -> ReplayPlan:
        items = source.workload(rate_per_s=rate, seed=seed)
        return ReplayPlan(items=items, run_id=run_id(), seed=seed, time_scale=spec.time_scale)

    with local_cluster(progress, cluster_spec) as cluster:
        source.keep_fitting(context_tokens(look_up(cluster.address)))
        jobs = jobs_of(plan, policies=POLICIES, rates=[rate], seeds=[spec.seed], router=base.router_text)
        live = with_groups(replay_jobs(cluster.address, jobs, console=progress), base)
        for warning in lateness_warnings(cluster):
            out.print(f"[yellow]warning:[/] {warning}", highlight=False)
    return live


def _report_live(out: Console, live: Sequence[LiveRun], expected: Sequence[Sequence[Run]], spec: DemoSpec) -> None:
    runs = [one.run for one in live]
    print_table(out, comparison_table(runs, title="measured at the client"))
    print_table(out, comparison_table([own[0] for own in expected], title="the same requests, simulated beforehand"))
    show_groups(out, runs)
    out.print(
        f"A P99 of {runs[0].summary.requests:,} requests hangs on {max(1, runs[0].summary.requests // 100)} of them. "
        f"P99 TTFT live, and lowest to highest of {REPEATS} simulations that differ in ties alone:",
        highlight=False,
    )
    width = max(len(run.policy) for run in runs)
    for run, own in zip(runs, expected, strict=True):
        out.print(f"  {run.policy:<{width}}  {_p99(run)} s live, {_range(own)} s simulated", highlight=False)
    for run in runs:
        summary = run.summary
        late = milliseconds(summary.lateness_s.p99 / spec.time_scale) if summary.lateness_s else "–"
        way = milliseconds(summary.delivery_s.p50 / spec.time_scale) if summary.delivery_s else "–"
        out.print(
            f"{run.policy}: {summary.completed:,} of {summary.requests:,} answered, offered "
            f"{rate_text(summary.offered_rate_per_s)}/s, achieved {rate_text(summary.achieved_rate_per_s)}/s, "
            f"sent late by {late} ms at P99, to and from the gateway {way} ms at P50 (clock)",
            highlight=False,
        )
        for complaint in complaints(summary, time_scale=spec.time_scale):
            out.print(f"[yellow]warning:[/] {run.policy}: {complaint}", highlight=False)


def _p99(run: Run) -> str:
    return "–" if run.summary.ttft_s is None else f"{run.summary.ttft_s.p99:.2f}"


def _range(runs: Sequence[Run]) -> str:
    p99s = [run.summary.ttft_s.p99 for run in runs if run.summary.ttft_s is not None]
    return f"{min(p99s):.2f} to {max(p99s):.2f}" if p99s else "–"


def _fleet(progress: Console, out: Console, base: RunSpec, rate: float) -> list[Run]:
    base = with_values(base, {"fleet": _fleet_text(LARGER)})
    rates = {load: float(round(rate * LARGER * load)) for load in FLEET_LOADS}
    tasks = [
        Task(group="demo", variant=policy, spec=with_values(base, {"policy": policy, "rate": own}))
        for own in rates.values()
        for policy in POLICIES
    ]
    runs = [line.run for line in run_all(tasks, console=progress, title="simulated").lines]
    print_table(
        out,
        comparison_table(runs, title=f"{base.size} nodes, {base.requests:,} conversations a run, at rising rates"),
    )
    print_table(out, capacity_table(capacities(runs, CAPACITY_LIMITS_S)))
    show_groups(out, [run for run in runs if run.rate_per_s == rates[SHOWN_LOAD]])
    return runs


def _fleet_text(times: int) -> str:
    return ",".join(f"{times}*{profile}" for profile in PROFILES)

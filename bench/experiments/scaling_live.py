"""A load step on real processes and in simulation, side by side: when is it answered, and with how many nodes.

    python -m bench.experiments.scaling_live --output results/scaling-live

Starts what `astrolabe up --scaler` starts on this machine, offers it the steps, and reads its scaler's recording. Then
the same requests are simulated, with starts that take what they took here.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console

from bench.client.open_loop import ReplayPlan
from bench.client.session import GatewayError
from bench.commands.run_errors import run_errors
from bench.run.live import Job, complaints, look_up, replay_jobs, run_id
from bench.run.provenance import commit, machine
from bench.run.scaling import group_plans
from bench.run.scaling_record import recorded_scaling, recorded_starts
from bench.run.simulated import Done, Task, line_of, run_task
from bench.run.spec import RunSpec, check_spec, with_values
from bench.run.workload import requests_of
from bench.show.plots_scaling import plot_courses
from bench.workload.item import WorkloadItem
from bench.workload.rate_profile import parse_steps
from deploy.fleet import NodeGroup
from deploy.local_cluster import ClusterError, ClusterSpec, LocalCluster
from deploy.scaled_cluster import scaling_groups, write_gateway_file
from gateway.core.scale.scaler import ScaleDecision

GROUP = "scaling-live"
FIRST_NODE_S = 120.0
LOOK_S = 0.2


class StepAnswered(msgspec.Struct, frozen=True, kw_only=True):
    """How a rise of the load was answered."""

    mode: str
    at_s: float
    """When the load rose."""
    tick_s: float
    """The first tick after that, from the rise on."""
    decided_s: float | None
    """The first decision for more nodes, from the rise on."""
    nodes_peak: int
    nodes_mean: float
    missed_share: float
    failed: int
    """Requests without their whole answer."""


@click.command()
@click.option("--rule", default="forecast", show_default=True, metavar="NAME")
@click.option("--steps", default="2x60,10x120,2x120", show_default=True, metavar="RxS,...", help="The load.")
@click.option("--max", "most", default=6, show_default=True, type=click.IntRange(min=1), help="Most nodes.")
@click.option("--tick", "tick_s", default=5.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds.")
@click.option("--seed", default=0, show_default=True, type=int)
@click.option("--output", default="results/scaling-live", show_default=True, metavar="DIR")
def main(rule: str, steps: str, most: int, tick_s: float, seed: int, output: str) -> None:
    """Offer the steps to a real cluster of this machine, simulate the same, and draw both in one picture."""
    console, folder = Console(stderr=True), Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    with run_errors():
        spec = with_values(
            RunSpec(),
            {
                "scaler": rule,
                "rate_steps": steps,
                "requests": round(sum(step.rate_per_s * step.duration_s for step in parse_steps(steps))),
                "arrivals": "poisson",
                "policy": "min_total_latency",
                "max_nodes": str(most),
                "tick_s": tick_s,
                "seed": seed,
            },
        )
        check_spec(spec)
        items = requests_of(spec)
        live, starts_s = _live(spec, items, folder, console)
        spec = with_values(spec, {"cold_start": _spread(starts_s)})
        simulated = run_task(Task(group=GROUP, variant="simulated", spec=spec), commit=commit(), keep_results=True)
    lines = [simulated.line, live.line]
    rise_s = _rise_s(steps)
    found = [_step(done, rise_s) for done in (simulated, live)]
    (folder / "lines.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, lines)) + b"\n")
    (folder / "steps.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    title = f"{rule}: {steps.replace(',', ', ')} requests/s, simulated and on real processes"
    plot_courses(folder / "courses.png", lines, title=title, caption=f"starts took {_spread(starts_s)} s (P50/P90)")
    for step in found:
        _say(step)
    click.echo(f"starts took {', '.join(f'{start_s:.1f}' for start_s in starts_s)} s")
    click.echo(f"{folder / 'courses.png'}, {folder / 'steps.json'}")


def _live(spec: RunSpec, items: Sequence[WorkloadItem], folder: Path, console: Console) -> tuple[Done, list[float]]:
    """The run on real processes, and what starts took. Raises GatewayError."""
    with tempfile.TemporaryDirectory(prefix="astrolabe-") as scratch:
        place = Path(scratch)
        path, record = place / "gateway.toml", folder / "record.jsonl"
        _write_gateway(path, spec, place)
        gateway = {"config": path, "record": record, "policy": spec.policy, "tokenizer": "bytes"}
        cluster = LocalCluster(ClusterSpec(nodes=0, gateway_port=0, first_node_port=0, gateway=gateway), place)
        try:
            cluster.start()
            _wait_for_a_node(cluster)
            # The rule's code is ready by then, and the fleet is at rest.
            time.sleep(2 * spec.tick_s)
            began_s, started_at = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
            plan = ReplayPlan(items=items, run_id=run_id(), lengths=spec.lengths, seed=spec.seed)
            (done,) = replay_jobs(cluster.address, [Job(policy="", plan=plan, label="live")], console=console)
        except ClusterError as error:
            raise GatewayError(error.summary) from None
        finally:
            cluster.stop()
    for complaint in complaints(done.run.summary):
        console.print(f"[yellow]warning:[/] {complaint}", highlight=False)
    ended_s = max(row.arrival_s + (row.e2e_s or 0.0) for row in done.results)
    first_s = min(row.arrival_s for row in done.results)
    scalers = Path(f"{record}.scaling")
    scaling = recorded_scaling(scalers, first_arrival_s=first_s, ended_s=ended_s)
    starts_s = recorded_starts(record, scalers)
    line = line_of(
        Task(group=GROUP, variant="live", spec=spec),
        "live",
        done.results,
        done.run.summary,
        {},
        scaling=scaling,
        commit=commit(),
        machine=machine(),
        started_at=started_at,
        began_s=began_s,
        cpu_s=0.0,
    )
    return Done(line=line, results=done.results, scaling=scaling), starts_s


def _write_gateway(path: Path, spec: RunSpec, place: Path) -> None:
    (plan,) = group_plans(spec)
    engine = spec.engine(plan.group)
    group = NodeGroup(count=plan.group.count, profile=spec.profile, name=plan.group.name)
    limits = {
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "max_model_len_tokens": engine.max_model_len_tokens,
        "num_blocks": engine.num_blocks,
    }
    groups = scaling_groups([group], least=plan.least, most=plan.group.count, defaults=limits)
    objective = {"ttft_s": spec.slo_ttft_s, "tpot_s": spec.slo_tpot_s, "share": spec.slo_share}
    write_gateway_file(
        path,
        groups,
        scaling={"rule": spec.scaler, "tick_s": spec.tick_s, "objective": objective},
        connector="local",
        options={"folder": str(place / "nodes"), "options": {"tokenizer": "bytes"}},
    )


def _wait_for_a_node(cluster: LocalCluster) -> None:
    """Raises GatewayError, ClusterError."""
    until_s = time.monotonic() + FIRST_NODE_S
    while True:
        cluster.check()
        try:
            look_up(cluster.address)
            return
        except GatewayError:
            if time.monotonic() > until_s:
                raise
        time.sleep(LOOK_S)


def _spread(starts_s: Sequence[float]) -> str:
    """As `cold_start` says it."""
    known = sorted(starts_s)
    half, most = known[len(known) // 2], known[-1]
    return f"{half:.1f}/{max(most, half + 0.1):.1f}"


def _rise_s(steps: str) -> float:
    """When the rate first rises."""
    at_s = 0.0
    for step, after in itertools.pairwise(parse_steps(steps)):
        at_s += step.duration_s
        if after.rate_per_s > step.rate_per_s:
            return at_s
    return 0.0


def _step(done: Done, rise_s: float) -> StepAnswered:
    line, scaling = done.line, done.scaling
    assert scaling is not None
    rises = [decision.now_s for decision in scaling.decisions if decision.now_s >= rise_s and _is_more(decision)]
    ticks = [at_s for at_s in scaling.timeline.at_s if at_s >= rise_s]
    return StepAnswered(
        mode=line.mode,
        at_s=rise_s,
        tick_s=ticks[0] - rise_s,
        decided_s=rises[0] - rise_s if rises else None,
        nodes_peak=scaling.peak_nodes,
        nodes_mean=line.measures["nodes_mean"],
        missed_share=line.measures["slo_missed_share"],
        failed=line.summary.requests - line.summary.completed,
    )


def _is_more(decision: ScaleDecision) -> bool:
    return sum(decision.wanted.values()) > sum(decision.had.values())


def _say(step: StepAnswered) -> None:
    decided = "nothing decided" if step.decided_s is None else f"more nodes wanted after {step.decided_s:.1f} s"
    click.echo(
        f"{step.mode}: load rises at {step.at_s:.0f} s, first tick {step.tick_s:.1f} s later, {decided}; "
        f"{step.nodes_mean:.2f} nodes in the mean, {step.nodes_peak} at most; {100 * step.missed_share:.1f} % beyond "
        f"the objective, {step.failed} without a whole answer"
    )


if __name__ == "__main__":
    main()

"""An experiment on real processes: a gateway and emulated engines on this machine, one cluster per set of limits."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from bench.client.open_loop import ReplayPlan
from bench.experiments.catalogue import ExperimentError
from bench.experiments.schema import Experiment, Live
from bench.micro.process_cost import CostMeter
from bench.run.live import Job, complaints, lateness_warnings, local_cluster, replay_jobs, run_id
from bench.run.provenance import commit, machine
from bench.run.simulated import RunLine, Task, line_of
from bench.run.spec import RunSpec, check_spec, router_config, with_values
from bench.run.workload import requests_of
from deploy.local_cluster import ClusterError, ClusterSpec, LocalCluster
from gateway.policy_files import is_policy_file, policy_name


def run_live(experiment: Experiment, seeds: Sequence[int], console: Console) -> list[RunLine]:
    """All of its runs, one after the other. Raises ExperimentError, SpecError, GatewayError, DatasetError."""
    if experiment.live is None:
        raise ExperimentError(f"{experiment.name} has no [live] part; run it without --live")
    live = experiment.live
    lines: list[RunLine] = []
    tasks = _tasks(experiment, live, seeds)
    for _, group in itertools.groupby(tasks, key=lambda task: (task.spec.node_options(), _router(task.spec))):
        own = list(group)
        try:
            with local_cluster(console, _cluster(own, live)) as cluster:
                lines += [_replay(cluster, task, live, console) for task in own]
                for warning in lateness_warnings(cluster):
                    console.print(f"[yellow]warning:[/] {warning}", highlight=False)
        except ClusterError as error:
            raise ExperimentError(error.summary) from None
    return lines


def _tasks(experiment: Experiment, live: Live, seeds: Sequence[int]) -> list[Task]:
    base = with_values(with_values(RunSpec(), experiment.base), live.values)
    names = live.variants or [variant.name for variant in experiment.variants]
    tasks = []
    for name in names:
        for values in itertools.product(*live.axes.values()):
            for seed in seeds:
                point = dict(zip(live.axes, values, strict=True))
                spec = with_values(base, {**point, **experiment.variant(name).values, "seed": seed})
                spec = with_values(spec, {"sample": min(spec.sample, spec.size)})
                check_spec(spec)
                tasks.append(Task(group=experiment.name, variant=name, spec=spec))
    return tasks


def _router(spec: RunSpec) -> dict[str, Any]:
    """The gateway's options: asking and holding as the simulation of this run does, not as a gateway by itself."""
    config = router_config(spec, policy_name(spec.policy_path))
    return {"sample": config.sample, "ask": config.ask, "hold": config.hold.when, "hold_order": config.hold.order}


def _cluster(tasks: Sequence[Task], live: Live) -> ClusterSpec:
    spec = tasks[0].spec
    files = {task.spec.policy_path for task in tasks if is_policy_file(task.spec.policy)}
    return ClusterSpec(
        nodes=spec.size,
        gateway_port=0,
        first_node_port=0,
        predictor={"time_scale": live.time_scale},
        per_node=spec.node_options(),
        gateway={**_router(spec), "policy_file": sorted(files)},
    )


def _replay(cluster: LocalCluster, task: Task, live: Live, console: Console) -> RunLine:
    spec = task.spec
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    began_s, own_cpu_s = time.perf_counter(), time.process_time()
    plan = ReplayPlan(
        items=requests_of(spec), run_id=run_id(), lengths=spec.lengths, seed=spec.seed, time_scale=live.time_scale
    )
    nodes = CostMeter([node.pid for node in cluster.nodes])
    gateway = CostMeter([cluster.gateway.pid])
    label = f"{task.variant} {spec.rate_per_s or 0:g}/s"
    job = Job(policy=policy_name(spec.policy_path), plan=plan, rate_per_s=spec.rate_per_s, label=label)
    (done,) = replay_jobs(cluster.address, [job], console=console)
    of_nodes, of_gateway = nodes.read(), gateway.read()
    for complaint in complaints(done.run.summary, time_scale=live.time_scale):
        console.print(f"[yellow]warning:[/] {label}: {complaint}", highlight=False)
    cost = {
        "predictor_cpu_share": of_nodes.cpu_share,
        "predictor_rss_mib": of_nodes.rss_mib,
        "predictor_rss_max_mib": of_nodes.rss_max_mib,
        "gateway_cpu_share": of_gateway.cpu_share,
        "gateway_rss_mib": of_gateway.rss_mib,
    }
    return line_of(
        task,
        "live",
        done.results,
        done.run.summary,
        cost,
        commit=commit(),
        machine=machine(),
        started_at=started_at,
        began_s=began_s,
        cpu_s=time.process_time() - own_cpu_s,
    )

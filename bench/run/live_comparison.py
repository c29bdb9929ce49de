"""The same requests under several policies against a live gateway, the cluster around it started here if need be."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from bench.client.open_loop import ReplayPlan
from bench.measure.results import RequestResult, Run
from bench.run.live import Job, replay_jobs
from deploy.local_cluster import ClusterError, ClusterSpec, LocalCluster

START_S = 120.0
"""What nodes get to start; the first start on a machine compiles their kernels."""
LATE_EVENT = "emulated engine is behind its schedule"
"""What an emulated engine logs when it wakes up late."""


class LiveRun(msgspec.Struct, frozen=True, kw_only=True):
    """One replay with what it was."""

    run: Run
    results: list[RequestResult]


def compare_live(
    console: Console,
    address: str,
    make_plan: Callable[[float | None, int], ReplayPlan],
    *,
    policies: Sequence[str],
    rates: Sequence[float | None],
    seeds: Sequence[int],
) -> list[LiveRun]:
    """Every policy at every rate and seed, one after the other. Raises GatewayError."""
    wanted = [(policy, rate, seed) for rate in rates for seed in seeds for policy in policies]
    jobs = [Job(policy=p, plan=make_plan(rate, seed), label=_label(p, rate, rates)) for p, rate, seed in wanted]
    finished = replay_jobs(address, jobs, console=console)
    return [
        LiveRun(run=Run(policy=p, rate_per_s=rate, seed=seed, summary=done.summary), results=done.results)
        for (p, rate, seed), done in zip(wanted, finished, strict=True)
    ]


def _label(policy: str, rate: float | None, rates: Sequence[float | None]) -> str:
    return policy if rate is None or len(rates) == 1 else f"{policy} {rate:g}/s"


@contextlib.contextmanager
def local_cluster(console: Console, spec: ClusterSpec) -> Iterator[LocalCluster]:
    """A cluster of processes that ends with the block. Says what it does. Raises ClusterError."""
    with tempfile.TemporaryDirectory(prefix="astrolabe-") as folder:
        cluster = LocalCluster(spec, Path(folder))
        with console.status(f"starting {spec.nodes} nodes and a gateway, each a process of its own"):
            cluster.start(timeout_s=START_S)
        try:
            console.print(f"{spec.nodes} emulated nodes and a gateway are up at {cluster.address}", highlight=False)
            yield cluster
        finally:
            killed = cluster.stop()
            if killed:
                console.print(f"[yellow]warning:[/] had to kill {', '.join(killed)}", highlight=False)


def lateness_warnings(cluster: LocalCluster) -> list[str]:
    """Emulated engines that fell behind their schedule: their step times were not the profile's then."""
    found: list[str] = []
    for node in cluster.nodes:
        late = [line.late_s for line in _lateness_lines(node.log_path)]
        if late:
            found.append(
                f"the engine of {node.name} fell behind its schedule, by up to {max(late) * 1e3:.0f} ms (clock)"
            )
    return found


class _LatenessLine(msgspec.Struct):
    event: str = ""
    late_s: float = 0.0


def _lateness_lines(log_path: Path) -> Iterator[_LatenessLine]:
    with log_path.open("rb") as lines:
        for text in lines:
            try:
                line = msgspec.json.decode(text, type=_LatenessLine)
            except msgspec.DecodeError:
                continue
            if line.event == LATE_EVENT:
                yield line


__all__ = ["ClusterError", "ClusterSpec", "LiveRun", "compare_live", "lateness_warnings", "local_cluster"]

"""Runs policies against a live gateway, one after the other, and says what a reader must know of the numbers.

The cluster around the gateway is started here if need be.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.client.open_loop import Progress as Counts
from bench.client.open_loop import ReplayPlan
from bench.client.session import GatewayError, ReplaySession, connected
from bench.measure.results import RequestResult, Run, Summary
from bench.run.simulated import by_group
from bench.run.spec import RunSpec
from deploy.local_cluster import ClusterError, ClusterSpec, LocalCluster
from protos.runtime.kernels import KernelError, kernels_compiled
from protos.v1 import astrolabe_dispatch_pb2 as pb

T = TypeVar("T")

START_S = 120.0
"""What nodes get to start, on a busy machine."""
LATE_EVENT = "emulated engine is behind its schedule"
"""What an emulated engine logs when it wakes up late."""
LEAST_ACHIEVED = 0.98
"""Share of the offered rate below which a run says that it was not kept."""
LEAST_DELIVERY = 0.2
LEAST_DELIVERY_S = 0.05
"""Share of the mean TTFT, and seconds of the clock, spent between client and gateway from which a run says so."""
LATE_S = 0.1
"""Lateness at P99 (wall clock) from which a run says so."""
_TICK_S = 0.25
_PLAIN_LINE_S = 10.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One replay to do."""

    policy: str
    """Empty: the one in force."""
    plan: ReplayPlan
    rate_per_s: float | None = None
    """As asked for; None when the data set's own arrivals are used."""
    label: str = ""
    router: str = ""
    """Which router decides, for people."""


class LiveRun(msgspec.Struct, frozen=True, kw_only=True):
    """One replay that is done."""

    run: Run
    results: list[RequestResult]


def run_id() -> str:
    """A new prefix for request ids."""
    return f"replay-{secrets.token_hex(4)}"


def look_up(address: str) -> pb.NodeList:
    """The gateway's nodes, at least one of them up. Raises GatewayError."""

    async def ask() -> pb.NodeList:
        async with connected(address) as session:
            return await session.usable_nodes()

    return run_async(ask())


def context_tokens(nodes: pb.NodeList, model: str = "") -> int:
    """Prompt plus answer that every node of the model can take, in tokens. Raises GatewayError if none serves it."""
    limits = [
        min(node.config.max_model_len_tokens, node.config.num_blocks * node.config.block_size_tokens)
        for node in nodes.nodes
        if node.HasField("config") and model in ("", node.config.model)
    ]
    if not limits:
        known = ", ".join(sorted({node.config.model for node in nodes.nodes if node.HasField("config")})) or "none"
        raise GatewayError(f"no node serves the model {model!r}: the gateway's models are {known}")
    return min(limits)


def jobs_of(
    make_plan: Callable[[float | None, int], ReplayPlan],
    *,
    policies: Sequence[str],
    rates: Sequence[float | None],
    seeds: Sequence[int],
    router: str,
) -> list[Job]:
    """Every policy at every rate and seed, policies fastest. `make_plan` gets rate and seed."""
    return [
        Job(
            policy=policy,
            plan=make_plan(rate, seed),
            rate_per_s=rate,
            label=policy if rate is None or len(rates) == 1 else f"{policy} {rate:g}/s",
            router=router,
        )
        for rate in rates
        for seed in seeds
        for policy in policies
    ]


def replay_jobs(address: str, jobs: Sequence[Job], *, console: Console) -> list[LiveRun]:
    """All jobs, in turn, against the gateway at `address`. Raises GatewayError."""

    async def all_of_them() -> list[LiveRun]:
        async with connected(address) as session:
            await _warn_if_busy(session, console)
            done: list[LiveRun] = []
            for job in jobs:
                counts = Counts()
                async with shown(console, job.label or job.policy or "replay", len(job.plan.items), counts):
                    finished = await session.run(job.plan, policy=job.policy, progress=counts)
                run = Run(
                    policy=job.policy,
                    rate_per_s=job.rate_per_s,
                    seed=job.plan.seed,
                    summary=finished.summary,
                    router=job.router,
                )
                done.append(LiveRun(run=run, results=finished.results))
            return done

    return run_async(all_of_them())


def with_groups(done: Sequence[LiveRun], spec: RunSpec) -> list[LiveRun]:
    """The same runs with what became of them at each group of the fleet that they ran on."""
    found = []
    for one in done:
        groups, price = by_group(spec, one.results, one.run.summary)
        run = msgspec.structs.replace(one.run, groups=groups, price=price)
        found.append(msgspec.structs.replace(one, run=run))
    return found


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Runs on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def complaints(summary: Summary, *, time_scale: float = 1.0) -> list[str]:
    """What a reader must know before believing a live run's numbers; empty when all is well."""
    found: list[str] = []
    offered, achieved, lateness = summary.offered_rate_per_s, summary.achieved_rate_per_s, summary.lateness_s
    if offered and achieved and achieved < LEAST_ACHIEVED * offered:
        found.append(
            f"the offered rate was not kept: {achieved:.2f} of {offered:.2f} requests/s; "
            "the client or the machine is too slow for it"
        )
    if lateness is not None and lateness.p99 > LATE_S * time_scale:
        found.append(
            f"requests left up to {lateness.max:.2f} s late (P99 {lateness.p99:.2f} s): all times include that"
        )
    delivery, ttft = summary.delivery_s, summary.ttft_s
    if (
        delivery is not None
        and ttft is not None
        and delivery.mean > max(LEAST_DELIVERY * ttft.mean, LEAST_DELIVERY_S * time_scale)
    ):
        found.append(
            f"{delivery.mean:.2f} s of the mean TTFT of {ttft.mean:.2f} s passed between client and gateway (P99 "
            f"{delivery.p99:.2f} s): this machine is too busy for the load, so TTFT and E2E say less of the placement"
        )
    if summary.completed < summary.requests:
        others = ", ".join(f"{n} {name}" for name, n in summary.outcomes.items() if name not in ("stop", "length"))
        found.append(
            f"{summary.requests - summary.completed} of {summary.requests} requests did not complete: {others}"
        )
    return found


async def _warn_if_busy(session: ReplaySession, console: Console) -> None:
    listed = await session.usable_nodes()
    busy = sum(node.load.running + node.load.waiting for node in listed.nodes)
    if busy:
        console.print(f"[yellow]warning:[/] the nodes are at work on {busy} other requests: the numbers include those")


@contextlib.asynccontextmanager
async def shown(console: Console, label: str, total: int, counts: Counts) -> AsyncIterator[None]:
    """Shows counts while the body runs: a bar on a terminal, a line every ten seconds elsewhere."""
    bar = Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=2,
        disable=not console.is_terminal,
    )
    task = bar.add_task(label, total=total, detail="")

    def detail() -> str:
        failed = f", {counts.failed} failed" if counts.failed else ""
        return f"{counts.sent} sent, {counts.tokens:,} tokens{failed}"

    async def tick() -> None:
        said_s = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            bar.update(task, completed=counts.ended, detail=detail())
            if not console.is_terminal and time.monotonic() - said_s > _PLAIN_LINE_S:
                said_s = time.monotonic()
                console.print(f"{label}: {counts.ended}/{total} answers, {detail()}")

    with bar:
        ticker = asyncio.create_task(tick())
        try:
            yield
        finally:
            ticker.cancel()
            bar.update(task, completed=counts.ended, detail=detail())
    if not console.is_terminal:
        console.print(f"{label}: {counts.ended}/{total} answers, {detail()}")


@contextlib.contextmanager
def local_cluster(console: Console, spec: ClusterSpec) -> Iterator[LocalCluster]:
    """A cluster of processes that ends with the block. Says what it does. Raises ClusterError."""
    with tempfile.TemporaryDirectory(prefix="astrolabe-") as folder:
        cluster = LocalCluster(spec, Path(folder))
        with console.status("compiling the simulator's kernels"):
            try:
                # Nodes would serve without; but it is not that which is to be measured.
                run_async(kernels_compiled("warm_node"))
            except KernelError as bad:
                raise ClusterError(str(bad)) from None
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

"""Forecasts against what happened, on real vLLM servers with emulated devices, and the same run simulated.

    python -m bench.vllm_checks.forecast_error --python .venv-vllm/bin/python

Starts the servers, a daemon beside each and a gateway; sends ShareGPT requests at shares of the cluster's capacity;
asks the gateway afterwards what was forecast for each request at its dispatch and what came of it. Lengths are known,
or believed as the shipped length model believes them of each prompt's text (`predicted`), or not told at all (`none`).
Capacity is what the simulated cluster completes per second when all requests wait from the start. Policies that place
without forecasts have none to compare; the JSON file has every request's.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from bench.client.open_loop import ReplayPlan
from bench.client.session import connected
from bench.data.datasets import DatasetSpec
from bench.data.source import WorkloadSource, WorkloadSpec, load_source
from bench.measure.forecast_errors import ForecastOutcome, errors_of
from bench.measure.results import forecast_pair, spread
from bench.run.spec import RunSpec
from bench.simcluster import SimCluster
from bench.vllm_checks.server import Server, emulated_server
from bench.workload.item import LENGTH_KNOWLEDGE, LengthKnowledge, WorkloadItem
from deploy.local_cluster import ClusterSpec, LocalCluster
from engine_adapters.vllm.address import address_for_url
from engine_adapters.vllm.probe import TraceProbe
from gateway.core.router import RouterConfig
from length_model.core.query import make_query
from length_model.models import load_model
from length_model.tagging import tags
from protos.v1 import astrolabe_dispatch_pb2 as pb
from simcore.cost.shipped import load_shipped
from simcore.cost.step_time import StepTimeModel
from simcore.trace import TraceDelta

POLICIES = ("llumnix_freeness", "min_new_request_latency", "min_total_latency")
"""The best of those without forecasts, and two that place by them."""


class ErrorRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run to make."""

    policy: str
    load: float
    """Share of the capacity."""
    rate_per_s: float
    items: Sequence[WorkloadItem]
    lengths: LengthKnowledge = "known"


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """One request: forecasts at its dispatch, and what happened."""

    request_id: str
    ttft: ForecastOutcome
    e2e: ForecastOutcome


class PolicyErrors(msgspec.Struct, frozen=True, kw_only=True):
    """One run in numbers; errors are shares of what happened."""

    world: str
    policy: str
    lengths: LengthKnowledge
    load: float
    rate_per_s: float
    requests: int
    forecasts: int
    mean_ttft_s: float
    p99_ttft_s: float
    mean_e2e_s: float
    ttft_error_p50: float | None = None
    ttft_error_p90: float | None = None
    ttft_gap_s: float | None = None
    """Median of actual - forecast, in seconds of the clock."""
    e2e_error_p50: float | None = None
    e2e_error_p90: float | None = None
    e2e_bias: float | None = None
    """Median of (forecast - actual) / actual."""
    e2e_under_p90: float | None = None
    """Share of actuals at or below the p90 forecast."""
    step_ratio: float | None = None
    """Time that the engines' steps took, over what the profile says of their batches: above 1 the machine is too busy
    to emulate on."""
    placements: Sequence[Placement] = ()
    """Request by request."""


def row_of(
    world: str, job: ErrorRun, times: Sequence[tuple[float, float]], placements: Sequence[Placement]
) -> PolicyErrors:
    """`times` are (TTFT, E2E) of all requests."""
    ttft, e2e = spread(t for t, _ in times), spread(e for _, e in times)
    assert ttft is not None, "some requests were answered"
    assert e2e is not None
    found: dict[str, Any] = {}
    for name in ("ttft", "e2e"):
        of: list[ForecastOutcome] = [getattr(p, name) for p in placements]
        if (errors := errors_of(of)) is not None:
            found[f"{name}_error_p50"], found[f"{name}_error_p90"] = errors.error_p50, errors.error_p90
            if name == "ttft":
                found["ttft_gap_s"] = errors.gap_s
            else:
                found["e2e_bias"], found["e2e_under_p90"] = errors.bias, errors.under_p90
    return PolicyErrors(
        world=world,
        policy=job.policy,
        lengths=job.lengths,
        load=job.load,
        rate_per_s=job.rate_per_s,
        requests=len(times),
        forecasts=len(placements),
        mean_ttft_s=ttft.mean,
        p99_ttft_s=ttft.p99,
        mean_e2e_s=e2e.mean,
        placements=placements,
        **found,
    )


def simulated(base: RunSpec, job: ErrorRun, *, sync: bool = False) -> PolicyErrors:
    """The same requests on the simulated cluster, whose engines plan ahead as the live ones do unless `sync`."""
    specs = [
        msgspec.structs.replace(s, config=msgspec.structs.replace(s.config, async_scheduling=not sync))
        for s in base.node_specs()
    ]
    results = SimCluster(specs, RouterConfig(policy=job.policy, seed=0), lengths=job.lengths).run(job.items).results
    placements = [
        Placement(request_id=r.request_id, ttft=pair[0], e2e=pair[1])
        for r in results
        if (pair := forecast_pair(r)) is not None
    ]
    times = [(r.ttft_s, r.e2e_s) for r in results if r.ttft_s is not None and r.e2e_s is not None]
    return row_of("simulated", job, times, placements)


def capacity(base: RunSpec, items: Sequence[WorkloadItem]) -> float:
    """Requests per second of the simulated cluster when all are there at once."""
    at_once = [msgspec.structs.replace(item, arrival_s=0.0) for item in items]
    found = SimCluster(base.node_specs(), RouterConfig(policy="min_total_unprocessed_tokens", seed=0)).run(at_once)
    return found.summary().throughput_requests_per_s


class Steps:
    """Adds up the steps of one engine: as they were, and as the profile has them."""

    def __init__(self, server: Server, step_time: StepTimeModel) -> None:
        self.taken_s = self.modelled_s = 0.0
        self._probe = TraceProbe(address_for_url(server.url, {}), exclusive=False)
        self._step_time = step_time

    async def follow(self) -> None:
        async for item in self._probe.watch():
            if isinstance(item, TraceDelta) and item.batch.total_tokens:
                self.taken_s += item.duration_s
                self.modelled_s += self._step_time.seconds(item.batch)


async def live(
    address: str, servers: Sequence[Server], step_time: StepTimeModel, plan: ReplayPlan, job: ErrorRun
) -> PolicyErrors:
    """The same requests on the live cluster."""
    run_id = plan.run_id
    steps = [Steps(server, step_time) for server in servers]
    following = [asyncio.create_task(s.follow()) for s in steps]
    async with connected(address) as session:
        done = await session.run(plan, policy=job.policy)
        for task in following:
            task.cancel()
        placements: list[Placement] = []
        times: list[tuple[float, float]] = []
        for result in done.results:
            if result.ttft_s is None or result.e2e_s is None:
                click.echo(f"  {result.request_id}: {result.outcome.value} {result.detail}", err=True)
                continue
            times.append((result.ttft_s, result.e2e_s))
            request = pb.ExplainRequest(request_id=f"{run_id}-{result.request_id}")
            explained = await session._stub.Explain(request, timeout=10.0)
            decision, actual = explained.decisions[-1], explained.actual
            scored = next(
                (s for s in decision.scores if s.node_id == decision.node_id and s.HasField("forecast")), None
            )
            if scored is not None:
                forecast, began = scored.forecast, decision.decision_s
                placements.append(
                    Placement(
                        request_id=result.request_id,
                        ttft=ForecastOutcome(forecast.ttft_s.p50, forecast.ttft_s.p90, actual.ttft_s - began),
                        e2e=ForecastOutcome(forecast.e2e_s.p50, forecast.e2e_s.p90, actual.e2e_s - began),
                    )
                )
    row = row_of("live vLLM", job, times, placements)
    return msgspec.structs.replace(row, step_ratio=sum(s.taken_s for s in steps) / sum(s.modelled_s for s in steps))


def servers_of(
    python: str, base: RunSpec, folder: Path, *, extra: Sequence[str], noise: float, time_scale: float
) -> list[Server]:
    options = {
        "profile": base.profile,
        "tokenizer": "bytes",
        "max_num_seqs": base.max_num_seqs,
        "max_num_batched_tokens": base.max_num_batched_tokens,
        "num_blocks": base.engine(base.groups[0]).num_blocks,
        "max_model_len": base.max_model_len_tokens,
        "noise": noise,
        "time_scale": time_scale,
    }
    return [emulated_server(python, folder, *extra, **options) for _ in range(base.nodes)]


def table(rows: Sequence[PolicyErrors]) -> str:
    """Markdown."""
    lines = [
        "| world | policy | lengths | load | TTFT mean / P99 s | E2E mean s | TTFT error P50 / P90 | TTFT gap ms "
        "| E2E error P50 / P90 | bias | under p90 | step ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    for r in rows:
        cells = [
            r.world,
            r.policy,
            r.lengths,
            f"{100 * r.load:.0f} % ({r.rate_per_s:.2f}/s)",
            f"{r.mean_ttft_s:.2f} / {r.p99_ttft_s:.2f}",
            f"{r.mean_e2e_s:.2f}",
            f"{share(r.ttft_error_p50)} / {share(r.ttft_error_p90)}",
            "-" if r.ttft_gap_s is None else f"{1e3 * r.ttft_gap_s:.0f}",
            f"{share(r.e2e_error_p50)} / {share(r.e2e_error_p90)}",
            share(r.e2e_bias),
            share(r.e2e_under_p90),
            "-" if r.step_ratio is None else f"{r.step_ratio:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--python", default=lambda: os.environ.get("ASTROLABE_VLLM_PYTHON", ".venv-vllm/bin/python"))
@click.option("--nodes", default=3, show_default=True)
@click.option("--requests", default=300, show_default=True)
@click.option("--load", "loads", multiple=True, type=float, default=(0.5, 0.8, 0.95), show_default=True)
@click.option("--policy", "policies", multiple=True, default=POLICIES, show_default=True)
@click.option(
    "--lengths", "knowledge", multiple=True, type=click.Choice(LENGTH_KNOWLEDGE), default=("known",), show_default=True
)
@click.option("--engine", type=click.Choice(["vllm", "openai_metrics"]), default="vllm", help="What daemons know by.")
@click.option("--noise", default=0.0, show_default=True, help="Spread of the device's steps.")
@click.option("--time-scale", default=1.0, show_default=True, help="Below 1: slower devices, for a busy machine.")
@click.option("--sync", is_flag=True, help="Servers without asynchronous scheduling.")
@click.option("--only-simulate", is_flag=True)
@click.option("--output", type=click.Path(path_type=Path), default=None, help="JSON file.")
def main(
    python: str,
    nodes: int,
    requests: int,
    loads: Sequence[float],
    policies: Sequence[str],
    knowledge: Sequence[LengthKnowledge],
    engine: str,
    noise: float,
    time_scale: float,
    sync: bool,
    only_simulate: bool,
    output: Path | None,
) -> None:
    """Print the table of forecast errors, live beside simulated."""
    base = RunSpec(nodes=nodes)
    source = load_source(WorkloadSpec(dataset=DatasetSpec(name="sharegpt"), requests=requests))
    source.keep_fitting(2048)
    limit = capacity(base, with_ids_only(source, 1.0, requests))
    click.echo(f"capacity of {nodes} simulated nodes: {limit:.2f} requests/s", err=True)
    rows: list[PolicyErrors] = []
    jobs = [
        ErrorRun(policy=p, load=load, rate_per_s=load * limit, lengths=lengths, items=items)
        for lengths in knowledge
        for p in policies
        for load in loads
        for items in [with_ids_only(source, load * limit, requests, predicted=lengths == "predicted")]
    ]
    for job in jobs:
        rows.append(simulated(base, job, sync=sync))
        click.echo(table(rows[-1:]).splitlines()[-1], err=True)
    if not only_simulate:
        extra = ["--no-async-scheduling"] if sync else []
        options: dict[str, Any] = {"extra": extra, "noise": noise, "time_scale": time_scale}
        rows += live_rows(python, base, jobs, engine=engine, **options)
    click.echo(table(rows))
    if output is not None:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2))


def with_ids_only(source: WorkloadSource, rate: float, requests: int, *, predicted: bool = False) -> list[WorkloadItem]:
    """Prompts as made-up token ids of the right number: the emulated servers have no vocabulary for texts. With
    `predicted` each has what the shipped length model believes of its text."""
    items = source.workload(rate_per_s=rate, seed=0)[:requests]
    if not predicted:
        return [msgspec.structs.replace(item, prompt="") for item in items]
    believed = tags(load_model("hashed"), [make_query(item.prompt) for item in items], "median", belief=True)
    return [msgspec.structs.replace(item, prompt="", **tag) for item, tag in zip(items, believed, strict=True)]


def live_rows(
    python: str,
    base: RunSpec,
    jobs: Sequence[ErrorRun],
    *,
    engine: str = "vllm",
    noise: float = 0.0,
    extra: Sequence[str] = (),
    time_scale: float = 1.0,
) -> list[PolicyErrors]:
    """Starts servers, daemons and a gateway, and runs each job."""
    folder = Path(tempfile.mkdtemp(prefix="astrolabe-forecasts-"))
    click.echo(f"logs: {folder}", err=True)
    rows: list[PolicyErrors] = []
    servers = servers_of(python, base, folder, extra=extra, noise=noise, time_scale=time_scale)
    step_time = load_shipped(base.profile).scaled(1.0 / time_scale)
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_ready()
        per_node = tuple({"engine_url": server.url} for server in servers)
        known = {"engine": engine, "tokenizer": "bytes", "profile": base.profile, "time_scale": time_scale}
        if engine != "vllm":
            # Nobody tells the daemon what it needs to know.
            known |= {
                "max_num_seqs": base.max_num_seqs,
                "max_num_batched_tokens": base.max_num_batched_tokens,
                "max_model_len_tokens": base.max_model_len_tokens,
            }
        spec = ClusterSpec(
            nodes=base.nodes,
            gateway_port=0,
            first_node_port=0,
            predictor=known,
            per_node=per_node,
            # Made-up ids say nothing to a length model: who is told nothing believes the prior.
            gateway={"tokenizer": "bytes", "lengths": "none"},
        )
        for job in jobs:
            # New daemons each time, as the simulation has them: what one load has taught them is not true of the next.
            with LocalCluster(spec, folder) as cluster:
                plan = ReplayPlan(
                    items=job.items,
                    run_id=f"{job.policy}-{job.lengths}-{job.load:g}",
                    lengths=job.lengths,
                    time_scale=time_scale,
                    timeout_s=900.0,
                )
                rows.append(asyncio.run(live(cluster.address, servers, step_time, plan, job)))
            click.echo(table(rows[-1:]).splitlines()[-1], err=True)
            click.echo(json.dumps({"load_average": os.getloadavg()}), err=True)
    finally:
        for server in servers:
            server.stop()
    return rows


if __name__ == "__main__":
    main()

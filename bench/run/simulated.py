"""Carries out one `RunSpec` in a simulated cluster and says what came of it. What worker processes of a sweep call."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec
import numpy as np

from bench.measure.groups import fleet_price, group_measures, summarise_groups
from bench.measure.measures import GoodputSlo, good_answers, is_good, measure
from bench.measure.results import SCHEMA_VERSION, FleetPrice, GroupSummary, RequestResult, Run, Summary, summarise
from bench.measure.scaling import ScalingCourse, ScalingResult, course_of, scaling_measures
from bench.run.asked_moves import move_events
from bench.run.scaling import scaled_fleet
from bench.run.spec import RunSpec, delays_of, noise_of, router_config
from bench.run.workload import requests_of
from bench.simcluster import SimCluster
from bench.simcluster.cluster import MovesResult
from bench.workload.item import WorkloadItem, belief_of
from gateway.policy_files import policy_name

MAX_OUTPUT_TOKENS = 2048
"""Limit on the answer that simulated requests carry, if none of the workload is longer. It is not the true length: who
knows nothing of the length must not learn it from the limit."""
COURSE_POINTS = 200
"""Moments of a run at which the state of the nodes is kept."""


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """The engines over the run, at every n-th arrival."""

    request: list[int] = []
    """How many requests had arrived."""
    free_blocks_mean: list[float] = []
    """Over the nodes."""
    free_blocks_variance: list[float] = []
    preemptions: list[int] = []
    """Of all nodes so far."""


class RunLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run in one line: what it was, what it gave, where and by which code."""

    schema_version: int
    key: str
    group: str
    """Experiment or sweep, and which of its grids."""
    variant: str
    """Name of the line in tables and figures."""
    mode: Literal["simulated", "live"]
    spec: RunSpec
    measures: dict[str, float]
    summary: Summary
    course: Course = Course()
    groups: tuple[GroupSummary, ...] = ()
    price: FleetPrice | None = None
    scaling: ScalingCourse | None = None
    """Of a run with a scaler."""
    commit: str
    machine: dict[str, str | int]
    started_at: str
    wall_s: float
    cpu_s: float

    @property
    def run(self) -> Run:
        """As a comparison lines it up."""
        spec = self.spec
        return Run(
            policy=self.variant,
            rate_per_s=spec.rate_per_s,
            seed=spec.seed,
            summary=self.summary,
            router=spec.router_text,
            groups=self.groups,
            price=self.price,
        )


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is wanted, and under which name."""

    group: str
    variant: str
    spec: RunSpec
    items: Sequence[WorkloadItem] | None = None
    """Requests that no spec can say; None: those of the spec."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A line and, if they were asked for, the requests behind it."""

    line: RunLine
    results: list[RequestResult] = []
    scaling: ScalingResult | None = None
    """Of a run with a scaler, if results were asked for: whole, with its decisions."""


def run_task(
    task: Task, *, commit: str = "", machine: dict[str, str | int] | None = None, keep_results: bool = False
) -> Done:
    """Simulates it. Raises DatasetError, PolicyError, ValueError."""
    spec = task.spec
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    began_s, cpu_s = time.perf_counter(), time.process_time()
    policy = policy_name(spec.policy_path)
    items = requests_of(spec) if task.items is None else task.items
    belief_of(items[0], spec.lengths)
    scaled = scaled_fleet(spec, items)
    observer = _Observer(len(items))
    cluster = SimCluster(
        [] if scaled is not None else spec.node_specs(),
        router_config(spec, policy),
        delays_of(spec),
        lengths=spec.lengths,
        trusting=spec.as_published,
        correcting=spec.correcting,
        noise=noise_of(spec),
        max_output_tokens=max(MAX_OUTPUT_TOKENS, *(item.output_tokens for item in items)),
        came=observer.came,
        tells_priorities=not spec.priority_blind,
        scaled=scaled,
    )
    observer.cluster = cluster
    found = cluster.run(items, move_events(spec, items), at_once=spec.concurrency)
    results = [result for result in found.results if result.arrival_s >= spec.warm_up_s]
    if not results:
        raise ValueError(
            f"{task.group}, {task.variant}: no request comes after a warm-up of {spec.warm_up_s:g} s: "
            "make the run longer"
        )
    summary = summarise(results, preemptions=None if spec.warm_up_s else found.preemptions)
    cpu_s = time.process_time() - cpu_s
    line = line_of(
        task,
        "simulated",
        results,
        summary,
        {
            **observer.free_blocks(),
            "forecasts": float(found.forecasts),
            "cpu_s": cpu_s,
            **_of_moves(found.moves, results),
        },
        course=observer.course,
        kv_shares=observer.kv_shares(),
        scaling=found.scaling,
        commit=commit,
        machine=machine or {},
        started_at=started_at,
        began_s=began_s,
        cpu_s=cpu_s,
    )
    if not keep_results:
        return Done(line=line)
    return Done(line=line, results=results, scaling=found.scaling)


def line_of(
    task: Task,
    mode: Literal["simulated", "live"],
    results: Sequence[RequestResult],
    summary: Summary,
    more: dict[str, float],
    *,
    course: Course = Course(),  # noqa: B008
    kv_shares: Mapping[str, float] | None = None,
    scaling: ScalingResult | None = None,
    commit: str,
    machine: dict[str, str | int],
    started_at: str,
    began_s: float,
    cpu_s: float,
) -> RunLine:
    """The line of a run that is done: measures are what its requests give and `more`.

    `kv_shares`: by node, the mean share of its KV blocks in use. `began_s`: when it began, on `time.perf_counter`.
    """
    spec = task.spec
    slo = slo_of(spec)
    measures = measure(results, summary, slo)
    groups, price = by_group(spec, results, summary, kv_shares, scaling)
    measures |= group_measures(results, spec.group_facts, price)
    if scaling is not None:
        measures |= scaling_measures(scaling)
    return RunLine(
        schema_version=SCHEMA_VERSION,
        key=spec.key,
        group=task.group,
        variant=task.variant,
        mode=mode,
        spec=spec,
        measures=measures | more,
        summary=summary,
        course=course,
        groups=groups,
        price=price,
        scaling=None if scaling is None else course_of(scaling, results, lambda row: is_good(row, slo)),
        commit=commit,
        machine=machine,
        started_at=started_at,
        wall_s=time.perf_counter() - began_s,
        cpu_s=cpu_s,
    )


def _of_moves(moves: MovesResult | None, results: Sequence[RequestResult]) -> dict[str, float]:
    if moves is None:
        return {}
    found = {f"moves_{key}": float(value) for key, value in msgspec.structs.asdict(moves).items()}
    gaps_s = [result.downtime_s for result in results if result.downtime_s is not None]
    if gaps_s:
        found["moves_downtime_mean_s"] = float(np.mean(gaps_s))
        found["moves_downtime_p99_s"] = float(np.percentile(gaps_s, 99))
    return found


def slo_of(spec: RunSpec) -> GoodputSlo:
    """What a good answer of the run keeps."""
    return GoodputSlo(ttft_s=spec.slo_ttft_s, tpot_s=spec.slo_tpot_s, e2e_s=spec.slo_e2e_s)


def by_group(
    spec: RunSpec,
    results: Sequence[RequestResult],
    summary: Summary,
    kv_shares: Mapping[str, float] | None = None,
    scaling: ScalingResult | None = None,
) -> tuple[tuple[GroupSummary, ...], FleetPrice | None]:
    """The groups of the run's fleet and its price; nothing for equal nodes. Of a scaled one the price is what the nodes
    cost that there were."""
    groups = spec.group_facts
    if not groups:
        return (), None
    fleet = spec.node_fleet
    price = fleet_price(
        summary,
        good=good_answers(results, slo_of(spec)),
        per_hour=fleet.price_per_hour if scaling is None else scaling.cost / max(scaling.hours, 1e-9),
        currency=fleet.currency,
        note=fleet.note,
    )
    return summarise_groups(results, groups, kv_shares), price


class _Observer:
    """Looks at the nodes' state at every n-th arrival."""

    cluster: SimCluster

    def __init__(self, requests: int) -> None:
        self.course = Course()
        self._free: dict[str, list[float]] = {}
        """By node, the share of its blocks that was free at each look while it was there."""
        self._every = max(1, requests // COURSE_POINTS)
        self._arrived = 0

    def came(self) -> None:
        self._arrived += 1
        if self._arrived % self._every == 0:
            self._look()

    def _look(self) -> None:
        cluster = self.cluster
        free = np.array(cluster.free_blocks(), dtype=np.float64)
        for spec, blocks in zip(cluster.specs(), free.tolist(), strict=True):
            self._free.setdefault(spec.node_id, []).append(blocks / spec.config.num_blocks)
        self.course.request.append(self._arrived)
        self.course.free_blocks_mean.append(float(free.mean()) if free.size else 0.0)
        self.course.free_blocks_variance.append(float(free.var()) if free.size else 0.0)
        self.course.preemptions.append(cluster.preemptions)

    def kv_shares(self) -> dict[str, float]:
        """By node, the mean share of its KV blocks in use."""
        return {node_id: 1.0 - float(np.mean(shares)) for node_id, shares in self._free.items()}

    def free_blocks(self) -> dict[str, float]:
        course = self.course
        if not course.request:
            return {}
        return {
            "free_blocks_mean": float(np.mean(course.free_blocks_mean)),
            "free_blocks_variance": float(np.mean(course.free_blocks_variance)),
        }

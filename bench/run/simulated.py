"""Carries out one `RunSpec` in a simulated cluster and says what came of it. What worker processes of a sweep call."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import numpy as np

from bench.measure.groups import fleet_price, group_measures, summarise_groups
from bench.measure.measures import GoodputSlo, good_answers, measure
from bench.measure.results import SCHEMA_VERSION, FleetPrice, GroupSummary, RequestResult, Run, Summary, summarise
from bench.run.spec import RunSpec, delays_of, noise_of, router_config
from bench.run.workload import requests_of
from bench.simcluster import SimCluster
from bench.workload.item import WorkloadItem, belief_of
from gateway.core import events as ev
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
    nodes = spec.node_specs()
    observer = _Observer(len(items), [node.config.num_blocks for node in nodes])
    cluster = SimCluster(
        nodes,
        router_config(spec, policy),
        delays_of(spec),
        lengths=spec.lengths,
        correcting=spec.correcting,
        noise=noise_of(spec),
        max_output_tokens=max(MAX_OUTPUT_TOKENS, *(item.output_tokens for item in items)),
        observe=observer,
    )
    observer.cluster = cluster
    found = cluster.run(items, at_once=spec.concurrency)
    results = [result for result in found.results if result.arrival_s >= spec.warm_up_s]
    if not results:
        raise ValueError(f"no request comes after a warm-up of {spec.warm_up_s:g} s: make the run longer")
    summary = summarise(results, preemptions=None if spec.warm_up_s else found.preemptions)
    cpu_s = time.process_time() - cpu_s
    line = line_of(
        task,
        "simulated",
        results,
        summary,
        {**observer.free_blocks(), "forecasts": float(found.forecasts), "cpu_s": cpu_s},
        course=observer.course,
        kv_shares=dict(zip((node.node_id for node in nodes), observer.kv_shares(), strict=True)),
        commit=commit,
        machine=machine or {},
        started_at=started_at,
        began_s=began_s,
        cpu_s=cpu_s,
    )
    return Done(line=line, results=results if keep_results else [])


def line_of(
    task: Task,
    mode: Literal["simulated", "live"],
    results: Sequence[RequestResult],
    summary: Summary,
    more: dict[str, float],
    *,
    course: Course = Course(),  # noqa: B008
    kv_shares: Mapping[str, float] | None = None,
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
    measures = measure(results, summary, slo_of(spec))
    groups, price = by_group(spec, results, summary, kv_shares)
    measures |= group_measures(results, spec.group_facts, price)
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
        commit=commit,
        machine=machine,
        started_at=started_at,
        wall_s=time.perf_counter() - began_s,
        cpu_s=cpu_s,
    )


def slo_of(spec: RunSpec) -> GoodputSlo:
    """What a good answer of the run keeps."""
    return GoodputSlo(ttft_s=spec.slo_ttft_s, tpot_s=spec.slo_tpot_s)


def by_group(
    spec: RunSpec, results: Sequence[RequestResult], summary: Summary, kv_shares: Mapping[str, float] | None = None
) -> tuple[tuple[GroupSummary, ...], FleetPrice | None]:
    """The groups of the run's fleet and its price; nothing for equal nodes."""
    groups = spec.group_facts
    if not groups:
        return (), None
    fleet = spec.node_fleet
    price = fleet_price(
        summary,
        good=good_answers(results, slo_of(spec)),
        per_hour=fleet.price_per_hour,
        currency=fleet.currency,
        note=fleet.note,
    )
    return summarise_groups(results, groups, kv_shares), price


class _Observer:
    """Looks over the router's shoulder: the nodes' state at every n-th arrival."""

    cluster: SimCluster

    def __init__(self, requests: int, blocks: Sequence[int]) -> None:
        """`blocks`: the KV blocks of each node."""
        self.course = Course()
        self._blocks = np.array(blocks, dtype=np.float64)
        self._free = np.zeros(len(blocks))
        """Of each node, summed over the looks."""
        self._every = max(1, requests // COURSE_POINTS)
        self._arrived = 0

    def __call__(self, at_s: float, event: ev.AnyEvent, actions: Sequence[Any]) -> None:
        if type(event) is not ev.Arrived:
            return
        self._arrived += 1
        if self._arrived % self._every == 0:
            self._look()

    def _look(self) -> None:
        free = np.array(self.cluster.free_blocks(), dtype=np.float64)
        self._free += free
        self.course.request.append(self._arrived)
        self.course.free_blocks_mean.append(float(free.mean()))
        self.course.free_blocks_variance.append(float(free.var()))
        self.course.preemptions.append(self.cluster.preemptions)

    def kv_shares(self) -> list[float]:
        """Of each node, the mean share of its KV blocks in use."""
        looks = max(1, len(self.course.request))
        shares: list[float] = (1.0 - self._free / looks / self._blocks).tolist()
        return shares

    def free_blocks(self) -> dict[str, float]:
        course = self.course
        if not course.request:
            return {}
        return {
            "free_blocks_mean": float(np.mean(course.free_blocks_mean)),
            "free_blocks_variance": float(np.mean(course.free_blocks_variance)),
        }

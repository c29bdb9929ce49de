"""Metrics of the gateway process for Prometheus. With several workers each writes to files that all pages are made of.

`prometheus_client` decides at import whether it runs in several processes (PROMETHEUS_MULTIPROC_DIR), so this module is
imported by the process that serves and by nobody before it. `deploy/metrics.md` describes every series.
"""

from __future__ import annotations

import os
import time
from collections import Counter as CountOf
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import GaugeMetricFamily, Metric

from gateway.core.nodes.node import NodeStatus
from gateway.core.queue.late_binding import QueueStatus
from gateway.core.request.explanation import MoveTold
from gateway.intake.client_stream import ClientStream
from gateway.intake.lengths import kind_of
from protos.runtime.own_process import STARTED_S, own_series, resident_bytes

if TYPE_CHECKING:
    from gateway.scale.status import ScaleStatus

# Moments of creation double the page and no alert asks for them.
disable_created_metrics()  # type: ignore[no-untyped-call]

GaugeMode = Literal["livemostrecent", "livemax"]
MAX_NODE_SERIES = 500
"""Nodes with series of their own; a fleet with more has those of the first 500, and `astrolabe_nodes` counts all."""

_LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_TOKEN_BUCKETS_S = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4, 1)
_GAP_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_DECISION_BUCKETS_S = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)


class Metrics:
    """The counters of one process and the page of all of them. Labels are from closed lists or the configuration."""

    def __init__(
        self,
        nodes: Callable[[], Iterable[NodeStatus]] = tuple,
        clock: Callable[[], float] = float,
        certificates: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        """`nodes`: all nodes now, with ages on `clock`. A node that has left has no series on the next page.
        `certificates`: those in use, and when they end (`certificate_ends`)."""
        # A registry of its own, so that a process may hold more than one gateway.
        self._registry = registry = CollectorRegistry()
        self._nodes_now = NodeSeries(nodes, clock)
        self._own = OwnSeries(certificates)
        registry.register(self._nodes_now)
        registry.register(self._own)
        self._process = ProcessSeries(registry)
        self._requests = Counter(
            "astrolabe_requests", "Requests that have ended, by outcome.", ("outcome",), registry=registry
        )
        self._lanes = Counter(
            "astrolabe_lane_requests",
            "Requests that have ended, by how they went to their engines.",
            ("lane", "outcome"),
            registry=registry,
        )
        self._counted = Counter(
            "astrolabe_prompts_counted",
            "Ended requests by who counted the prompt's tokens.",
            ("by",),
            registry=registry,
        )
        self._refused = Counter(
            "astrolabe_denials", "Calls turned away before they became requests.", ("reason",), registry=registry
        )
        self._prompt = Counter("astrolabe_prompt_tokens", "Prompt tokens of ended requests.", registry=registry)
        self._output = Counter("astrolabe_output_tokens", "Output tokens of ended requests.", registry=registry)
        self._retries = Counter(
            "astrolabe_retries", "Placements after the first, before any token had come.", registry=registry
        )
        self._resumes = Counter(
            "astrolabe_resumes", "Answers that went on at another node in their middle.", registry=registry
        )
        self._beliefs = Counter(
            "astrolabe_length_beliefs", "Ended requests by who said how long.", ("source",), registry=registry
        )
        self._ttft = Histogram(
            "astrolabe_ttft_seconds", "Arrival to first token.", registry=registry, buckets=_LATENCY_BUCKETS_S
        )
        self._tpot = Histogram(
            "astrolabe_tpot_seconds",
            "Mean time per output token after the first, of complete answers.",
            registry=registry,
            buckets=_TOKEN_BUCKETS_S,
        )
        self._e2e = Histogram(
            "astrolabe_e2e_seconds", "Arrival to the end.", registry=registry, buckets=_LATENCY_BUCKETS_S
        )
        self._decision = Histogram(
            "astrolabe_decision_seconds", "Arrival to placement.", registry=registry, buckets=_DECISION_BUCKETS_S
        )
        self._running = Gauge(
            "astrolabe_requests_running", "Requests under way.", registry=registry, multiprocess_mode="livesum"
        )
        self._held = Gauge(
            "astrolabe_requests_held",
            "Requests in the queue that no node can take yet.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._held_tokens = Gauge(
            "astrolabe_held_tokens",
            "Their tokens, prompts and expected answers.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._shed = Counter(
            "astrolabe_requests_shed", "Requests turned away because that queue was full.", registry=registry
        )
        self._shed_seen = 0
        self._moves = Counter(
            "astrolabe_moves", "Moves between nodes that are over.", ("cause", "outcome"), registry=registry
        )
        self._stages = Counter(
            "astrolabe_move_stages", "Times that nodes computed for moves, as those ended.", registry=registry
        )
        self._stage_tokens = Counter(
            "astrolabe_move_stage_tokens", "Tokens whose KV they computed for that, at most.", registry=registry
        )
        self._gap = Histogram(
            "astrolabe_move_gap_seconds",
            "What clients waited between the last token of one node and the first of the next.",
            registry=registry,
            buckets=_GAP_BUCKETS_S,
        )
        self._moving = Gauge(
            "astrolabe_moves_under_way", "Moves under way.", registry=registry, multiprocess_mode="livesum"
        )
        self._ended: CountOf[tuple[str, str, str, str]] = CountOf()
        """Requests by outcome, lane, who counted the prompt and who said how long, which no series has yet: a request
        pays for one sum instead of four series."""
        self._prompt_tokens = self._output_tokens = 0
        """Theirs."""
        self._scaling: ScalingSeries | None = None
        self._nodes = Gauge(
            "astrolabe_nodes", "Nodes by status.", ("status",), registry=registry, multiprocess_mode="livemax"
        )

    def follow_scaling(self, scaling: Scaling) -> None:
        """Of this scaler there are series from now on."""
        self._scaling = ScalingSeries(scaling, self._registry)

    def finished(self, stream: ClientStream) -> None:
        """A request has ended."""
        outcome, shape = stream.outcome, stream.shape
        assert outcome is not None, "it has ended"
        counted_by = shape.prompt_counted_by or "tokenizer"
        self._ended[outcome.value, shape.lane, counted_by, kind_of(shape.belief_source)] += 1
        self._prompt_tokens += shape.prompt_tokens
        self._output_tokens += stream.output_tokens
        if stream.resumes:
            self._resumes.inc(stream.resumes)
        if stream.attempt - 1 > stream.resumes:
            self._retries.inc(stream.attempt - 1 - stream.resumes)
        first_s, end_s = stream.first_token_s, stream.finished_s
        if first_s is not None:
            self._ttft.observe(first_s - stream.arrived_s)
        if end_s is not None:
            self._e2e.observe(end_s - stream.arrived_s)
            if first_s is not None and stream.output_tokens > 1:
                self._tpot.observe((end_s - first_s) / (stream.output_tokens - 1))
        if stream.decision_s is not None:
            self._decision.observe(stream.decision_s)

    def denied(self, reason: str) -> None:
        """A call was turned away."""
        self._refused.labels(reason).inc()

    def observe(self, *, running: int, nodes: dict[str, int], holding: QueueStatus) -> None:
        """What is so now; called before a page is made. `nodes`: counts by status."""
        self._process.observe()
        self._add_ended()
        self._running.set(running)
        self._held.set(holding.held)
        self._held_tokens.set(holding.held_tokens)
        self._shed.inc(holding.shed_total - self._shed_seen)
        self._shed_seen = holding.shed_total
        for status, count in nodes.items():
            self._nodes.labels(status).set(count)
        if self._scaling is not None:
            self._scaling.observe()

    def _add_ended(self) -> None:
        for (outcome, lane, counted_by, believed_by), count in self._ended.items():
            self._requests.labels(outcome).inc(count)
            self._lanes.labels(lane, outcome).inc(count)
            self._counted.labels(counted_by).inc(count)
            self._beliefs.labels(believed_by).inc(count)
        self._prompt.inc(self._prompt_tokens)
        self._output.inc(self._output_tokens)
        self._ended.clear()
        self._prompt_tokens = self._output_tokens = 0

    def moved(self, moves: Iterable[MoveTold], *, under_way: int) -> None:
        """Moves that have ended since this was last told; called before a page is made."""
        self._moving.set(under_way)
        for told in moves:
            self._moves.labels(told.cause, told.outcome).inc()
            self._stages.inc(told.stages)
            self._stage_tokens.inc(told.stage_tokens)
            if told.gap_s is not None:
                self._gap.observe(told.gap_s)

    def page(self) -> tuple[str, bytes]:
        """Content type and text."""
        if self._scaling is not None:
            self._scaling.observe()
        if not _has_siblings():
            return CONTENT_TYPE_LATEST, generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        # Every worker hears the same of the nodes, so the one that is asked tells it.
        registry.register(self._nodes_now)
        registry.register(self._own)
        return CONTENT_TYPE_LATEST, generate_latest(registry)


class OwnSeries:
    """Version, clock and certificates, made when a page is."""

    def __init__(self, certificates: Callable[[], Mapping[str, float]]) -> None:
        self._certificates = certificates

    def collect(self) -> Iterable[Metric]:
        return own_series(self._certificates())


class ProcessSeries:
    """What the process costs, by the names that Prometheus's clients use; of several workers, all together."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, mode: Literal["livesum", "livemax"]) -> Gauge:
            return Gauge(name, text, registry=registry, multiprocess_mode=mode)

        self._memory = gauge("process_resident_memory_bytes", "Memory in RAM.", "livesum")
        # The latest of several workers: a change says that one has started anew.
        self._started = gauge("process_start_time_seconds", "Unix time of the start.", "livemax")
        self._workers = gauge("astrolabe_workers", "Processes that serve.", "livesum")
        self._cpu = Counter("process_cpu_seconds", "Processor time, user and system.", registry=registry)
        self._cpu_told_s = 0.0

    def observe(self) -> None:
        """What is so now; called before a page is made."""
        self._memory.set(resident_bytes())
        self._started.set(STARTED_S)
        self._workers.set(1)
        cpu_s = time.process_time()
        self._cpu.inc(cpu_s - self._cpu_told_s)
        self._cpu_told_s = cpu_s


class NodeSeries:
    """What nodes last said and how right their forecasts were, made when a page is."""

    def __init__(self, nodes: Callable[[], Iterable[NodeStatus]], clock: Callable[[], float]) -> None:
        self._nodes = nodes
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        gauges = {
            name: GaugeMetricFamily(f"astrolabe_node_{name}", text, labels=("node",))
            for name, text in (
                ("running", "Requests in the engine's batch, as the node last said."),
                ("waiting", "Requests queued there, reservations included."),
                ("free_blocks", "Free KV blocks."),
                ("total_blocks", "All KV blocks."),
                ("preemptions", "Preemptions since its engine started."),
                ("state_age_seconds", "Age of the engine state that the node last told."),
                ("forecast_bias", "Actual over forecast time, geometric mean; 1 is right."),
                ("forecast_spread", "Typical factor between that and one answer; 1 is exact."),
                ("forecast_coverage_p90", "Share of answers no later than the forecast's p90."),
                ("forecasts_used", "1: used as they are, 0.5: corrected, 0: the fallback places."),
                ("alarm", "1 when an operator should look at it; `astrolabe nodes` says why."),
            )
        }
        now_s = self._clock()
        for index, node in enumerate(self._nodes()):
            if index == MAX_NODE_SERIES:
                break
            for name, value in _values(node, now_s).items():
                gauges[name].add_metric((node.node_id,), value)
        return gauges.values()


class Scaling(Protocol):
    """What is told of a scaler (`gateway.scale.runtime.ScaleRuntime`)."""

    @property
    def status(self) -> ScaleStatus | None: ...
    @property
    def failures(self) -> Mapping[tuple[str, str], int]: ...
    @property
    def actions(self) -> Mapping[tuple[str, str], int]: ...
    @property
    def defects(self) -> int: ...


class ScalingSeries:
    """What a scaler wants, has and has done. Of several workers the one that leads tells what is wanted and there."""

    def __init__(self, scaling: Scaling, registry: CollectorRegistry) -> None:
        self._scaling = scaling
        self._told: CountOf[tuple[str, ...]] = CountOf()

        def gauge(name: str, text: str, *labels: str, mode: GaugeMode = "livemostrecent") -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode=mode)

        self._desired = gauge("astrolabe_desired_nodes", "Nodes wanted, within the bounds.", "group")
        self._least = gauge("astrolabe_scaling_min_nodes", "Fewest nodes allowed.", "group")
        self._most = gauge("astrolabe_scaling_max_nodes", "Most nodes allowed.", "group")
        self._nodes = gauge("astrolabe_scaling_nodes", "Nodes of a group, by state.", "group", "state")
        self._start = gauge("astrolabe_scaling_start_seconds", "What a start takes, as measured.", "group", "quantile")
        self._short = gauge("astrolabe_scaling_short", "1 while no fleet within the bounds keeps the objective.")
        self._leads = gauge("astrolabe_scaling_leads", "1 when this gateway decides for the fleet.", mode="livemax")
        self._actions = Counter("astrolabe_scaling_actions", "What was done.", ("group", "action"), registry=registry)
        self._failures = Counter(
            "astrolabe_scaling_connector_failures",
            "Calls of the connector that failed.",
            ("group", "call"),
            registry=registry,
        )
        self._defects = Counter("astrolabe_scaling_rule_failures", "Errors of the rule's own.", registry=registry)

    def observe(self) -> None:
        """What is so now; called before a page is made."""
        for counter, counts in ((self._actions, self._scaling.actions), (self._failures, self._scaling.failures)):
            for (what, name), count in counts.items():
                self._count(counter.labels(name, what), (str(counter), name, what), count)
        self._count(self._defects, ("defects",), self._scaling.defects)
        status = self._scaling.status
        if status is None:
            return
        self._leads.set(status.leads)
        if not status.leads and _has_siblings():
            return
        for series in (self._desired, self._least, self._most, self._nodes, self._start):
            series.clear()
        self._short.set(status.latest is not None and bool(status.latest.shortfall))
        for group in status.groups:
            self._desired.labels(group.name).set(group.wanted)
            self._least.labels(group.name).set(group.min)
            self._most.labels(group.name).set(group.max)
            for state in ("starting", "serving", "draining", "stopping"):
                self._nodes.labels(group.name, state).set(group.count(state))
            self._start.labels(group.name, "0.5").set(group.start_p50_s)
            self._start.labels(group.name, "0.9").set(group.start_p90_s)

    def _count(self, counter: Counter, key: tuple[str, ...], total: int) -> None:
        counter.inc(total - self._told[key])
        self._told[key] = total


def _has_siblings() -> bool:
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


_USE = {"used": 1.0, "corrected": 0.5, "demoted": 0.0, "silent": 0.0}


def _values(node: NodeStatus, now_s: float) -> dict[str, float]:
    values: dict[str, float] = {"alarm": float(bool(node.alarm)), "forecasts_used": _USE[node.forecasts.use]}
    load = node.load
    if load is not None:
        values.update(
            running=load.running,
            waiting=load.waiting,
            free_blocks=load.free_blocks,
            total_blocks=load.total_blocks,
            preemptions=load.preemptions_total,
            state_age_seconds=node.state_age_s(now_s) or 0.0,
        )
    if node.forecasts.samples:
        values.update(
            forecast_bias=node.forecasts.bias,
            forecast_spread=node.forecasts.spread,
            forecast_coverage_p90=node.forecasts.coverage_p90,
        )
    return values

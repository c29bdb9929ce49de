"""Metrics of the gateway process for Prometheus. With several workers each writes to files that all pages are made of.

`prometheus_client` decides at import whether it runs in several processes (PROMETHEUS_MULTIPROC_DIR), so this module is
imported by the process that serves and by nobody before it.
"""

from __future__ import annotations

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from gateway.client_stream import ClientStream

_LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_DECISION_BUCKETS_S = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)


class Metrics:
    """The counters of one process and the page of all of them. Labels are from closed lists or the configuration."""

    def __init__(self) -> None:
        # A registry of its own, so that a process may hold more than one gateway.
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "astrolabe_requests", "Requests that have ended, by outcome.", ("outcome",), registry=registry
        )
        self._refused = Counter(
            "astrolabe_denials", "Calls turned away before they became requests.", ("reason",), registry=registry
        )
        self._prompt = Counter("astrolabe_prompt_tokens", "Prompt tokens of ended requests.", registry=registry)
        self._output = Counter("astrolabe_output_tokens", "Output tokens of ended requests.", registry=registry)
        self._ttft = Histogram(
            "astrolabe_ttft_seconds", "Arrival to first token.", registry=registry, buckets=_LATENCY_BUCKETS_S
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
        self._nodes = Gauge(
            "astrolabe_nodes", "Nodes by status.", ("status",), registry=registry, multiprocess_mode="livemax"
        )

    def finished(self, stream: ClientStream, running: int) -> None:
        """A request has ended; `running` others are under way."""
        outcome = stream.outcome
        assert outcome is not None, "it has ended"
        self._requests.labels(outcome.value).inc()
        self._prompt.inc(stream.shape.prompt_tokens)
        self._output.inc(stream.output_tokens)
        if stream.first_token_s is not None:
            self._ttft.observe(stream.first_token_s - stream.arrived_s)
        if stream.finished_s is not None:
            self._e2e.observe(stream.finished_s - stream.arrived_s)
        if stream.decision_s is not None:
            self._decision.observe(stream.decision_s)
        self._running.set(running)

    def denied(self, reason: str) -> None:
        """A call was turned away."""
        self._refused.labels(reason).inc()

    def observe(self, *, running: int, nodes: dict[str, int]) -> None:
        """What is so now; called before a page is made. `nodes`: counts by status."""
        self._running.set(running)
        for status, count in nodes.items():
            self._nodes.labels(status).set(count)

    def page(self) -> tuple[str, bytes]:
        """Content type and text."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return CONTENT_TYPE_LATEST, generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return CONTENT_TYPE_LATEST, generate_latest(registry)

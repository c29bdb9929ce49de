"""Metrics of a predictor for Prometheus, on a port of their own. `deploy/metrics.md` describes every series."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http.server import HTTPServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from predictor.node import NodeRuntime
from protos.runtime.addresses import HostPort
from protos.runtime.config import ConfigError
from protos.runtime.own_process import STARTED_S, own_series, resident_bytes

ANSWER_S = 2.0
"""How long a page waits for the daemon; a hung daemon has no page."""

Families = list[Metric]


class MetricsServer:
    """The page and the thread that serves it."""

    def __init__(self, address: HostPort, read: Callable[[], Families]) -> None:
        """`read` is called on the event loop of the caller. Raises ConfigError when the port is taken."""
        registry = CollectorRegistry()
        registry.register(_OnLoop(read, asyncio.get_running_loop()))
        try:
            served: tuple[HTTPServer, threading.Thread] = start_http_server(
                address.port, address.host, registry=registry
            )
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {address} for metrics: {error.strerror or error}; stop the process that has the "
                "port or choose another one with --metrics-listen"
            ) from None
        self._server, self._thread = served
        self.address = address._replace(port=self._server.server_port)

    async def close(self) -> None:
        """Ends the page and waits for its thread."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)


class _OnLoop:
    """Reads on the daemon's event loop: its state belongs to that thread."""

    def __init__(self, read: Callable[[], Families], loop: asyncio.AbstractEventLoop) -> None:
        self._read = read
        self._loop = loop

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not wait for the loop that registers."""
        return ()

    def collect(self) -> Iterable[Metric]:
        async def read() -> Families:
            return self._read()

        return asyncio.run_coroutine_threadsafe(read(), self._loop).result(ANSWER_S)


def families(node: NodeRuntime, *, gateways: int, certificates: Mapping[str, float]) -> Families:
    """All series of one node, now. `certificates`: those in use, and when they end (`certificate_ends`)."""
    series: Families = [*own_series(certificates)]

    def gauge(name: str, text: str, value: float) -> None:
        series.append(GaugeMetricFamily(f"astrolabe_predictor_{name}", text, value=value))

    def counter(name: str, text: str, value: float) -> None:
        series.append(CounterMetricFamily(f"astrolabe_predictor_{name}", text, value=value))

    series.append(GaugeMetricFamily("process_resident_memory_bytes", "Memory in RAM.", value=resident_bytes()))
    series.append(GaugeMetricFamily("process_start_time_seconds", "Unix time of the start.", value=STARTED_S))
    series.append(CounterMetricFamily("process_cpu_seconds", "Processor time.", value=time.process_time()))
    info = GaugeMetricFamily("astrolabe_predictor_info", "1; the labels name the node.", labels=("node", "model"))
    info.add_metric((node.node_id, node.config.model), 1.0)
    series.append(info)
    load = node.load()
    gauge("synchronised", "1 while a trace is connected and no gap is open.", float(node.engine.synchronised))
    gauge("trusted", "1 while the daemon finds its own forecasts good enough.", float(node.predictor.trusted))
    gauge("state_age_seconds", "Age of the mirror's last step.", node.age_s())
    gauge("gateways", "Sessions of gateways.", gateways)
    counter("forecasts", "What-ifs answered.", node.predictor.forecasts_total)
    if load is not None:
        gauge("running", "Requests in the engine's batch.", load.running)
        gauge("waiting", "Queued in the engine, reservations included.", load.waiting)
        gauge("reserved", "Dispatched here, not yet in the trace.", load.reserved)
        gauge("free_blocks", "Free KV blocks.", load.free_blocks)
        gauge("total_blocks", "All KV blocks.", load.total_blocks)
        counter("steps", "Engine steps seen.", load.trace_seq)
        counter("preemptions", "Preemptions since the engine started.", load.preemptions_total)
    error = GaugeMetricFamily(
        "astrolabe_predictor_forecast_error_seconds",
        "Mean of forecast p50 less actual, over the last answers.",
        labels=("of",),
    )
    coverage = GaugeMetricFamily(
        "astrolabe_predictor_forecast_coverage_p90", "Share of actuals under the forecast's p90.", labels=("of",)
    )
    calibration = node.predictor.calibration
    for name, summary in (("ttft", calibration.ttft.corrected()), ("e2e", calibration.e2e.corrected())):
        if summary.samples:
            error.add_metric((name,), summary.bias_s)
            coverage.add_metric((name,), summary.coverage_p90)
    return [*series, error, coverage]

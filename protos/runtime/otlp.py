"""OpenTelemetry spans of one process, sent to a collector over OTLP/HTTP. Shell code; needs the extra `otel`.

Times are those of the monotonic clock, as everywhere; here they become the wall clock's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from protos.runtime.addresses import parse_url
from protos.runtime.channels import uses_proxy
from protos.runtime.config import ConfigError

EXPORT_S = 2.0
"""What a collector gets to take a batch, also when the process stops."""
_NS = 1_000_000_000

Span = Any
"""Of `opentelemetry.trace`: an optional package."""
Attribute = str | int | float
Kind = Literal["internal", "server", "client"]


def collector_url(text: str) -> str:
    """Where spans go: a URL with a path as it is, one without with the path of OTLP. Raises ValueError."""
    url = parse_url(text, default_port=4318)
    return url if urlsplit(url).path else f"{url}/v1/traces"


def trace_id_of(traceparent: str) -> str:
    """Of a W3C trace context, which must be well-formed; empty without one."""
    return traceparent[3:35]


class SpanSource:
    """Begins and ends spans; they leave in batches from a thread of the library's own."""

    def __init__(self, endpoint: str, *, service: str, instance: str) -> None:
        """`endpoint`: for example http://127.0.0.1:4318/v1/traces. Raises ConfigError without the packages."""
        try:
            import requests
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise ConfigError(
                "key 'otlp_endpoint': the OpenTelemetry packages are not installed; "
                "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or the extra `otel`"
            ) from None
        resource = Resource.create({"service.name": service, "service.instance.id": instance})
        self._provider = TracerProvider(resource=resource)
        session = requests.Session()
        # Else it would take the environment's proxy, also to a collector on this host.
        session.trust_env = uses_proxy()
        exporter = OTLPSpanExporter(endpoint=collector_url(endpoint), timeout=EXPORT_S, session=session)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("astrolabe")
        self._propagator = TraceContextTextMapPropagator()
        self._in_context = set_span_in_context
        self._kinds = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}
        self._error = StatusCode.ERROR

    def begin(self, name: str, parent: Span | str, kind: Kind = "internal", at_s: float | None = None) -> Span:
        """A span below another one, or below a `traceparent` (empty: a trace of its own), from now or `at_s` on."""
        if isinstance(parent, str):
            context = self._propagator.extract({"traceparent": parent}) if parent else None
        else:
            context = self._in_context(parent)
        start_ns = None if at_s is None else _unix_ns(at_s)
        return self._tracer.start_span(name, context=context, kind=self._kinds[kind], start_time=start_ns)

    def traceparent(self, span: Span) -> str:
        """What is handed on so that others' spans hang below this one."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._in_context(span))
        return carrier.get("traceparent", "")

    def event(self, span: Span, name: str, at_s: float | None) -> None:
        """Something that happened in it; None: it did not."""
        if at_s is not None:
            span.add_event(name, timestamp=_unix_ns(at_s))

    def end(
        self,
        span: Span,
        attributes: Mapping[str, Attribute],
        *,
        at_s: float | None = None,
        error: str | None = None,
    ) -> None:
        """Ends it now or `at_s`; `error`: that it went wrong, and how."""
        span.set_attributes(attributes)
        if error is not None:
            span.set_status(self._error, error)
        span.end(None if at_s is None else _unix_ns(at_s))

    def close(self) -> None:
        """Sends what is left; blocks for as long as the collector takes, at most its own timeout."""
        self._provider.shutdown()


def _unix_ns(at_s: float) -> int:
    return time.time_ns() - int((time.monotonic() - at_s) * _NS)

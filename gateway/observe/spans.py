"""One OpenTelemetry span per request, its trace handed on to the engine. Optional: needs the extra `otel`.

The span begins where the client's `traceparent` left off and its own goes to the engine, whose spans (vLLM with
`--otlp-traces-endpoint`) hang below it. No prompt and no answer is in it.
"""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from gateway.core.outcomes import COMPLETE
from gateway.intake.client_stream import ClientStream
from protos.runtime.addresses import parse_url
from protos.runtime.channels import uses_proxy
from protos.runtime.config import ConfigError

SERVICE_NAME = "astrolabe-gateway"
EXPORT_S = 2.0
"""What a collector gets to take a batch, also when the gateway stops."""
_NS = 1_000_000_000


def collector_url(text: str) -> str:
    """Where spans go: a URL with a path as it is, one without with the path of OTLP. Raises ValueError."""
    url = parse_url(text, default_port=4318)
    return url if urlsplit(url).path else f"{url}/v1/traces"


class Spans:
    """Begins and ends spans; they leave in batches from a thread of the library's own."""

    def __init__(self, endpoint: str, *, gateway_id: str) -> None:
        """`endpoint`: an OTLP/HTTP collector, for example http://127.0.0.1:4318/v1/traces. Raises ConfigError."""
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
        resource = Resource.create({"service.name": SERVICE_NAME, "service.instance.id": gateway_id})
        self._provider = TracerProvider(resource=resource)
        session = requests.Session()
        # Else it would take the environment's proxy, also to a collector on this host.
        session.trust_env = uses_proxy()
        exporter = OTLPSpanExporter(endpoint=collector_url(endpoint), timeout=EXPORT_S, session=session)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("astrolabe")
        self._propagator = TraceContextTextMapPropagator()
        self._in_context = set_span_in_context
        self._kind, self._error = SpanKind.SERVER, StatusCode.ERROR
        # Streams are timed on the monotonic clock, spans on the wall clock.
        self._wall_s = time.time() - time.monotonic()

    def begin(self, stream: ClientStream) -> None:
        """The request's span; the stream's trace context becomes that of the span."""
        context = self._propagator.extract({"traceparent": stream.traceparent}) if stream.traceparent else None
        span = self._tracer.start_span("astrolabe.request", context=context, kind=self._kind)
        with_span: dict[str, str] = {}
        self._propagator.inject(with_span, self._in_context(span))
        stream.traceparent = with_span.get("traceparent", "")
        stream.span = span

    def end(self, stream: ClientStream) -> None:
        """Ends it with what is known of the request. Streams without a span are passed over."""
        span = stream.span
        if span is None:
            return
        shape, outcome, decision = stream.shape, stream.outcome, stream.decision
        span.set_attributes(
            {
                "gen_ai.request.model": shape.model,
                "gen_ai.usage.input_tokens": shape.prompt_tokens,
                "gen_ai.usage.output_tokens": stream.output_tokens,
                "astrolabe.request_id": shape.request_id,
                "astrolabe.node": stream.node_id,
                "astrolabe.outcome": outcome.value if outcome is not None else "",
                "astrolabe.attempts": stream.attempt,
                "astrolabe.resumes": stream.resumes,
            }
        )
        if decision is not None:
            span.set_attribute("astrolabe.policy", decision.policy)
            span.set_attribute("astrolabe.reason", decision.reason)
        for name, at_s in (("placed", stream.decided_s), ("first token", stream.first_token_s)):
            if at_s is not None:
                span.add_event(name, timestamp=self._unix_ns(at_s))
        if outcome not in COMPLETE:
            span.set_status(self._error, stream.detail)
        span.end(self._unix_ns(stream.finished_s) if stream.finished_s is not None else None)

    def close(self) -> None:
        """Sends what is left; blocks for as long as the collector takes, at most its own timeout."""
        self._provider.shutdown()

    def _unix_ns(self, at_s: float) -> int:
        return int((at_s + self._wall_s) * _NS)

"""One OpenTelemetry span for each request at this node, below the gateway's attempt and above the engine's own spans.

Optional: needs the extra `otel`. No prompt and no answer is in it.
"""

from __future__ import annotations

from protos.runtime.otlp import Attribute, Span, SpanSource

SERVICE_NAME = "astrolabe-predictor"


class NodeSpans:
    """Begins and ends them."""

    def __init__(self, endpoint: str, *, node_id: str) -> None:
        """`endpoint`: an OTLP/HTTP collector. Raises ConfigError."""
        self._source = SpanSource(endpoint, service=SERVICE_NAME, instance=node_id)
        self._node_id = node_id

    def begin(self, traceparent: str) -> tuple[Span, str]:
        """A span below that context, and the context for the engine."""
        span = self._source.begin("astrolabe.node.request", traceparent, "server")
        return span, self._source.traceparent(span)

    def end(
        self,
        span: Span,
        *,
        request_id: str,
        outcome: str,
        complete: bool,
        prompt_tokens: int,
        output_tokens: int,
        first_token_s: float | None,
    ) -> None:
        """`outcome`: as the log says it; `first_token_s` on the monotonic clock."""
        self._source.event(span, "first token", first_token_s)
        told: dict[str, Attribute] = {
            "gen_ai.usage.input_tokens": prompt_tokens,
            "gen_ai.usage.output_tokens": output_tokens,
            "astrolabe.request_id": request_id,
            "astrolabe.node": self._node_id,
            "astrolabe.outcome": outcome,
        }
        self._source.end(span, told, error=None if complete else outcome)

    def close(self) -> None:
        """Sends what is left; blocks for as long as the collector takes, at most its own timeout."""
        self._source.close()

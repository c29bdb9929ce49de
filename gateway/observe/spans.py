"""OpenTelemetry spans of each request: what it waited for, and where it ran. Optional: needs the extra `otel`.

    astrolabe.request              below the client's span, from arrival to end
      astrolabe.place              until a node had it (again): forecasts, decision
        astrolabe.queue            the part of it spent in the gateway's queue
      astrolabe.attempt            at one node; its context goes to the daemon, whose span hangs below it
      astrolabe.move               to another node while it ran; stages of the move hang below it

No prompt and no answer is in any of them.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.outcomes import COMPLETE
from gateway.core.request.explanation import Explanation
from gateway.intake.client_stream import ClientStream
from protos.runtime.otlp import Attribute, Span, SpanSource
from simcore.types import Outcome

SERVICE_NAME = "astrolabe-gateway"


class RequestSpans:
    """Those of one request that are open (`ClientStream.span`)."""

    __slots__ = ("attempt", "moves", "request")

    def __init__(self, request: Span) -> None:
        self.request = request
        self.attempt: Span | None = None
        self.moves: dict[str, Span] = {}
        """By destination."""


class Spans:
    """Makes them as requests go on. Streams without spans are passed over."""

    def __init__(self, endpoint: str, *, gateway_id: str, explain: Callable[[str], Explanation | None]) -> None:
        """`endpoint`: an OTLP/HTTP collector. `explain`: what the router knows of a request. Raises ConfigError."""
        self._source = SpanSource(endpoint, service=SERVICE_NAME, instance=gateway_id)
        self._explain = explain

    def begin(self, stream: ClientStream) -> None:
        """A request has come; the stream's trace context becomes that of its span."""
        span = self._source.begin("astrolabe.request", stream.traceparent, "server")
        stream.span = RequestSpans(span)
        stream.traceparent = self._source.traceparent(span)

    def sent(self, stream: ClientStream) -> None:
        """A node gets it now; the stream's trace context becomes that of the attempt."""
        spans: RequestSpans | None = stream.span
        if spans is None:
            return
        source, decision, now_s = self._source, stream.decision, stream.decided_s
        assert decision is not None, "nothing is sent without a decision"
        assert now_s is not None, "nothing is sent without a decision"
        since_s = stream.arrived_s
        if spans.attempt is not None:
            since_s = now_s if stream.attempt_ended_s is None else stream.attempt_ended_s
            self._end_attempt(spans, stream.attempt_ended_s, now_s, None)
        place = source.begin("astrolabe.place", spans.request, at_s=since_s)
        explained = self._explain(stream.shape.request_id) if stream.attempt == 1 else None
        if explained is not None and explained.queued_after_s is not None:
            queue = source.begin("astrolabe.queue", place, at_s=stream.arrived_s + explained.queued_after_s)
            source.end(queue, {}, at_s=now_s)
        placed = {"astrolabe.policy": decision.policy, "astrolabe.reason": decision.reason}
        source.end(place, {**placed, "astrolabe.node": decision.node_id}, at_s=now_s)
        spans.attempt = source.begin("astrolabe.attempt", spans.request, "client", at_s=now_s)
        spans.attempt.set_attributes({"astrolabe.node": stream.node_id, "astrolabe.attempt": stream.attempt})
        stream.attempt_ended_s = None
        stream.traceparent = source.traceparent(spans.attempt)

    def staged(self, stream: ClientStream, node_id: str) -> str:
        """The trace context for a stage of a move to this node."""
        spans: RequestSpans | None = stream.span
        if spans is None:
            return ""
        move = spans.moves.get(node_id)
        if move is None:
            move = spans.moves[node_id] = self._source.begin("astrolabe.move", spans.request)
        return self._source.traceparent(move)

    def end(self, stream: ClientStream) -> None:
        """It has ended: so do its spans, with what is known of it."""
        spans: RequestSpans | None = stream.span
        if spans is None:
            return
        source, shape, outcome, ended_s = self._source, stream.shape, stream.outcome, stream.finished_s
        self._end_moves(stream, spans)
        if spans.attempt is not None:
            self._end_attempt(spans, stream.attempt_ended_s, ended_s, outcome)
        source.event(spans.request, "placed", stream.decided_s)
        source.event(spans.request, "first token", stream.first_token_s)
        told: dict[str, Attribute] = {
            "gen_ai.request.model": shape.model,
            "gen_ai.usage.input_tokens": shape.prompt_tokens,
            "gen_ai.usage.output_tokens": stream.output_tokens,
            "astrolabe.request_id": shape.request_id,
            "astrolabe.node": stream.node_id,
            "astrolabe.outcome": outcome.value if outcome is not None else "",
            "astrolabe.attempts": stream.attempt,
            "astrolabe.resumes": stream.resumes,
        }
        if (decision := stream.decision) is not None:
            told |= {"astrolabe.policy": decision.policy, "astrolabe.reason": decision.reason}
        source.end(spans.request, told, at_s=ended_s, error=None if outcome in COMPLETE else stream.detail)

    def close(self) -> None:
        """Sends what is left; blocks for as long as the collector takes, at most its own timeout."""
        self._source.close()

    def _end_attempt(
        self, spans: RequestSpans, ended_s: float | None, at_latest_s: float | None, outcome: Outcome | None
    ) -> None:
        """`outcome`: the request's, if this was its last attempt."""
        error = None if outcome is None or outcome in COMPLETE else outcome.value
        self._source.end(spans.attempt, {}, at_s=at_latest_s if ended_s is None else ended_s, error=error)
        spans.attempt = None

    def _end_moves(self, stream: ClientStream, spans: RequestSpans) -> None:
        explained = self._explain(stream.shape.request_id)
        for told in explained.moves if explained is not None else ():
            began_s = stream.arrived_s + told.after_s
            span = spans.moves.pop(told.destination, None)
            if span is None:
                span = self._source.begin("astrolabe.move", spans.request, at_s=began_s)
            facts: dict[str, Attribute] = {
                "astrolabe.source": told.source,
                "astrolabe.destination": told.destination,
                "astrolabe.cause": told.cause,
                "astrolabe.outcome": told.outcome,
                "astrolabe.stages": told.stages,
            }
            if told.gap_s is not None:
                facts["astrolabe.gap_s"] = told.gap_s
            self._source.end(span, facts, at_s=stream.finished_s if told.took_s is None else began_s + told.took_s)
        for span in spans.moves.values():
            self._source.end(span, {}, at_s=stream.finished_s)

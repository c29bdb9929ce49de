"""Carries one request's answer from its stream to its HTTP exchange, piece by piece or whole at the end.

No task waits for tokens: the stream calls `on_change`, and all exchanges with news are served together at the end of
the event loop's turn, so that tokens which came in one frame of a node cost one write each and no task switch.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import structlog

from gateway.core.outcomes import CODES, COMPLETE
from gateway.http.chunks import Chunks, Style, whole
from gateway.http.connection import Exchange
from gateway.http.errors import error_json
from gateway.http.heartbeats import Beat, Heartbeats
from gateway.http.logprobs import AnswerLogprobs
from gateway.intake.client_stream import ClientStream
from simcore.types import Outcome

log = structlog.get_logger("gateway.http")

JSON = "application/json"
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
COMMENT = b": waiting for the first token\n\n"
"""What readers of server-sent events pass over; https://html.spec.whatwg.org/multipage/server-sent-events.html"""
_FINISH = {Outcome.STOP: b'"stop"', Outcome.LENGTH: b'"length"'}


class Deliverer(Protocol):
    """Brings one answer to its client."""

    def serve(self) -> None:
        """Passes on what has come."""

    def give_up(self) -> None:
        """Breaks the connection and lets go of the request."""


class FlushBatch:
    """Collects the deliveries that have something to send and flushes them once per turn of the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pending: dict[Deliverer, None] = {}

    def add(self, delivery: Deliverer) -> None:
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending[delivery] = None

    def _flush(self) -> None:
        batch, self._pending = self._pending, {}
        for delivery in batch:
            try:
                delivery.serve()
            except Exception:
                # One request's defect must not take the others of this batch with it.
                log.exception("defect in the HTTP front")
                delivery.give_up()


class ResponseOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the client wants its answer."""

    style: Style
    model: str
    stream: bool
    token_ids: bool
    """Token ids beside the text."""
    usage: bool
    """Token counts in a chunk of their own at the end of a stream; a whole answer always has them."""
    running_usage: bool
    """Token counts so far in every chunk of a stream."""
    early_headers: bool = True
    """Whether headers may go before the first token, when that takes long."""


class Delivery:
    """Delivers one answer, from admission to the end of the response or until the client leaves."""

    __slots__ = (
        "_batch",
        "_chunks",
        "_close",
        "_created",
        "_exchange",
        "_heartbeats",
        "_ids",
        "_logprobs",
        "_options",
        "_sent_tokens",
        "_stream",
    )

    def __init__(
        self,
        stream: ClientStream,
        close: Callable[[ClientStream], None],
        exchange: Exchange,
        options: ResponseOptions,
        batch: FlushBatch,
        heartbeats: Heartbeats,
        logprobs: AnswerLogprobs | None = None,
    ) -> None:
        """`close` is called with the stream once nobody reads it any more. `logprobs` words those asked for."""
        self._stream = stream
        self._logprobs = logprobs
        self._heartbeats = heartbeats
        self._close = close
        self._exchange = exchange
        self._options = options
        self._batch = batch
        self._created = int(time.time())
        self._chunks: Chunks | None = None
        self._ids: list[int] = []
        self._sent_tokens = 0
        if exchange.is_over:
            # The client has left while its request was looked at.
            close(stream)
            return
        exchange.on_left = self._let_go
        exchange.on_writable = self.note
        self._stream.on_change = self.note
        if options.stream and options.early_headers:
            heartbeats.add(self)
        self.note()

    def note(self) -> None:
        """There is something new, or room for it."""
        self._batch.add(self)

    def serve(self) -> None:
        """Passes on what has come."""
        if self._options.stream:
            self._serve_pieces()
        else:
            self._serve_whole()

    def give_up(self) -> None:
        """Breaks the connection and lets go of the request."""
        self._exchange.abort()
        self._let_go()

    def beat(self) -> Beat:
        """Headers, if there were none, and a comment, once the request has a node: from then on it has an answer."""
        if self._chunks is not None or self._stream.outcome is not None or self._exchange.is_over:
            return "over"
        if not self._stream.node_id or self._exchange.is_blocked:
            return "not yet"
        self._exchange.start(200, {**answer_headers(self._stream), **EVENTS})
        self._exchange.send(COMMENT)
        return "sent"

    def _let_go(self) -> None:
        self._stream.on_change = None
        self._heartbeats.discard(self)
        self._close(self._stream)

    def _serve_whole(self) -> None:
        stream = self._stream
        # Taken at once: only tokens that a reader leaves lying count as waiting for it.
        token_ids = stream.take()
        self._ids += token_ids
        logprobs = self._logprobs
        if logprobs is not None:
            logprobs.add(token_ids, stream.take_logprobs())
        outcome = stream.outcome
        if outcome is None:
            return
        if outcome not in COMPLETE:
            self._fail(outcome)
            return
        assert stream.text is not None, "an answer has a text"
        options = self._options
        body = whole(
            options.style,
            request_id=stream.shape.request_id,
            model=options.model,
            created=self._created,
            text=stream.text.take(),
            token_ids=self._ids if options.token_ids else None,
            prompt_token_ids=stream.prompt_token_ids,
            outcome=outcome,
            stop_reason=stream.stop_reason,
            logprobs=b"null" if logprobs is None else logprobs.take(),
            usage=stream.usage(),
        )
        self._exchange.respond(200, {**answer_headers(stream), "content-type": JSON}, body)
        self._close(self._stream)

    def _serve_pieces(self) -> None:
        stream, exchange = self._stream, self._exchange
        outcome = stream.outcome
        if outcome is None and exchange.is_blocked:
            # What waits stays where it is counted; a client that never reads is ended by that count.
            return
        assert stream.text is not None, "an answer has a text"
        token_ids: Sequence[int] = stream.take()
        text = stream.text.take()
        logprobs = b"null"
        if self._logprobs is not None and token_ids:
            self._logprobs.add(token_ids, stream.take_logprobs())
            logprobs = self._logprobs.take()
        chunks = self._chunks
        if chunks is None:
            if outcome is not None and outcome not in COMPLETE and not token_ids:
                self._fail(outcome)
                return
            if outcome is None and not token_ids:
                return
            chunks = self._begin()
        self._sent_tokens += len(token_ids)
        if outcome is None:
            # A character or a stop string may be incomplete: then there are tokens without text.
            if text or self._options.token_ids or self._logprobs is not None:
                exchange.send(chunks.chunk(text, token_ids, self._sent_tokens, logprobs=logprobs))
            return
        self._end(chunks, text, token_ids, outcome, logprobs)

    def _begin(self) -> Chunks:
        options, stream = self._options, self._stream
        self._heartbeats.discard(self)
        self._exchange.start(200, {**answer_headers(stream), **EVENTS})
        self._chunks = Chunks(
            options.style,
            request_id=stream.shape.request_id,
            model=options.model,
            created=self._created,
            prompt_tokens=stream.shape.prompt_tokens,
            prompt_token_ids=stream.prompt_token_ids,
            with_ids=options.token_ids,
            with_usage=options.usage,
            with_counts=options.running_usage,
        )
        return self._chunks

    def _end(self, chunks: Chunks, text: str, token_ids: Sequence[int], outcome: Outcome, logprobs: bytes) -> None:
        stream, exchange = self._stream, self._exchange
        if outcome in COMPLETE:
            reason = stream.stop_reason
            last = chunks.chunk(
                text, token_ids, self._sent_tokens, _FINISH[outcome], stop_reason=reason, logprobs=logprobs
            )
            exchange.send(last + chunks.end(stream.usage()), last=True)
        else:
            # No [DONE]: a reader that minds nothing else must see that the answer is not whole.
            rest = chunks.chunk(text, token_ids, self._sent_tokens, logprobs=logprobs) if token_ids else b""
            exchange.send(rest + _error_event(outcome, stream.detail), last=True)
        self._close(self._stream)

    def _fail(self, outcome: Outcome) -> None:
        """The end of a request of whose answer nothing has been sent."""
        stream = self._stream
        self._heartbeats.discard(self)
        if self._exchange.started:
            self._exchange.send(_error_event(outcome, stream.detail), last=True)
            self._close(stream)
            return
        codes = CODES[outcome]
        headers = {**answer_headers(stream), "content-type": JSON, "x-astrolabe-outcome": outcome.value}
        if codes.http in (429, 503):
            headers["retry-after"] = retry_after(stream.retry_after_s)
        self._exchange.respond(codes.http, headers, error_json(outcome, stream.detail))
        self._close(self._stream)


def _error_event(outcome: Outcome, detail: str) -> bytes:
    return b"data: " + error_json(outcome, detail) + b"\n\n"


def answer_headers(stream: ClientStream) -> dict[str, str]:
    """Which request, which node, how long the decision took."""
    headers = {"x-request-id": stream.shape.request_id}
    if stream.node_id:
        headers["x-astrolabe-node"] = stream.node_id
    if stream.decision_s is not None:
        headers["x-astrolabe-decision-s"] = f"{stream.decision_s:.6f}"
    return headers


def retry_after(seconds: float | None) -> str:
    """Value of `retry-after`: whole seconds, at least one."""
    return str(max(1, math.ceil(seconds or 0.0)))

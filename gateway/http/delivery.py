"""Carries the answers to one request from their streams to its HTTP exchange, piece by piece or whole at the end.

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
from gateway.http.chunks import Chunks, Style, choice, whole
from gateway.http.connection import Exchange
from gateway.http.errors import error_json
from gateway.http.heartbeats import Beat, Heartbeats
from gateway.http.logprobs import AnswerLogprobs
from gateway.intake.client_stream import ClientStream, Usage
from gateway.intake.submission import Intake
from simcore.types import Outcome

log = structlog.get_logger("gateway.http")

JSON = "application/json"
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
COMMENT = b": waiting for the first token\n\n"
AWAITED = ": no node runs for this model yet; one is expected in {:.0f} s\n\n"
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


class _Answer:
    """One of the answers to a request, and how much of it has been told."""

    __slots__ = ("chunks", "ids", "is_told", "logprobs", "sent_tokens", "stream")

    def __init__(self, stream: ClientStream, logprobs: AnswerLogprobs | None) -> None:
        self.stream = stream
        self.logprobs = logprobs
        self.chunks: Chunks | None = None
        """Once something of it has come, if it is streamed."""
        self.ids: list[int] = []
        """All token ids, if it is not."""
        self.sent_tokens = 0
        self.is_told = False
        """Whether its end has been sent."""


class Delivery:
    """Delivers the answers to one request, from admission to the end of the response or until the client leaves.

    There is one answer, or several that go on side by side. When one fails, all end.
    """

    __slots__ = (
        "_answers",
        "_batch",
        "_created",
        "_exchange",
        "_has_begun",
        "_heartbeats",
        "_intake",
        "_options",
    )

    def __init__(
        self,
        streams: Sequence[ClientStream],
        intake: Intake,
        exchange: Exchange,
        options: ResponseOptions,
        batch: FlushBatch,
        heartbeats: Heartbeats,
        *,
        logprobs: Callable[[], AnswerLogprobs] | None = None,
    ) -> None:
        """`logprobs` makes what words those of an answer; None: they were not asked for."""
        self._answers = [_Answer(stream, None if logprobs is None else logprobs()) for stream in streams]
        self._heartbeats = heartbeats
        self._intake = intake
        self._exchange = exchange
        self._options = options
        self._batch = batch
        self._created = int(time.time())
        self._has_begun = False
        """Whether something of an answer has come."""
        if exchange.is_over:
            # The client has left while its request was looked at.
            self._close()
            return
        exchange.on_left = self._let_go
        exchange.on_writable = self.note
        for stream in streams:
            stream.on_change = self.note
        if options.stream and options.early_headers:
            heartbeats.add(self)
        self.note()

    def note(self) -> None:
        """There is something new, or room for it."""
        self._batch.add(self)

    def serve(self) -> None:
        """Passes on what has come."""
        is_over, failed = True, None
        for answer in self._answers:
            outcome = answer.stream.outcome
            if outcome is None:
                is_over = False
            elif outcome not in COMPLETE:
                failed = failed or answer.stream
        if self._options.stream:
            self._serve_pieces(is_over, failed)
        else:
            self._serve_whole(is_over, failed)

    def give_up(self) -> None:
        """Breaks the connection and lets go of the request."""
        self._exchange.abort()
        self._let_go()

    def beat(self) -> Beat:
        """Headers, if there were none, and a comment, once the request has a node: from then on it has an answer. One
        that waits for a node to be started is told how long."""
        streams = [answer.stream for answer in self._answers]
        if self._has_begun or self._exchange.is_over or any(stream.outcome is not None for stream in streams):
            return "over"
        awaited_s = self._intake.awaited_in_s(streams[0])
        has_node = any(stream.node_id for stream in streams)
        if (awaited_s is None and not has_node) or self._exchange.is_blocked:
            return "not yet"
        self._exchange.start(200, {**self._headers(), **EVENTS})
        self._exchange.send(COMMENT if awaited_s is None else AWAITED.format(awaited_s).encode())
        return "sent"

    def _headers(self) -> dict[str, str]:
        return answer_headers(self._answers[0].stream)

    def _let_go(self) -> None:
        self._heartbeats.discard(self)
        self._close()

    def _close(self) -> None:
        for answer in self._answers:
            answer.stream.on_change = None
            self._intake.close(answer.stream)

    def _serve_whole(self, is_over: bool, failed: ClientStream | None) -> None:
        for answer in self._answers:
            # Taken at once: only tokens that a reader leaves lying count as waiting for it.
            token_ids = answer.stream.take()
            answer.ids += token_ids
            if answer.logprobs is not None:
                answer.logprobs.add(token_ids, answer.stream.take_logprobs())
        if failed is not None:
            self._fail(failed)
        elif is_over:
            self._respond()

    def _respond(self) -> None:
        options = self._options
        prompt_token_ids = self._answers[0].stream.prompt_token_ids if options.token_ids else None
        choices = []
        for index, answer in enumerate(self._answers):
            stream = answer.stream
            assert stream.text is not None, "an answer has a text"
            assert stream.outcome is not None, "all have ended"
            choices.append(
                choice(
                    options.style,
                    stream.text.take(),
                    stream.outcome,
                    index=index,
                    stop_reason=stream.stop_reason,
                    logprobs=b"null" if answer.logprobs is None else answer.logprobs.take(),
                    token_ids=answer.ids if options.token_ids else None,
                    prompt_token_ids=prompt_token_ids or (),
                )
            )
        body = whole(
            options.style,
            choices,
            request_id=self._answers[0].stream.shape.request_id,
            model=options.model,
            created=self._created,
            usage=self._usage(),
            prompt_token_ids=prompt_token_ids,
        )
        self._exchange.respond(200, {**self._headers(), "content-type": JSON}, body)
        self._close()

    def _serve_pieces(self, is_over: bool, failed: ClientStream | None) -> None:
        exchange = self._exchange
        if exchange.is_blocked and failed is None and not is_over:
            # What waits stays where it is counted; a client that never reads is ended by that count.
            return
        had_begun = self._has_begun
        answers = self._answers
        if len(answers) == 1:
            data = self._piece(0, answers[0])
        else:
            data = b"".join([self._piece(index, answer) for index, answer in enumerate(answers)])
        if not self._has_begun:
            if failed is not None:
                self._fail(failed)
            return
        if not had_begun:
            self._heartbeats.discard(self)
            exchange.start(200, {**self._headers(), **EVENTS})
        if failed is not None:
            # No [DONE]: a reader that minds nothing else must see that the answer is not whole.
            exchange.send(data + _error_event(failed.outcome, failed.detail), last=True)
            self._end_others(failed)
            self._close()
        elif is_over:
            chunks = self._answers[0].chunks
            assert chunks is not None, "it has been told"
            exchange.send(data + chunks.end(self._usage()), last=True)
            self._close()
        elif data:
            exchange.send(data)
        else:
            exchange.send_head()

    def _piece(self, index: int, answer: _Answer) -> bytes:
        """The event that tells what has come of an answer; empty if nothing has."""
        stream = answer.stream
        token_ids: Sequence[int] = stream.take()
        outcome = stream.outcome
        if outcome is None:
            is_complete = False
            if not token_ids:
                return b""
        else:
            is_complete = outcome in COMPLETE
            if answer.is_told or not (token_ids or is_complete):
                return b""
        self._has_begun = True
        chunks = answer.chunks
        if chunks is None:
            chunks = answer.chunks = self._chunks(index, stream)
        assert stream.text is not None, "an answer has a text"
        text = stream.text.take()
        logprobs = None
        if answer.logprobs is not None and token_ids:
            answer.logprobs.add(token_ids, stream.take_logprobs())
            logprobs = answer.logprobs.take()
        answer.sent_tokens += len(token_ids)
        if is_complete:
            assert outcome is not None, "it has ended"
            answer.is_told = True
            finish, reason = _FINISH[outcome], stream.stop_reason
            return chunks.chunk(text, token_ids, answer.sent_tokens, finish, stop_reason=reason, logprobs=logprobs)
        # A character or a stop string may be incomplete: then there are tokens without text.
        if text or self._options.token_ids or answer.logprobs is not None or outcome is not None:
            return chunks.chunk(text, token_ids, answer.sent_tokens, logprobs=logprobs)
        return b""

    def _chunks(self, index: int, stream: ClientStream) -> Chunks:
        options = self._options
        return Chunks(
            options.style,
            request_id=self._answers[0].stream.shape.request_id,
            model=options.model,
            created=self._created,
            prompt_tokens=stream.shape.prompt_tokens,
            prompt_token_ids=stream.prompt_token_ids,
            with_ids=options.token_ids,
            with_usage=options.usage,
            with_counts=options.running_usage,
            index=index,
        )

    def _usage(self) -> Usage:
        """The prompt once, all answers."""
        usages = [answer.stream.usage() for answer in self._answers]
        return Usage(
            prompt_tokens=usages[0].prompt_tokens,
            output_tokens=sum(usage.output_tokens for usage in usages),
            cached_tokens=max(usage.cached_tokens for usage in usages),
        )

    def _fail(self, stream: ClientStream) -> None:
        """The end of a request of whose answers nothing has been sent; `stream` is the one that failed."""
        outcome = stream.outcome
        assert outcome is not None, "it has ended"
        self._heartbeats.discard(self)
        if self._exchange.started:
            self._exchange.send(_error_event(outcome, stream.detail), last=True)
        else:
            codes = CODES[outcome]
            headers = {**self._headers(), "content-type": JSON, "x-astrolabe-outcome": outcome.value}
            if codes.http in (429, 503):
                headers["retry-after"] = retry_after(stream.retry_after_s)
            self._exchange.respond(codes.http, headers, error_json(outcome, stream.detail))
        self._end_others(stream)
        self._close()

    def _end_others(self, failed: ClientStream) -> None:
        """Those that run beside the one that failed: nobody will read them."""
        assert failed.outcome is not None, "it has ended"
        for answer in self._answers:
            answer.stream.on_change = None
            self._intake.expel(answer.stream, failed.outcome, f"another answer to the same request: {failed.detail}")


def _error_event(outcome: Outcome | None, detail: str) -> bytes:
    assert outcome is not None, "it has ended"
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

"""Engines' own answers to calls that were handed on, as HTTP responses.

Bytes go through; errors of the gateway's own have the shape of the API that was called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.core.outcomes import CODES, COMPLETE
from gateway.http.connection import Exchange
from gateway.http.delivery import JSON, FlushBatch, answer_headers, retry_after
from gateway.http.errors import error_body, error_event
from gateway.intake.call_desk import without
from gateway.intake.client_call import STANDSTILL_S, AnswerHead, CallAnswer, header
from gateway.intake.client_stream import ClientStream
from gateway.intake.submission import Intake
from protos.runtime.http_headers import HOP_BY_HOP
from simcore.types import Outcome

_OURS_IN_ANSWERS = HOP_BY_HOP | {
    "content-length",
    "x-request-id",
    "x-astrolabe-node",
    "x-astrolabe-decision-s",
    "x-astrolabe-outcome",
}
_EVENT_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
_BEGINS_EVENT = b"deir:"
"""How lines of server-sent events begin: data, event, id, retry, a comment."""
TORN_BYTES = 16 * 1024
"""So much of an event that is not whole is kept back; of a longer one the client gets what there is."""


class CallDelivery:
    """Delivers an engine's own answer, from admission to the end of the response or until the client leaves."""

    __slots__ = (
        "_answer",
        "_batch",
        "_ends_event",
        "_exchange",
        "_has_body",
        "_heard",
        "_intake",
        "_is_plain_stream",
        "_left_bytes",
        "_path",
        "_standstill",
        "_stream",
        "_torn",
        "_unsent_bytes",
    )  # fmt: skip

    def __init__(
        self,
        stream: ClientStream,
        intake: Intake,
        exchange: Exchange,
        path: str,
        batch: FlushBatch,
        heard: Callable[[ClientStream, bytes], None] | None = None,
    ) -> None:
        """`path`: what was called. `heard` is told the first bytes of an answer of status 200."""
        assert stream.answer is not None, "a call has an answer"
        self._stream = stream
        self._answer: CallAnswer = stream.answer
        self._intake = intake
        self._exchange = exchange
        self._path = path
        self._batch = batch
        self._heard = heard
        self._ends_event = True
        """Whether what was sent of a stream is whole events."""
        self._torn = b""
        """The beginning of an event that is not whole. It is of no use yet, and it could not be taken back."""
        self._has_body = self._is_plain_stream = False
        self._left_bytes: int | None = None
        """What the response's length still leaves; None where none was said."""
        self._standstill: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        """When the client was last looked at."""
        if exchange.is_over:
            # The client has left while its request was looked at.
            intake.close(stream)
            return
        exchange.drop_body()
        exchange.on_left = self._let_go
        exchange.on_writable = self.note
        stream.on_change = self.note
        self.note()

    def note(self) -> None:
        """There is something new, or room for it."""
        self._batch.add(self)

    def serve(self) -> None:
        stream, exchange, answer = self._stream, self._exchange, self._answer
        outcome = stream.outcome
        if not answer.has_begun:
            if outcome is not None:
                self._fail(outcome)
            return
        if exchange.is_blocked and outcome is None:
            # What waits stays where it is counted; the node stops reading when too much does.
            if self._standstill is None:
                self._watch_reader()
            return
        self._moves()
        data = answer.take()
        if not exchange.started:
            assert answer.head is not None, "an answer that has begun has a head"
            self._begin(answer.head, data)
        data = self._ready(data)
        if outcome is not None:
            self._end(outcome, data)
        elif data:
            exchange.send(data)
        else:
            exchange.send_head()
        if answer.unreported_bytes:
            self._intake.consumed(stream)

    def give_up(self) -> None:
        self._exchange.abort()
        self._let_go()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _begin(self, head: AnswerHead, data: bytes) -> None:
        length = header(head.headers, "content-length")
        said_bytes = int(length) if length.isdecimal() else None
        self._has_body = self._exchange.request.method != "HEAD" and head.status not in (204, 304)
        self._left_bytes = said_bytes if self._has_body else None
        self._is_plain_stream = self._has_body and self._answer.is_streamed and said_bytes is None
        if header(head.headers, "content-encoding") not in ("", "identity"):
            self._is_plain_stream = False
        if self._heard is not None and head.status == 200:
            self._heard(self._stream, data)
        ours = answer_headers(self._stream).items()
        self._exchange.start(head.status, (*without(head.headers, _OURS_IN_ANSWERS), *ours), length=said_bytes)

    def _ready(self, data: bytes) -> bytes:
        """What of the bytes that have come is for the client now."""
        if not self._has_body:
            return b""
        if self._is_plain_stream:
            return self._whole_events(data)
        if self._left_bytes is not None:
            self._left_bytes -= len(data)
        return data

    def _whole_events(self, data: bytes) -> bytes:
        whole = self._torn + data if self._torn else data
        self._torn = b""
        if self._ends_event and whole.endswith(b"\n\n"):
            return whole
        cut = max((at + len(end) for end in _EVENT_ENDS if (at := whole.rfind(end)) >= 0), default=0)
        torn = whole[cut:]
        if torn and (len(torn) > TORN_BYTES or torn[0] not in _BEGINS_EVENT or not (cut or self._ends_event)):
            self._ends_event = False
            return whole
        self._ends_event = self._ends_event or cut > 0
        self._torn = torn
        return whole[:cut]

    def _end(self, outcome: Outcome, data: bytes) -> None:
        """`data`: the last of it that is ready."""
        exchange = self._exchange
        if self._answer.is_complete and self._left_bytes in (None, 0):
            if rest := data + self._torn:
                exchange.send(rest, last=True)
            else:
                exchange.finish()
        elif self._is_plain_stream:
            outcome = Outcome.ENGINE_FAILED if outcome in COMPLETE else outcome
            event = error_event(self._path, outcome, self._stream.detail)
            exchange.send(data + (event if self._ends_event else b"\n\n" + event), last=True)
        else:
            if data:
                exchange.send(data)
            # Cut off, it must not look like a whole answer.
            exchange.abort()
        self._close()

    def _fail(self, outcome: Outcome) -> None:
        """The end of a request of which nothing has been sent: what the last node said of it, else what we do."""
        stream = self._stream
        kept = self._answer.last_words(outcome)
        if kept is not None:
            headers = (*without(kept.head.headers, _OURS_IN_ANSWERS), *answer_headers(stream).items())
            length = header(kept.head.headers, "content-length")
            is_bodiless = self._exchange.request.method == "HEAD" and length.isdecimal()
            self._exchange.start(kept.head.status, headers, length=int(length) if is_bodiless else len(kept.data))
            if kept.data and not is_bodiless:
                self._exchange.send(kept.data)
            self._exchange.end()
        else:
            # A complete answer has been shown; what has none and no words of a node has failed here.
            outcome = Outcome.ENGINE_FAILED if outcome in COMPLETE else outcome
            codes = CODES[outcome]
            ours = {**answer_headers(stream), "content-type": JSON, "x-astrolabe-outcome": outcome.value}
            if codes.http in (429, 503):
                ours["retry-after"] = retry_after(stream.retry_after_s)
            self._exchange.respond(codes.http, ours, error_body(self._path, outcome, stream.detail))
        self._close()

    def _moves(self) -> None:
        if self._standstill is not None:
            self._standstill.cancel()
            self._standstill = None

    def _watch_reader(self) -> None:
        self._unsent_bytes = self._exchange.unsent_bytes
        self._standstill = asyncio.get_running_loop().call_later(STANDSTILL_S, self._look_at_reader)

    def _look_at_reader(self) -> None:
        if self._exchange.unsent_bytes < self._unsent_bytes:
            # Room for more comes only when nearly all is gone: a slow client may be long at one piece.
            self._watch_reader()
            return
        self._standstill = None
        self._intake.give_up_reader(self._stream)

    def _let_go(self) -> None:
        self._stream.on_change = None
        self._close()

    def _close(self) -> None:
        self._moves()
        self._intake.close(self._stream)

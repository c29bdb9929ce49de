"""One client's request while it is ours: what it asked, what has come for it, how it ended.

The pump writes, one front's call reads. Tokens that the reader has not taken yet merge into one list, so a slow reader
costs memory by the token, never by the message, and the pump ends it at a limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gateway.core.events import RequestShape
from gateway.core.request.resume import attempt_id
from gateway.intake.answer_text import AnswerText
from gateway.intake.callers import ANYONE, Caller
from gateway.intake.client_call import CallAnswer, ClientCall
from gateway.intake.client_request import Sampling
from length_model.core.hints import Hint
from length_model.online import LengthForecast
from simcore.types import Decision, Outcome, TokenLogprobs


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of one request."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    """Prompt tokens taken from a prefix cache."""


_AS_THE_ENGINE_HAS_IT = Sampling()


class ClientStream:
    """What a client asked in one request, and what has come for it.

    Mutable; lives from `Arrived` to `Finish`. Times are on the pump's clock, in seconds.
    """

    __slots__ = (
        "_waiter",
        "answer",
        "arrived_s",
        "asked",
        "attempt",
        "attempt_ended_s",
        "basis",
        "cached_tokens",
        "call",
        "caller",
        "closed",
        "decided_s",
        "decision",
        "detail",
        "finished_s",
        "first_token_s",
        "idempotency_key",
        "is_extra",
        "is_unnamed",
        "node_id",
        "on_change",
        "outcome",
        "output_tokens",
        "pending",
        "pending_logprobs",
        "produced",
        "prompt_token_ids",
        "resumes",
        "retry_after_s",
        "sampling",
        "shape",
        "span",
        "stage_traceparent",
        "stop_token_id",
        "text",
        "traceparent",
    )

    def __init__(
        self,
        shape: RequestShape,
        *,
        caller: Caller = ANYONE,
        idempotency_key: str = "",
        prompt_token_ids: Sequence[int] = (),
        sampling: Sampling = _AS_THE_ENGINE_HAS_IT,
        basis: LengthForecast | Hint | None = None,
        text: AnswerText | None = None,
        traceparent: str = "",
        call: ClientCall | None = None,
    ) -> None:
        self.shape = shape
        self.call = call
        """The client's own call, which its engine is to get as it is; None: the engine is asked for tokens."""
        self.answer = None if call is None else CallAnswer(call.resumable)
        """What the engine answers to it."""
        self.caller = caller
        self.idempotency_key = idempotency_key
        """Claimed for the caller until `Intake.close`; empty: none."""
        self.is_extra = False
        """Whether it is one of several answers to one request and not the first, which holds the caller's quota for
        all."""
        self.is_unnamed = False
        """Of a call that a proxy takes there: whether its engine gives it a name of its own."""
        self.closed = False
        """Whether nobody reads any more; set by `Intake.close`."""
        self.prompt_token_ids = prompt_token_ids
        self.sampling = sampling
        self.basis = basis
        """What the belief of the length rests on, for learning from the end (`ExpectedLength.basis`)."""
        self.text = text
        """The answer as text; None when nobody wants it."""
        self.traceparent = traceparent
        """W3C trace context for the next node; empty: none."""
        self.stage_traceparent = ""
        """The same for a stage of a move."""
        self.span: Any = None
        """`gateway.observe.spans.RequestSpans`, when OpenTelemetry is switched on."""
        self.asked = shape
        """What the present node was asked for: the request, or what was left of it when another node failed."""
        self.attempt = 1
        self.attempt_ended_s: float | None = None
        """When its node said that the present attempt was over; None: it has not."""
        self.resumes = 0
        """How many of the later attempts went on with a begun answer."""
        self.produced: list[int] = []
        """All token ids of the answer so far, from whatever node."""
        self.arrived_s = 0.0
        self.decision: Decision | None = None
        """The last one."""
        self.decided_s: float | None = None
        """When it was carried out; the decision's own `decision_s` ends where the router began to choose."""
        self.node_id = ""
        """Where it was sent last; empty before the first dispatch."""
        self.pending: list[int] = []
        """Token ids that the reader has not taken."""
        self.pending_logprobs: list[TokenLogprobs] | None = [] if shape.logprobs else None
        """What is told of each of them, where that was asked for."""
        self.output_tokens = 0
        self.first_token_s: float | None = None
        self.finished_s: float | None = None
        self.cached_tokens = 0
        """Prompt tokens that the last node took from its prefix cache."""
        self.stop_token_id: int | None = None
        """Which of the ids to stop at ended the answer, if the engine says that one did."""
        self.outcome: Outcome | None = None
        """Set once: how it ended."""
        self.detail = ""
        self.retry_after_s: float | None = None
        """When the same request may be taken, if it was turned away for lack of room."""
        self.on_change: Callable[[], None] | None = None
        """Called instead of waking `changed`, by a reader that has no task of its own."""
        self._waiter: asyncio.Future[None] | None = None

    def put(self, token_ids: Sequence[int], now_s: float, logprobs: Sequence[TokenLogprobs] = ()) -> int:
        """New tokens from the node, and what it tells of each if that was asked for; how many of them belong to the
        answer (those after a stop string do not)."""
        if self.first_token_s is None:
            self.first_token_s = now_s
        if self.text is not None and (kept := self.text.push(token_ids)) < len(token_ids):
            token_ids = token_ids[:kept]
        self.output_tokens += len(token_ids)
        self.produced.extend(token_ids)
        self.pending.extend(token_ids)
        if self.pending_logprobs is not None:
            self.pending_logprobs.extend(logprobs[: len(token_ids)])
        self.wake()
        return len(token_ids)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self.text is not None and self.text.stopped

    @property
    def stop_reason(self) -> str | int | None:
        """The stop string or token id that ended the answer; None if something else did."""
        text = None if self.text is None else self.text.stopped_by
        return self.stop_token_id if text is None else text

    @property
    def decision_s(self) -> float | None:
        """Seconds from arrival to the (last) placement, all work included; None before it."""
        return None if self.decided_s is None else self.decided_s - self.arrived_s

    def placed(self, decision: Decision, now_s: float) -> None:
        self.decision = decision
        self.decided_s = now_s
        self.node_id = decision.node_id

    def end(self, outcome: Outcome, detail: str, now_s: float) -> None:
        """The one end. Raises AssertionError when it has ended before."""
        assert self.outcome is None, f"{self.shape.request_id} ended twice: {self.outcome}, then {outcome}"
        self.outcome, self.detail = outcome, detail
        self.finished_s = now_s
        if self.text is not None:
            self.text.finish()
        self.wake()

    def take(self) -> list[int]:
        """Hands the waiting token ids over."""
        taken, self.pending = self.pending, []
        return taken

    def take_logprobs(self) -> list[TokenLogprobs]:
        """Hands over what is told of the tokens that `take` hands over; empty where it was not asked for."""
        taken = self.pending_logprobs
        if not taken:
            return []
        self.pending_logprobs = []
        return taken

    async def changed(self) -> None:
        """Returns when there are tokens to take or the end has come; at once if so already. One reader only."""
        answer = self.answer
        if (
            self.pending
            or self.outcome is not None
            or (answer is not None and answer.has_begun and answer.unread_bytes)
        ):
            return
        await self._woken()

    async def decided(self) -> None:
        """Returns when it has a node or the end has come. One reader only."""
        while not self.node_id and self.outcome is None:
            await self._woken()

    def _woken(self) -> asyncio.Future[None]:
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        return waiter

    # --- what goes to a node ------------------------------------------------------------------------------------------

    @property
    def wire_id(self) -> str:
        """The request's name at its node, different in each attempt."""
        return attempt_id(self.shape.request_id, self.attempt)

    def sent(self, attempt: int, resumed: RequestShape | None) -> None:
        """Notes what a node is asked for now; `resumed` is what is left of a begun answer."""
        self.attempt = attempt
        self.asked = self.shape if resumed is None else resumed
        self.resumes += resumed is not None
        if self.answer is None or self.call is None:
            return
        if self.answer.has_begun:
            self.call.body = self.answer.go_on(self.output_tokens)
            self.call.body_bytes = len(self.call.body)
        else:
            self.answer.expect()

    def usage(self) -> Usage:
        """Prompt and answer, each counted once however many nodes had a part in it."""
        return Usage(
            prompt_tokens=self.shape.prompt_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=min(self.cached_tokens, self.shape.prompt_tokens),
        )

    def wake(self) -> None:
        """Tells the reader that there is something to take, or the end."""
        if self.on_change is not None:
            self.on_change()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

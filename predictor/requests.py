"""The requests that run through this daemon: from dispatch to the engine's last token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import msgspec
import structlog

from engine_adapters.answer_tokens import is_event_stream
from engine_adapters.base import EngineClient, EngineError, EngineFull, EngineOutput, EngineRequest, RequestRefused
from engine_adapters.forwarding import BodyFeed, ForwardCall, Forwarder, ReplyData, ReplyEnd, ReplyHead
from length_model.core.belief import DEFAULT_PRIOR, truncated
from predictor.asking import Asking
from predictor.core.node_predictor import NodePredictor
from predictor.core.traced_engine import TracedEngine
from predictor.notices import log_trust
from predictor.spans import NodeSpans
from protos.answer_status import outcome_of_status
from protos.runtime.otlp import Span, trace_id_of
from simcore.types import Candidate, LengthBelief, Outcome, TokenLogprobs

log = structlog.get_logger("predictor")

UNNAMED_PATH = "/responses"
"""Calls that vLLM names by an id of its own (`resp_...`), whatever their X-Request-Id."""


class WrongNode(EngineError):
    """This node does not take the request; nothing has failed, and another one may take it."""


class CannotForward(WrongNode):
    """The node's engine takes generated tokens only."""


class Retiring(WrongNode):
    """The node takes nothing new: it is to leave."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How a request ended here."""

    outcome: Outcome
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    """As the engine's answer says; 0 if it does not."""
    found_tokens: int | None = None
    """Of the prompt in the prefix cache, as the trace tells; None where it does not."""
    stop_token_id: int | None = None
    """As `EngineOutput.stop_token_id`."""
    detail: str = ""


Sink = Callable[[str, Sequence[int], End | None, Sequence[TokenLogprobs]], None]
"""Takes (request id, new token ids, how it ended or None, what is told of each token if that was asked for). Called on
the event loop; must not raise."""


class ForwardOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A call to be handed on, and what is believed of its work. A call without a prompt does none."""

    call: ForwardCall
    belief: LengthBelief | None


ReplySink = Callable[[str, ReplyHead | ReplyData | None, End | None], None]
"""Takes (request id, what came of the engine's own answer or None, how it ended or None). Called on the event loop;
must not raise."""


_NOTHING = EngineOutput(())


class _Running:
    """One request between the engine and its sink."""

    __slots__ = ("_owner", "_sink", "arrived_s", "first_s", "output_tokens", "request", "span")

    def __init__(self, owner: Requests, request: EngineRequest, sink: Sink) -> None:
        self._owner = owner
        self._sink = sink
        self.request = request
        self.span: Span | None = None
        self.arrived_s = time.monotonic()
        self.first_s: float | None = None
        self.output_tokens = 0

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def traceparent(self) -> str:
        return self.request.traceparent

    def __call__(self, request_id: str, output: EngineOutput | EngineError) -> None:
        if isinstance(output, EngineError):
            self._end(_outcome_of(output), detail=str(output))
            return
        tokens = output.token_ids
        if tokens:
            if self.first_s is None:
                self.first_s = time.monotonic()
                self._owner.predictor.first_token(request_id, self.first_s)
            self.output_tokens += len(tokens)
        if output.finish is None:
            self._sink(request_id, tokens, None, output.logprobs)
        elif output.finish != "aborted":
            self._end(Outcome(output.finish), tokens, output=output)
        elif self._owner.closing:
            self._end(Outcome.NODE_LOST, detail=f"node {self._owner.node_id} is shutting down")
        else:
            self._end(Outcome.CANCELLED, tokens, output=output)

    def _end(
        self,
        outcome: Outcome,
        tokens: Sequence[int] = (),
        detail: str = "",
        output: EngineOutput = _NOTHING,
    ) -> None:
        end = End(
            outcome=outcome,
            prompt_tokens=len(self.request.prompt_token_ids),
            output_tokens=self.output_tokens,
            cached_tokens=output.cached_tokens,
            found_tokens=self._owner.found_tokens(self.request_id),
            stop_token_id=output.stop_token_id,
            detail=detail,
        )
        self._owner.ended(self, end)
        self._sink(self.request.request_id, tokens, end, output.logprobs)


class _Forwarded:
    """One call between the engine's server and its sink."""

    __slots__ = ("_is_stream", "_owner", "_sink", "_status", "arrived_s", "call", "first_s", "output_tokens", "span")

    def __init__(self, owner: Requests, call: ForwardCall, sink: ReplySink) -> None:
        self._owner = owner
        self._sink = sink
        self._status = 0
        self._is_stream = False
        self.call = call
        self.span: Span | None = None
        self.arrived_s = time.monotonic()
        self.first_s: float | None = None
        self.output_tokens = 0

    @property
    def request_id(self) -> str:
        return self.call.request_id

    @property
    def traceparent(self) -> str:
        return _context_of(self.call)

    def __call__(self, request_id: str, reply: ReplyHead | ReplyData | ReplyEnd | EngineError) -> None:
        if isinstance(reply, ReplyData):
            self.output_tokens += reply.output_tokens
            # An answer that comes whole has its first token long behind it, the first events of others say nothing yet.
            if self.first_s is None and self._is_stream and reply.output_tokens:
                self.first_s = time.monotonic()
                self._owner.predictor.first_token(request_id, self.first_s)
            self._sink(request_id, reply, None)
        elif isinstance(reply, ReplyHead):
            self._status = reply.status
            self._is_stream = reply.status < 400 and is_event_stream(reply.headers)
            self._sink(request_id, reply, None)
        elif isinstance(reply, EngineError):
            self._end(_outcome_of(reply), ReplyEnd(), str(reply))
        elif not reply.aborted:
            outcome = outcome_of_status(self._status)
            detail = "" if outcome is Outcome.STOP else f"the engine's server answers {self._status}"
            self._end(Outcome.LENGTH if outcome is Outcome.STOP and reply.at_limit else outcome, reply, detail)
        elif self._owner.closing:
            self._end(Outcome.NODE_LOST, reply, f"node {self._owner.node_id} is shutting down")
        else:
            self._end(Outcome.CANCELLED, reply)

    def _end(self, outcome: Outcome, reply: ReplyEnd, detail: str = "") -> None:
        call = self.call
        if reply.output_tokens is not None:
            self.output_tokens = reply.output_tokens
        end = End(
            outcome=outcome,
            prompt_tokens=call.prompt_tokens if reply.prompt_tokens is None else reply.prompt_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=reply.cached_tokens,
            found_tokens=self._owner.found_tokens(call.request_id),
            detail=detail,
        )
        self._owner.ended(self, end)
        self._sink(call.request_id, None, end)


def _context_of(call: ForwardCall) -> str:
    return next((value for name, value in call.headers if name == "traceparent"), "")


def _outcome_of(error: EngineError) -> Outcome:
    if isinstance(error, RequestRefused):
        return Outcome.INVALID
    return Outcome.OVERLOADED if isinstance(error, EngineFull) else Outcome.ENGINE_FAILED


class Requests:
    """All methods run on the event loop."""

    def __init__(
        self,
        node_id: str,
        client: EngineClient,
        engine: TracedEngine,
        predictor: NodePredictor,
        asking: Asking,
        on_change: Callable[[], None],
        spans: NodeSpans | None = None,
    ) -> None:
        """`on_change` is called when what is known of the node has changed. `spans`: where each request has one."""
        self.node_id = node_id
        self.predictor = predictor
        self.closing = False
        """From then on none is taken, and those that the engine aborts are lost with the node."""
        self.retiring = False
        """While it is so none is taken; those that run go on."""
        self._client = client
        self._engine = engine
        self._asking = asking
        self._on_change = on_change
        self._spans = spans
        self._forwarder = cast(Forwarder, client) if client.capabilities.forwards else None
        self._running: dict[str, _Running | _Forwarded] = {}
        self._aborts: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def dispatch(self, request: EngineRequest, belief: LengthBelief | None, sink: Sink) -> None:
        """Hands it to the engine. Raises RequestRefused, Retiring or EngineError; then the sink is never called."""
        request_id = request.request_id
        self._check_name(request_id)
        if request.emulated_output_tokens and not self._client.capabilities.settable_length:
            raise RequestRefused("emulated_output_tokens is for emulated engines; leave it out, or use ignore_eos")
        if request.logprobs is not None and not self._client.capabilities.logprobs:
            raise RequestRefused("the engine cannot tell logprobs by tokens; leave logprobs out")
        self.check_open()
        span = None
        if self._spans is not None:
            span, context = self._spans.begin(request.traceparent)
            request = msgspec.structs.replace(request, traceparent=context)
        running = _Running(self, request, sink)
        running.span = span
        self._client.submit(request, running)
        self._running[request_id] = running
        candidate = Candidate(
            request_id=request_id,
            prompt_tokens=len(request.prompt_token_ids),
            max_output_tokens=request.max_tokens,
            belief=truncated(belief or DEFAULT_PRIOR, request.max_tokens),
            priority=request.priority,
            model=request.model,
        )
        self.predictor.dispatched(candidate, running.arrived_s, busy=self._asking.is_busy)
        self._on_change()

    def forward(self, order: ForwardOrder, body: BodyFeed, sink: ReplySink) -> None:
        """Hands a call on to the engine's server. Raises RequestRefused, WrongNode or EngineError; then the sink is
        never called."""
        call = order.call
        self._check_name(call.request_id)
        if self._forwarder is None:
            raise CannotForward(f"the engine of node {self.node_id} takes no calls as their clients made them")
        self.check_open()
        span = None
        if self._spans is not None:
            span, context = self._spans.begin(_context_of(call))
            others = tuple(line for line in call.headers if line[0] != "traceparent")
            call = msgspec.structs.replace(call, headers=(*others, ("traceparent", context)))
        forwarded = _Forwarded(self, call, sink)
        forwarded.span = span
        self._forwarder.forward(call, body, forwarded)
        self._running[call.request_id] = forwarded
        if call.prompt_tokens:
            limit_tokens = max(1, call.max_output_tokens)
            candidate = Candidate(
                request_id=call.request_id,
                prompt_tokens=call.prompt_tokens,
                max_output_tokens=limit_tokens,
                belief=truncated(order.belief or DEFAULT_PRIOR, limit_tokens),
                priority=call.priority,
                model=call.model,
            )
            self.predictor.dispatched(candidate, forwarded.arrived_s, busy=self._asking.is_busy)
            if call.target.partition("?")[0].endswith(UNNAMED_PATH):
                self._engine.comes_unnamed(call.request_id)
            self._on_change()

    def hold(self, request_id: str, held: bool) -> None:
        """Stops reading a forwarded call's answer, or goes on with it."""
        if self._forwarder is not None:
            self._forwarder.hold(request_id, held)

    async def abort(self, request_id: str) -> bool:
        """False: the engine has no such request."""
        return await self._client.abort(request_id)

    def abandon(self, request_ids: Iterable[str]) -> None:
        """Aborts requests whose owner has gone, without waiting for the engine."""
        for request_id in request_ids:
            task = asyncio.create_task(self._abandon(request_id))
            self._aborts.add(task)
            task.add_done_callback(self._aborts.discard)

    def found_tokens(self, request_id: str) -> int | None:
        """Tokens of its prompt that the engine found cached; None where the trace does not tell."""
        return self._engine.found_tokens(request_id)

    def ended(self, running: _Running | _Forwarded, end: End) -> None:
        """The engine has ended it, well or badly."""
        now_s = time.monotonic()
        request_id = running.request_id
        del self._running[request_id]
        # Neither an answer whose tokens nobody has counted nor several at once say how long those of one take.
        is_one = end.output_tokens > 0 and self._engine.names(request_id) <= 1
        complete = is_one and end.outcome in (Outcome.STOP, Outcome.LENGTH)
        if self.predictor.ended(request_id, now_s, complete=complete, output_tokens=end.output_tokens):
            log_trust(self.predictor.calibration)
        self._on_change()
        log.info(
            "request finished",
            request_id=request_id,
            outcome=end.outcome.value,
            prompt_tokens=end.prompt_tokens,
            output_tokens=end.output_tokens,
            ttft_s=None if running.first_s is None else round(running.first_s - running.arrived_s, 6),
            e2e_s=round(now_s - running.arrived_s, 6),
            **({"detail": end.detail} if end.detail else {}),
            **({"trace_id": trace_id_of(running.traceparent)} if running.traceparent else {}),
        )
        if self._spans is not None and running.span is not None:
            self._spans.end(
                running.span,
                request_id=request_id,
                outcome=end.outcome.value,
                complete=end.outcome in (Outcome.STOP, Outcome.LENGTH),
                prompt_tokens=end.prompt_tokens,
                output_tokens=end.output_tokens,
                first_token_s=running.first_s,
            )

    def check_open(self) -> None:
        """Raises EngineError unless new requests are taken (Retiring: they are not, though nothing is wrong)."""
        if self.closing:
            raise EngineError(f"node {self.node_id} is shutting down")
        if self.retiring:
            raise Retiring(f"node {self.node_id} is to leave and takes nothing new")

    async def close(self) -> None:
        """Lets go of aborts that are on their way. The engine is closed by then and has ended everything."""
        for task in self._aborts:
            task.cancel()
        await asyncio.gather(*self._aborts, return_exceptions=True)

    def _check_name(self, request_id: str) -> None:
        if not request_id:
            raise RequestRefused("request_id is empty; give each request a name of its own")
        if request_id in self._running:
            raise RequestRefused(f"request {request_id!r} runs here already; give each request a name of its own")

    async def _abandon(self, request_id: str) -> None:
        try:
            await self._client.abort(request_id)
        except EngineError as error:
            log.warning("abort failed", request_id=request_id, detail=str(error))

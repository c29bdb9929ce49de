"""The one way in: what every front does between a parsed call and a request that runs, and what it owes afterwards."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence

import msgspec

from engine_adapters.tokenizer import Tokenizer
from gateway.core.events import RequestShape
from gateway.core.outcomes import Denial
from gateway.intake import admission
from gateway.intake.admission import Refused, Sizes, invalid
from gateway.intake.answer_text import AnswerText
from gateway.intake.callers import ANYONE, Caller, require
from gateway.intake.claims import Claims
from gateway.intake.client_stream import ClientStream
from gateway.intake.lengths import LengthDesk, Question
from gateway.intake.quotas import Quotas
from gateway.nodes.table import NodeTable
from gateway.pump import Pump
from length_model.sharegpt import Turn
from protos.v1 import astrolabe_dispatch_pb2 as pb
from simcore.prefix import block_hashes

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""https://www.w3.org/TR/trace-context/#traceparent-header; one of any other form is dropped, as it says there."""


class Admitted:
    """A request that runs. Whoever got it calls `close` once nobody reads the answer any more."""

    __slots__ = ("_intake", "caller", "idempotency_key", "stream")

    def __init__(self, intake: Intake, stream: ClientStream, caller: Caller, idempotency_key: str) -> None:
        self._intake: Intake | None = intake
        self.stream = stream
        self.caller = caller
        self.idempotency_key = idempotency_key

    def close(self) -> None:
        """Gives back what the request held; if it still runs, its client has left. Idempotent."""
        intake, self._intake = self._intake, None
        if intake is not None:
            intake.closed(self)


class Intake:
    """One instance serves all fronts of a gateway."""

    def __init__(
        self,
        *,
        pump: Pump,
        nodes: NodeTable,
        tokenizer: Tokenizer,
        lengths: LengthDesk,
        quotas: Quotas,
        claims: Claims,
        max_prompt_tokens: int,
        denied: Callable[[Denial], None],
        begins: Callable[[ClientStream], None] = lambda _stream: None,
    ) -> None:
        """`denied` is told of each call that a front turns away, `begins` of each request before it is submitted."""
        self.tokenizer = tokenizer
        self.closing = asyncio.Event()
        """Set: the gateway takes no more requests."""
        self.calls = 0
        """How many have come in, those refused included."""
        self._pump = pump
        self._nodes = nodes
        self._lengths = lengths
        self._quotas = quotas
        self._claims = claims
        self._max_prompt_tokens = max_prompt_tokens
        self.denied = denied
        self._begins = begins
        self._owners: dict[str, str] = {}
        """Callers of live requests, by request id."""

    async def admit(
        self,
        request: pb.GenerateRequest,
        prompt: str | Sequence[int],
        *,
        caller: Caller = ANYONE,
        request_id: str = "",
        call_deadline_s: float | None = None,
        history: Sequence[Turn] = (),
        question: str = "",
    ) -> Admitted:
        """Checks and submits. The request's own prompt field is not looked at: `prompt` is the prompt.

        `request_id` is the header's, `call_deadline_s` the call's own time limit; `question` and `history` are the
        conversation as far as it is known, for the length model. Raises Refused.
        """
        require(caller, "client")
        self._check_open()
        request_id = admission.request_id_of(request.request_id, request_id)
        admission.check_sampling(request.sampling)
        self._quotas.enter(caller, time.monotonic())
        try:
            stream = await self._stream(request, prompt, request_id, call_deadline_s, history, question)
            # No await from here on: whoever comes first with an id or a key has it.
            self._check_new(request_id)
            if request.idempotency_key:
                self._claims.claim(f"{caller.name}:{request.idempotency_key}", request_id)
        except BaseException:
            self._quotas.leave(caller)
            raise
        admitted = Admitted(self, stream, caller, request.idempotency_key)
        self._owners[request_id] = caller.name
        self._begins(stream)
        self._pump.submit(stream)
        return admitted

    async def place(self, request: pb.PlaceRequest, *, caller: Caller = ANYONE, request_id: str = "") -> Admitted:
        """As `admit`, for a decision only. Raises Refused."""
        require(caller, "client")
        self._check_open()
        request_id = admission.request_id_of(request.request_id, request_id)
        kind = request.WhichOneof("prompt")
        token_ids: Sequence[int] = ()
        if kind is not None:
            token_ids = await self._token_ids(request.text if kind == "text" else request.token_ids.ids)
            request.prompt_tokens = len(token_ids)
        shape = self._with_hashes(admission.place_shape(request, request_id=request_id), token_ids)
        stream = ClientStream(shape)
        self._check_new(request_id)
        self._quotas.enter(caller, time.monotonic())
        admitted = Admitted(self, stream, caller, "")
        self._owners[request_id] = caller.name
        self._pump.submit(stream)
        return admitted

    def closed(self, admitted: Admitted) -> None:
        """Called by `Admitted.close`."""
        request_id = admitted.stream.shape.request_id
        self._owners.pop(request_id, None)
        if admitted.idempotency_key:
            self._claims.release(f"{admitted.caller.name}:{admitted.idempotency_key}")
        self._quotas.leave(admitted.caller)
        if admitted.stream.outcome is None:
            self._pump.client_left(request_id)

    def owner_of(self, request_id: str) -> str | None:
        """The caller of a live request; None if there is no such request."""
        return self._owners.get(request_id)

    async def _stream(
        self,
        request: pb.GenerateRequest,
        prompt: str | Sequence[int],
        request_id: str,
        call_deadline_s: float | None,
        history: Sequence[Turn],
        question: str,
    ) -> ClientStream:
        token_ids = await self._token_ids(prompt)
        sampling = request.sampling
        sizes = Sizes(len(token_ids), self._limit(request, len(token_ids)))
        expected = await self._lengths.expect(
            Question(
                text=question or (prompt if isinstance(prompt, str) else ""),
                token_ids=token_ids,
                history=history,
                model=request.model,
            ),
            said=admission.said_belief(request.belief),
            max_tokens=sizes.max_output_tokens,
            runs_to_limit=admission.runs_to_limit(sampling),
        )
        shape: RequestShape = admission.generate_shape(
            request, request_id=request_id, sizes=sizes, expected=expected, call_deadline_s=call_deadline_s
        )
        shape = self._with_hashes(shape, token_ids)
        text = AnswerText(self.tokenizer, tuple(sampling.stop))
        # Stop strings are looked for here, in the text as the client sees it; the engine never hears of them.
        del sampling.stop[:]
        sampling.max_tokens = shape.max_output_tokens
        return ClientStream(
            shape,
            prompt_token_ids=token_ids,
            sampling=sampling,
            forecast=expected.forecast,
            text=text,
            traceparent=request.traceparent if _TRACEPARENT.fullmatch(request.traceparent) else "",
        )

    def _with_hashes(self, shape: RequestShape, token_ids: Sequence[int]) -> RequestShape:
        """What the prompt's blocks are called in the nodes' caches, where a node tells of its cache."""
        if not token_ids or not (block_size_tokens := self._nodes.traced_block_size_tokens(shape.model)):
            return shape
        return msgspec.structs.replace(shape, block_hashes=block_hashes(token_ids, block_size_tokens))

    async def _token_ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        token_ids: Sequence[int]
        if not isinstance(prompt, str):
            token_ids = prompt
        elif len(prompt) > admission.MAX_TEXT_CHARS_INLINE:
            token_ids = await asyncio.to_thread(self.tokenizer.encode, prompt)
        else:
            token_ids = self.tokenizer.encode(prompt)
        if not token_ids:
            raise invalid("the prompt is empty; send text or token_ids with at least one token", param="prompt")
        if len(token_ids) > self._max_prompt_tokens:
            raise Refused(
                Denial.TOO_LARGE,
                f"the prompt has {len(token_ids)} tokens, the gateway takes {self._max_prompt_tokens} "
                "(max_prompt_tokens); shorten it",
                param="prompt",
            )
        return token_ids

    def _limit(self, request: pb.GenerateRequest, prompt_tokens: int) -> int:
        """max_tokens, or what the context leaves. A prompt that fills the context keeps a limit of 1, for the router to
        refuse with the numbers; so does a request that no live node could serve."""
        if request.sampling.HasField("max_tokens"):
            return request.sampling.max_tokens
        return max(1, (self._nodes.max_model_len_tokens(request.model) or 0) - prompt_tokens)

    def _check_open(self) -> None:
        self.calls += 1
        if self.closing.is_set():
            raise Refused(Denial.SHUTTING_DOWN, "the gateway is shutting down; try another one", retry_after_s=1.0)

    def _check_new(self, request_id: str) -> None:
        if request_id in self._pump.streams:
            raise Refused(
                Denial.DUPLICATE, f"request {request_id!r} is running; give each request its own id", param="request_id"
            )

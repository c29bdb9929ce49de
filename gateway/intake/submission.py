"""Submitting requests to the router: what every front does between a parsed call and a request that runs, and what it
owes afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import NamedTuple

import msgspec

from engine_adapters.chat_template import TemplateError
from engine_adapters.tokenizer import Tokenizer
from gateway.core.events import RequestShape
from gateway.core.outcomes import Denial
from gateway.intake import checks
from gateway.intake.answer_text import AnswerText
from gateway.intake.call_facts import CallFacts, estimated_tokens, written_out
from gateway.intake.callers import ANYONE, Caller, check_priority, require
from gateway.intake.claims import Claims
from gateway.intake.client_call import STANDSTILL_S, ClientCall
from gateway.intake.client_request import ClientRequest, Sampling
from gateway.intake.client_stream import ClientStream
from gateway.intake.denied import Denied, invalid
from gateway.intake.engine_counts import EngineCounts
from gateway.intake.lengths import ExpectedLength, LengthDesk, Question, expected_without_model
from gateway.intake.quotas import Quotas
from gateway.intake.resumable_answer import ResumableAnswer
from gateway.nodes.registry import NodeRegistry
from gateway.pump import Pump
from length_model.core.belief import known
from length_model.core.query import TOOLS_CLASS
from simcore.prefix import block_hashes
from simcore.types import LengthBelief, Outcome

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""https://www.w3.org/TR/trace-context/#traceparent-header; one of any other form is dropped, as it says there."""


NO_SEED = -1
"""What vLLM takes for none."""
MOST_CHARS_COUNTED = 2_000_000
"""Of longer texts the tokens are estimated."""


class CountedPrompt(NamedTuple):
    """How long a call's prompt is."""

    tokens: int
    by: str
    """As `RequestShape.prompt_counted_by`."""
    token_ids: Sequence[int] = ()
    """What was counted, as far as it was."""


class Intake:
    """One instance serves all fronts of a gateway."""

    def __init__(
        self,
        *,
        pump: Pump,
        nodes: NodeRegistry,
        tokenizer: Tokenizer,
        lengths: LengthDesk,
        quotas: Quotas,
        claims: Claims,
        max_prompt_tokens: int,
        tokenizer_models: Collection[str] = (),
        count_within_s: float = 0.0,
        on_denial: Callable[[Denial], None],
        on_begin: Callable[[ClientStream], None] = lambda _stream: None,
    ) -> None:
        """`tokenizer_models`: those that the tokenizer knows, by their engines' own names; empty: all. Others' engines
        are asked for their tokens, for at most `count_within_s`. `on_denial` gets each call that a front turns away,
        `on_begin` each request before it is submitted."""
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
        self._tokenizer_models = frozenset(tokenizer_models)
        self._engine_counts = EngineCounts(
            self.forward, consumed=self.consumed, close=self.close, within_s=count_within_s
        )
        self.on_denial = on_denial
        self._on_begin = on_begin

    async def admit(self, request: ClientRequest, caller: Caller = ANYONE) -> ClientStream:
        """Checks and submits; whoever gets the stream calls `close` once nobody reads it any more. Raises Denied."""
        (stream,) = await self.admit_all(request, caller)
        return stream

    async def admit_all(self, request: ClientRequest, caller: Caller = ANYONE) -> list[ClientStream]:
        """Checks and submits a request for one answer or several, each of which is placed and goes on by itself.

        `close` is owed for each stream. The first has the request's own id. Raises Denied.
        """
        require(caller, "client")
        check_priority(caller, request.priority)
        self._check_open()
        request_id = checks.request_id_of(request.request_id)
        checks.check_sampling(request.sampling)
        checks.check_answers(request)
        self.check_model(request.model)
        if isinstance(request.prompt, str):
            self.check_tokenizer(request.model)
        if request.sampling.logprobs is not None and not self._nodes.tells_logprobs(request.model):
            raise Denied(
                Denial.UNSUPPORTED, "logprobs is not supported by any node here; leave it out", param="logprobs"
            )

        async def make() -> list[ClientStream]:
            first = await self._stream(request, request_id, caller)
            return [first, *(self._another(first, number) for number in range(1, request.answers))]

        return await self._submit(make, caller)

    async def forward(
        self, call: ClientCall, facts: CallFacts, caller: Caller = ANYONE, *, node: str = ""
    ) -> ClientStream:
        """Submits a client's own call, to be handed on as it is; whoever gets the stream calls `close` once nobody
        reads it any more. `node`: the only one that may have it; empty: any. Raises Denied."""
        require(caller, "client")
        check_priority(caller, facts.priority)
        self._check_open()
        request_id = checks.request_id_of(facts.request_id)
        self.check_model(facts.model)

        async def make() -> list[ClientStream]:
            return [await self._call_stream(call, facts, request_id, caller, node)]

        (stream,) = await self._submit(make, caller)
        return stream

    async def place_call(
        self, facts: CallFacts, caller: Caller = ANYONE, *, endpoints: tuple[str, ...] | None, is_unnamed: bool
    ) -> ClientStream:
        """Submits a client's own call that a proxy takes to the engine of the node that it is placed at; `close` is
        owed, and what the proxy sees of the answer is told by `seen` and `seen_end`. `endpoints`: the only
        engines that may have it; None: any. `is_unnamed`: its engine gives it a name of its own. Raises Denied."""
        require(caller, "client")
        check_priority(caller, facts.priority)
        self._check_open()
        request_id = checks.request_id_of(facts.request_id)
        self.check_model(facts.model)
        # Whoever brings it, nobody could end it there when its time is over.
        facts.slo = msgspec.structs.replace(facts.slo, deadline_s=None)

        async def make() -> list[ClientStream]:
            shape, expected = await self._call_shape(facts, request_id, caller)
            shape = msgspec.structs.replace(shape, lane="by_proxy", resume="off", endpoints=endpoints)
            stream = ClientStream(
                shape,
                caller=caller,
                idempotency_key=facts.idempotency_key,
                basis=expected.basis if facts.answers == 1 else None,
            )
            stream.is_unnamed = is_unnamed
            return [stream]

        (stream,) = await self._submit(make, caller)
        return stream

    async def _submit(self, make: Callable[[], Awaitable[list[ClientStream]]], caller: Caller) -> list[ClientStream]:
        self._quotas.enter(caller, time.monotonic())
        try:
            streams = await make()
            first = streams[0]
            # No await from here on: whoever comes first with an id or a key has it.
            for stream in streams:
                self._check_new(stream.shape.request_id)
            if first.idempotency_key:
                self._claims.claim(f"{caller.name}:{first.idempotency_key}", first.shape.request_id)
        except BaseException:
            self._quotas.leave(caller)
            raise
        for stream in streams:
            if stream.call is None or not stream.call.is_aside:
                self._on_begin(stream)
            self._pump.submit(stream)
        return streams

    async def place(self, request: ClientRequest, caller: Caller = ANYONE) -> ClientStream:
        """Checks and submits a request (as `admit`) for a decision only. Raises Denied."""
        require(caller, "client")
        check_priority(caller, request.priority)
        self._check_open()
        request_id = checks.request_id_of(request.request_id)
        self.check_model(request.model)
        token_ids: Sequence[int] = ()
        prompt_tokens = request.prompt_tokens
        if request.prompt is not None:
            token_ids = await self._token_ids(request.prompt)
            prompt_tokens = len(token_ids)
        max_output_tokens = checks.check_placement(request, prompt_tokens)
        shape = checks.request_shape(
            request,
            request_id=request_id,
            prompt_tokens=prompt_tokens,
            max_output_tokens=max_output_tokens,
            expected=expected_without_model(checks.said_belief(request.belief_tokens), max_output_tokens),
            place_only=True,
        )
        stream = ClientStream(self._with_hashes(shape, token_ids), caller=caller)
        self._check_new(request_id)
        self._quotas.enter(caller, time.monotonic())
        self._pump.submit(stream)
        return stream

    def forwards(self, model: str) -> bool:
        """Whether a live node hands calls for the model (any, if it is empty) on as they are."""
        return self._nodes.forwards(model)

    def seen(self, stream: ClientStream, output_tokens: int, *, is_streamed: bool) -> None:
        """As `Pump.seen`."""
        self._pump.seen(stream, output_tokens, is_streamed=is_streamed)

    def seen_end(self, stream: ClientStream, outcome: Outcome, *, cached_tokens: int = 0, detail: str = "") -> None:
        """As `Pump.seen_end`."""
        self._pump.seen_end(stream, outcome, cached_tokens=cached_tokens, detail=detail)

    def consumed(self, stream: ClientStream) -> None:
        """Some of a call's answer has been taken from its stream."""
        self._pump.consumed(stream)

    def expel(self, stream: ClientStream, outcome: Outcome, detail: str) -> None:
        """Ends a request for a reason of the front's own."""
        self._pump.expel(stream, outcome, detail)

    def give_up_reader(self, stream: ClientStream) -> None:
        """Ends a call whose client has read nothing for `STANDSTILL_S`."""
        self.expel(stream, Outcome.CLIENT_SLOW, f"the client has read nothing for {STANDSTILL_S:g} s; read faster")

    def close(self, stream: ClientStream) -> None:
        """Gives back what an admitted request held; if it still runs, its client has left. Idempotent."""
        if stream.closed:
            return
        stream.closed = True
        if stream.idempotency_key:
            self._claims.release(f"{stream.caller.name}:{stream.idempotency_key}")
        if not stream.is_extra:
            self._quotas.leave(stream.caller)
        if stream.outcome is None:
            self._pump.client_left(stream.shape.request_id)

    def owner_of(self, request_id: str) -> str | None:
        """The name of a live request's caller; None if there is no such request."""
        stream = self._pump.streams.get(request_id)
        return None if stream is None else stream.caller.name

    async def _stream(self, request: ClientRequest, request_id: str, caller: Caller) -> ClientStream:
        prompt, sampling = request.prompt or "", request.sampling
        token_ids = await self._token_ids(prompt)
        max_output_tokens = self._limit(request, len(token_ids))
        expected = await self._lengths.expect(
            Question(
                text=request.question or (prompt if isinstance(prompt, str) else ""),
                token_ids=token_ids,
                history=request.history,
                model=request.model,
            ),
            said=checks.said_belief(request.belief_tokens),
            max_tokens=max_output_tokens,
            runs_to_limit=checks.runs_to_limit(sampling),
            caller=caller.name,
        )
        shape = checks.request_shape(
            request,
            request_id=request_id,
            prompt_tokens=len(token_ids),
            max_output_tokens=max_output_tokens,
            expected=expected,
        )
        return ClientStream(
            self._with_hashes(shape, token_ids),
            caller=caller,
            idempotency_key=request.idempotency_key,
            prompt_token_ids=token_ids,
            sampling=sampling,
            basis=expected.basis,
            text=self._text(sampling),
            traceparent=request.traceparent if _TRACEPARENT.fullmatch(request.traceparent) else "",
        )

    def _another(self, first: ClientStream, number: int) -> ClientStream:
        """The same request for one more answer: with the next seed, as vLLM has it."""
        shape, sampling = first.shape, first.sampling
        if sampling.seed is not None and sampling.seed != NO_SEED:
            sampling = msgspec.structs.replace(sampling, seed=sampling.seed + number)
        another = ClientStream(
            msgspec.structs.replace(shape, request_id=f"{shape.request_id}#{number}"),
            caller=first.caller,
            prompt_token_ids=first.prompt_token_ids,
            sampling=sampling,
            text=self._text(sampling),
            traceparent=first.traceparent,
        )
        another.is_extra = True
        return another

    def _text(self, sampling: Sampling) -> AnswerText:
        return AnswerText(
            self.tokenizer,
            tuple(sampling.stop),
            stop_token_ids=sampling.stop_token_ids,
            min_tokens=sampling.min_tokens,
        )

    async def _call_stream(
        self, call: ClientCall, facts: CallFacts, request_id: str, caller: Caller, node: str
    ) -> ClientStream:
        shape, expected = await self._call_shape(facts, request_id, caller)
        can_go_on = facts.can_go_on
        if can_go_on and facts.resume == "best_effort":
            try:
                call.resumable = ResumableAnswer(call.body)
            except ValueError:
                can_go_on = False
        shape = msgspec.structs.replace(
            shape, lane="pass_through", continuation="approximate" if can_go_on else "impossible", node=node
        )
        traceparent = next((value for name, value in call.headers if name == "traceparent"), "")
        call.headers = tuple(line for line in call.headers if line[0] != "traceparent")
        return ClientStream(
            shape,
            caller=caller,
            idempotency_key=facts.idempotency_key,
            # Tokens of several answers together teach nothing of the length of one.
            basis=expected.basis if facts.answers == 1 else None,
            traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else "",
            call=call,
        )

    async def _call_shape(
        self, facts: CallFacts, request_id: str, caller: Caller
    ) -> tuple[RequestShape, ExpectedLength]:
        """What the router gets to see of a client's own call but for how it goes to its engine, and what is believed
        of one of its answers."""
        counted = await self._counted(facts)
        longest_tokens = self._nodes.max_model_len_tokens(facts.model) or counted.tokens + 1
        # An engine cuts or refuses what is longer; forecasts are of what it can run.
        prompt_tokens = min(counted.tokens, max(1, longest_tokens - 1))
        left_tokens = max(1, longest_tokens - prompt_tokens)
        limit_tokens = min(facts.max_output_tokens or left_tokens, left_tokens)
        said = checks.said_belief(facts.belief_tokens)
        if limit_tokens == 1:
            expected = ExpectedLength(belief=known(1), source="limit: one step")
        else:
            expected = await self._lengths.expect(
                Question(
                    text=facts.question or "\n".join(facts.prompt.texts),
                    token_ids=facts.prompt.token_ids,
                    history=facts.history,
                    model=facts.model,
                    request_class=TOOLS_CLASS if facts.offers_tools else "",
                ),
                said=said,
                max_tokens=limit_tokens,
                runs_to_limit=facts.runs_to_limit,
                caller=caller.name,
            )
        answers = facts.answers
        request = ClientRequest(
            model=facts.model,
            priority=facts.priority,
            session=facts.session,
            slo=facts.slo,
            policy=facts.policy,
            resume=facts.resume or "exact",
        )
        shape = checks.request_shape(
            request,
            request_id=request_id,
            prompt_tokens=prompt_tokens,
            max_output_tokens=limit_tokens * answers,
            expected=expected,
        )
        belief = shape.belief
        if answers > 1:
            belief = LengthBelief(tuple(atom * answers for atom in belief.atoms_tokens))
        shape = msgspec.structs.replace(shape, belief=belief, prompt_counted_by=counted.by, answers=answers)
        return self._with_hashes(shape, counted.token_ids), expected

    async def _counted(self, facts: CallFacts) -> CountedPrompt:
        prompt = facts.prompt
        texts = (*written_out(facts), *prompt.texts)
        chars = sum(map(len, texts))
        is_short = not prompt.unread_bytes and chars <= MOST_CHARS_COUNTED
        is_known = not chars or self.knows_tokens(facts.model)
        if is_short and is_known:
            with contextlib.suppress(TemplateError):
                return await self._by_tokenizer(facts, chars)
        # What pictures come to, servers find out later.
        if is_short and not prompt.media_tokens and (said := await self._engine_counts.count(facts)) is not None:
            return CountedPrompt(said.count + len(prompt.token_ids), "engine", said.tokens)
        if is_short and is_known:
            return await self._by_tokenizer(facts, chars, by_template=False)
        estimate = estimated_tokens(texts, prompt.unread_bytes)
        return CountedPrompt(max(1, estimate + len(prompt.token_ids) + prompt.media_tokens), "length")

    async def _by_tokenizer(self, facts: CallFacts, chars: int, *, by_template: bool = True) -> CountedPrompt:
        """Raises TemplateError."""
        if chars > checks.MAX_TEXT_CHARS_INLINE:
            token_ids = await asyncio.to_thread(self._encode, facts, by_template=by_template)
        else:
            token_ids = self._encode(facts, by_template=by_template)
        media_tokens = facts.prompt.media_tokens
        return CountedPrompt(
            max(1, len(token_ids) + media_tokens), "length" if media_tokens else "tokenizer", token_ids
        )

    def _encode(self, facts: CallFacts, *, by_template: bool) -> list[int]:
        """What an engine with the gateway's tokenizer gets to see of the prompt, without pictures. Raises
        TemplateError."""
        token_ids: list[int] = []
        if facts.turns and by_template:
            token_ids = self.tokenizer.apply_chat_template(facts.turns, facts.tools)
        elif facts.turns:
            token_ids = self.tokenizer.encode("\n".join(written_out(facts)))
        token_ids += facts.prompt.token_ids
        for text in facts.prompt.texts:
            token_ids += self.tokenizer.encode(text)
        return token_ids

    def _with_hashes(self, shape: RequestShape, token_ids: Sequence[int]) -> RequestShape:
        """What the prompt's blocks are called in the nodes' caches, where a node tells of its cache."""
        if not token_ids or not (block_size_tokens := self._nodes.traced_block_size_tokens(shape.model)):
            return shape
        return msgspec.structs.replace(shape, block_hashes=block_hashes(token_ids, block_size_tokens))

    async def _token_ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        token_ids: Sequence[int]
        if not isinstance(prompt, str):
            token_ids = prompt
        elif len(prompt) > checks.MAX_TEXT_CHARS_INLINE:
            token_ids = await asyncio.to_thread(self.tokenizer.encode, prompt)
        else:
            token_ids = self.tokenizer.encode(prompt)
        if not token_ids:
            raise invalid("the prompt is empty; send text or token_ids with at least one token", param="prompt")
        if len(token_ids) > self._max_prompt_tokens:
            raise Denied(
                Denial.TOO_LARGE,
                f"the prompt has {len(token_ids)} tokens, the gateway takes {self._max_prompt_tokens} "
                "(max_prompt_tokens); shorten it",
                param="prompt",
            )
        return token_ids

    def _limit(self, request: ClientRequest, prompt_tokens: int) -> int:
        """max_tokens, or what the context leaves. A prompt that fills the context keeps a limit of 1, for the router to
        refuse with the numbers; so does a request that no live node could serve."""
        if request.sampling.max_tokens is not None:
            return request.sampling.max_tokens
        return max(1, (self._nodes.max_model_len_tokens(request.model) or 0) - prompt_tokens)

    def _check_open(self) -> None:
        self.calls += 1
        if self.closing.is_set():
            raise Denied(Denial.SHUTTING_DOWN, "the gateway is shutting down; try another one", retry_after_s=1.0)

    def knows_tokens(self, model: str) -> bool:
        """Whether the tokenizer is that of the model, or of the one that an adapter belongs to; empty: of all."""
        known = self._tokenizer_models
        return not known or model in known or (bool(own := self._nodes.own_names(model)) and own <= known)

    def check_tokenizer(self, model: str) -> None:
        """Raises Denied for a model whose tokens the gateway does not know."""
        if not self.knows_tokens(model):
            raise Denied(
                Denial.UNSUPPORTED,
                f"the gateway's tokenizer is not that of {model or 'all models'!r} (tokenizer_models), and no node of "
                "it hands calls on as they are; send token ids over gRPC",
                param="model",
            )

    def awaited_in_s(self, stream: ClientStream) -> float | None:
        """How long until a node comes for this request, if it waits for one that is not there yet; else None."""
        return self._pump.awaited_in_s(stream)

    def check_model(self, model: str) -> None:
        """Raises Denied for a model that no node could serve."""
        if why := self._pump.router.why_unknown(model):
            raise Denied(Denial.MODEL_NOT_FOUND, why, param="model")

    def _check_new(self, request_id: str) -> None:
        if request_id in self._pump.streams:
            raise Denied(
                Denial.DUPLICATE, f"request {request_id!r} is running; give each request its own id", param="request_id"
            )

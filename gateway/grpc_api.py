"""The `Dispatch` service: translates between calls and the pump. A refusal says what is wrong and how to mend it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio

from engine_adapters.tokenizer import StreamDecoder, Tokenizer
from gateway import admission
from gateway.admission import Refused, Sizes, invalid
from gateway.client_stream import ClientStream
from gateway.core.events import DrainAsked, PolicySet
from gateway.core.outcomes import CODES, COMPLETE
from gateway.lengths import LengthDesk, Question
from gateway.node_table import NodeTable
from gateway.pump import Pump
from protos import codec
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchServicer
from simcore.types import Outcome

_STATUS = {code.value[0]: code for code in grpc.StatusCode}
Context = Any
"""grpc.aio.ServicerContext; its published types do not cover what is used here."""

DEFAULT_WATCH_S = 1.0
LEAST_WATCH_S = 0.05


class DispatchApi(DispatchServicer):
    """One instance serves all calls of a gateway."""

    def __init__(self, *, pump: Pump, nodes: NodeTable, tokenizer: Tokenizer, lengths: LengthDesk) -> None:
        self._pump = pump
        self._nodes = nodes
        self._tokenizer = tokenizer
        self._lengths = lengths
        self._keys: dict[str, str] = {}
        """Idempotency keys of live requests, with the request's id."""
        self._closing = asyncio.Event()

    def close(self) -> None:
        """From now on new requests are refused and watches end; running answers go on."""
        self._closing.set()

    # Coroutines that write instead of the generators that the stubs expect: a generator's `finally` would not run when
    # the client leaves while a chunk is being written.
    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        try:
            stream = await self._admit(request, context)
        except Refused as refused:
            _refuse(context, refused)
            return
        try:
            await self._answer(stream, context)
        finally:
            self._keys.pop(request.idempotency_key, None)
            if stream.outcome is None:
                self._pump.client_left(stream.shape.request_id)
        _finish(context, stream)

    async def _admit(self, request: pb.GenerateRequest, context: Context) -> ClientStream:
        self._check_open()
        request_id = admission.request_id_of(request.request_id, context.invocation_metadata())
        admission.check_sampling(request.sampling)
        prompt = await self._prompt(request)
        sizes = Sizes(len(prompt), self._limit(request, len(prompt)))
        expected = await self._lengths.expect(
            Question(text=request.text, token_ids=prompt, model=request.model),
            said=admission.said_belief(request.belief),
            max_tokens=sizes.max_output_tokens,
            runs_to_limit=admission.runs_to_limit(request.sampling),
        )
        shape = admission.generate_shape(
            request, request_id=request_id, sizes=sizes, expected=expected, call_deadline_s=context.time_remaining()
        )
        # No await from here on: whoever comes first with an id or a key has it.
        self._check_new(request_id, request.idempotency_key)
        if request.idempotency_key:
            self._keys[request.idempotency_key] = request_id
        request.sampling.max_tokens = shape.max_output_tokens
        stream = ClientStream(shape, prompt_token_ids=prompt, sampling=request.sampling, forecast=expected.forecast)
        self._pump.submit(stream)
        return stream

    async def _prompt(self, request: pb.GenerateRequest) -> Sequence[int]:
        kind = request.WhichOneof("prompt")
        if kind == "token_ids":
            token_ids: Sequence[int] = request.token_ids.ids
        elif kind == "text" and len(request.text) > admission.MAX_TEXT_CHARS_INLINE:
            token_ids = await asyncio.to_thread(self._tokenizer.encode, request.text)
        else:
            token_ids = self._tokenizer.encode(request.text)
        if not token_ids:
            raise invalid("the prompt is empty; send text or token_ids with at least one token")
        return token_ids

    def _limit(self, request: pb.GenerateRequest, prompt_tokens: int) -> int:
        """max_tokens, or what the context leaves. A prompt that fills the context keeps a limit of 1, for the router to
        refuse with the numbers; so does a request that no live node could serve."""
        if request.sampling.HasField("max_tokens"):
            return request.sampling.max_tokens
        return max(1, (self._nodes.max_model_len_tokens(request.model) or 0) - prompt_tokens)

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise Refused(grpc.StatusCode.UNAVAILABLE, "the gateway is shutting down; try another one")

    def _check_new(self, request_id: str, key: str) -> None:
        if request_id in self._pump.streams:
            raise Refused(
                grpc.StatusCode.ALREADY_EXISTS, f"request {request_id!r} is running; give each request its own id"
            )
        if key and key in self._keys:
            raise Refused(
                grpc.StatusCode.ALREADY_EXISTS,
                f"idempotency_key {key!r} is that of the running request {self._keys[key]!r}; wait for its end",
            )

    async def _answer(self, stream: ClientStream, context: Context) -> None:
        decoder = StreamDecoder(self._tokenizer)
        first = True
        while True:
            await stream.changed()
            token_ids = stream.take()
            ended = stream.outcome is not None
            # An end without an answer, not even part of one, is told by the status alone.
            if token_ids or (ended and (not first or stream.outcome in COMPLETE)):
                chunk = pb.GenerateChunk(token_ids=token_ids, text=decoder.push(token_ids))
                if first:
                    chunk.node_id, chunk.request_id = stream.node_id, stream.shape.request_id
                    await context.send_initial_metadata(_metadata(stream))
                    first = False
                if stream.outcome is not None and ended:
                    chunk.text += decoder.finish()
                    chunk.outcome = codec.outcome_to_wire(stream.outcome)
                    chunk.usage.CopyFrom(stream.final_usage())
                await context.write(chunk)
            if ended:
                return

    async def Place(self, request: pb.PlaceRequest, context: Context) -> pb.Decision:
        try:
            self._check_open()
            request_id = admission.request_id_of(request.request_id, context.invocation_metadata())
            stream = ClientStream(admission.place_shape(request, request_id=request_id))
            self._check_new(request_id, "")
        except Refused as refused:
            _refuse(context, refused)
            return pb.Decision()
        self._pump.submit(stream)
        try:
            await stream.changed()
        finally:
            if stream.outcome is None:
                self._pump.client_left(request_id)
        if stream.outcome not in COMPLETE or stream.decision is None:
            _finish(context, stream)
            return pb.Decision()
        return codec.decision_to_wire(stream.decision)

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelReply:
        return pb.CancelReply(found=self._pump.cancel(request.request_id))

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.Explanation:
        explanation = self._pump.router.explain(request.request_id)
        if explanation is None:
            _refuse(
                context,
                Refused(
                    grpc.StatusCode.NOT_FOUND,
                    f"nothing is known of request {request.request_id!r}; the gateway remembers its latest ones only",
                ),
            )
            return pb.Explanation()
        actual = pb.Actual(
            outcome=types_pb.OUTCOME_UNSPECIFIED
            if explanation.outcome is None
            else codec.outcome_to_wire(explanation.outcome),
            ttft_s=explanation.ttft_s,
            e2e_s=explanation.e2e_s,
            usage=types_pb.Usage(prompt_tokens=explanation.prompt_tokens, output_tokens=explanation.output_tokens),
        )
        return pb.Explanation(
            decisions=[codec.decision_to_wire(d) for d in explanation.decisions],
            actual=actual,
            belief=codec.belief_to_wire(explanation.belief) if explanation.belief is not None else None,
            belief_source=explanation.belief_source,
        )

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.NodeList:
        return self._nodes.wire()

    async def WatchNodes(self, request: pb.WatchNodesRequest, context: Context) -> AsyncIterator[pb.NodeList]:
        interval_s = max(LEAST_WATCH_S, request.min_interval_s or DEFAULT_WATCH_S)
        last = b""
        while not self._closing.is_set():
            nodes = self._nodes.wire()
            key = _without_ages(nodes)
            if key != last:
                yield nodes
                last = key
            try:
                await asyncio.wait_for(self._closing.wait(), interval_s)
            except TimeoutError:
                pass

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainReply:
        link = self._nodes.find(request.node_id)
        if link is None or link.config is None:
            names = ", ".join(k.name for k in self._nodes.links.values()) or "none"
            reason = f"no node {request.node_id!r}" if link is None else f"node {link.name!r} has not been up yet"
            _refuse(context, Refused(grpc.StatusCode.NOT_FOUND, f"{reason}; configured nodes: {names}"))
            return pb.DrainReply()
        self._pump.post(DrainAsked(node_id=link.node_id, undo=request.undo))
        return pb.DrainReply(in_flight=self._nodes.in_flight(link.node_id))

    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Context) -> pb.SetPolicyReply:
        try:
            if not request.policy:
                raise invalid("policy is empty; give a policy's name")
            policy = admission.policy_of(request.policy)
        except Refused as refused:
            _refuse(context, refused)
            return pb.SetPolicyReply()
        previous = self._pump.router.policy_name
        self._pump.post(PolicySet(policy=policy))
        return pb.SetPolicyReply(previous=previous)


def _metadata(stream: ClientStream) -> tuple[tuple[str, str], ...]:
    decision_s = stream.decision_s
    return (
        ("x-astrolabe-node", stream.node_id),
        ("x-request-id", stream.shape.request_id),
        ("x-astrolabe-decision-s", f"{decision_s:.6f}" if decision_s is not None else ""),
    )


def _refuse(context: Context, refused: Refused) -> None:
    context.set_code(refused.code)
    context.set_details(str(refused))


def _finish(context: Context, stream: ClientStream) -> None:
    """The call's status for a request that has ended."""
    outcome = stream.outcome
    if outcome is None or outcome in COMPLETE:
        return
    context.set_code(_STATUS[CODES[outcome].grpc])
    context.set_details(stream.detail or _PLAIN[outcome])
    context.set_trailing_metadata((("x-astrolabe-outcome", outcome.value), ("x-request-id", stream.shape.request_id)))


_PLAIN = {
    Outcome.CLIENT_LEFT: "the client left",
    Outcome.CANCELLED: "the request was cancelled",
    Outcome.DEADLINE: "the deadline passed",
    Outcome.INVALID: "the request is not valid",
    Outcome.NO_NODE: "no node can serve the request",
    Outcome.OVERLOADED: "the system is full; try again later",
    Outcome.ENGINE_FAILED: "the engine failed",
    Outcome.NODE_LOST: "the node went away during the request",
    Outcome.INTERNAL: "a defect of the gateway; its log says more",
}


def _without_ages(nodes: pb.NodeList) -> bytes:
    """What counts as a change: everything but ages, which always change."""
    copy = pb.NodeList()
    copy.CopyFrom(nodes)
    for node in copy.nodes:
        node.state_age_s = 0.0
        node.load.state_age_s = 0.0
    return copy.SerializeToString(deterministic=True)

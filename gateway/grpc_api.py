"""The `Dispatch` service: translates between gRPC calls and the gateway's own, and says who may make which."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from gateway import wire
from gateway.core.outcomes import CODES, COMPLETE, DENIALS, Codes, Denial
from gateway.intake.call_desk import CallDesk, FrontCall
from gateway.intake.call_paths import target_of
from gateway.intake.callers import ANYONE, Caller, KeyRing, require
from gateway.intake.client_call import STANDSTILL_S
from gateway.intake.client_stream import ClientStream
from gateway.intake.denied import Denied, invalid
from gateway.intake.submission import Intake
from gateway.operators import OWNER_MARK, SIBLING_MARK, Operators
from protos import codec
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchServicer

_STATUS = {code.value[0]: code for code in grpc.StatusCode}
Context = Any
"""grpc.aio.ServicerContext; its published types do not cover what is used here."""
Reply = TypeVar("Reply")

DEFAULT_WATCH_S = 1.0
LEAST_WATCH_S = 0.05
DECISIONS = 10


class DispatchApi(DispatchServicer):
    """One instance serves all calls of a listener.

    `of_siblings`: the listener is the private one between workers. Its calls need no key, and what is asked of a worker
    there is asked of it alone.
    """

    def __init__(
        self,
        *,
        intake: Intake,
        operators: Operators,
        keys: KeyRing,
        desk: CallDesk,
        max_message_bytes: int = 0,
        max_call_bytes: int = 0,
        of_siblings: bool = False,
    ) -> None:
        """`max_message_bytes`: the longest request with a prompt; 0: as long as gRPC lets in. `max_call_bytes`: longest
        body of a call that is to be handed on."""
        self._max_message_bytes = max_message_bytes
        self._intake = intake
        self._desk = desk
        self._max_call_bytes = max_call_bytes
        self._operators = operators
        self._keys = keys
        self._alone = of_siblings

    def caller(self, metadata: dict[str, str]) -> Caller:
        """Raises Denied."""
        if self._alone and SIBLING_MARK in metadata:
            owner = metadata.get(OWNER_MARK)
            return ANYONE if owner is None else Caller(name=owner)
        return self._keys.identify(metadata.get("authorization", ""))

    # Coroutines that write instead of the generators that the stubs expect: a generator's `finally` would not run when
    # the client leaves while a chunk is being written.
    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        metadata = _metadata(context)
        try:
            caller = self.caller(metadata)
            self._check_size(request)
            asked = wire.client_request(
                request,
                request_id=metadata.get("x-request-id", ""),
                traceparent=metadata.get("traceparent", ""),
                call_deadline_s=context.time_remaining(),
            )
            stream = await self._intake.admit(asked, caller)
        except Denied as denied:
            self._deny(context, denied)
            return
        try:
            await _answer(stream, context, self._intake.awaited_in_s(stream))
        finally:
            self._intake.close(stream)
        _finish(context, stream)

    async def Forward(self, request_iterator: AsyncIterator[pb.ForwardRequest], context: Context) -> None:  # type: ignore[override]
        metadata = _metadata(context)
        try:
            caller = self.caller(metadata)
            require(caller, "client")
            call = await self._front_call(request_iterator, metadata)
            if not self._desk.takes(call.target):
                raise Denied(Denial.UNKNOWN, f"no node is up that hands {call.target.path[:100]} on")
            stream = await self._desk.admit(call, caller)
        except Denied as denied:
            self._deny(context, denied)
            return
        del call
        try:
            await self._hand_back(stream, context)
        finally:
            self._intake.close(stream)

    async def _front_call(self, parts: AsyncIterator[pb.ForwardRequest], metadata: dict[str, str]) -> FrontCall:
        """The call, its body whole. Raises Denied."""
        first: pb.ForwardRequest | None = None
        body = bytearray()
        async for part in parts:
            first = first or part
            if len(body) + len(part.body) > self._max_call_bytes:
                raise Denied(Denial.TOO_LARGE, f"the body exceeds {self._max_call_bytes} bytes (max_call_bytes)")
            body += part.body
        if first is None or not first.target.startswith("/"):
            raise invalid("the first message needs a target, such as /v1/chat/completions", param="target")
        lines = [(line.name.lower(), line.value) for line in first.headers]
        if any(c in value or c in name for name, value in lines for c in "\r\n\0"):
            raise invalid("a header holds a line break", param="headers")
        mine: dict[str, str] = {name: metadata[name] for name in ("x-request-id", "traceparent") if name in metadata}
        return FrontCall(
            method=first.method or "POST",
            target=target_of(first.target),
            headers={**mine, **dict(lines)},
            lines=[*((name, value) for name, value in mine.items() if name not in dict(lines)), *lines],
            body=body,
        )

    async def _hand_back(self, stream: ClientStream, context: Context) -> None:
        answer = stream.answer
        assert answer is not None, "it was handed on"
        loop = asyncio.get_running_loop()
        is_first = True
        while True:
            await stream.changed()
            outcome = stream.outcome
            kept = None if answer.has_begun or outcome is None else answer.last_words(outcome)
            head, data = (answer.head, answer.take()) if kept is None else kept
            if head is None:
                # An end without an answer is told by the status alone.
                _finish(context, stream)
                return
            is_whole = kept is not None or answer.is_complete
            reply = wire.forward_reply(stream, head, data, is_first=is_first, outcome=outcome if is_whole else None)
            if is_first:
                is_first = False
                await context.send_initial_metadata(_initial_metadata(stream))
                if stream.call is not None and stream.call.target.startswith("/v1/responses") and head.status == 200:
                    self._desk.heard(stream, data)
            standstill = loop.call_later(STANDSTILL_S, self._intake.give_up_reader, stream)
            try:
                await context.write(reply)
            finally:
                standstill.cancel()
            self._intake.consumed(stream)
            if outcome is not None:
                if not is_whole:
                    _finish(context, stream)
                return

    async def Place(self, request: pb.PlaceRequest, context: Context) -> pb.Decision:
        metadata = _metadata(context)
        try:
            caller = self.caller(metadata)
            self._check_size(request)
            asked = wire.placement_request(request, request_id=metadata.get("x-request-id", ""))
            stream = await self._intake.place(asked, caller)
        except Denied as denied:
            self._deny(context, denied)
            return pb.Decision()
        try:
            await stream.changed()
        finally:
            self._intake.close(stream)
        if stream.outcome not in COMPLETE or stream.decision is None:
            _finish(context, stream)
            return pb.Decision()
        return codec.decision_to_wire(stream.decision)

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelReply:
        async def cancel(caller: Caller) -> pb.CancelReply:
            require(caller, "client")
            owner = None if caller.role == "admin" else caller.name
            return pb.CancelReply(found=await self._operators.cancel(request.request_id, owner, alone=self._alone))

        return await self._answered(context, cancel, pb.CancelReply())

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.Explanation:
        explain = functools.partial(self._operators.explain, request.request_id, alone=self._alone)
        return await self._answered(context, _by_admin(explain), pb.Explanation())

    async def ExplainScaling(self, request: pb.ExplainScalingRequest, context: Context) -> pb.ScalingExplanation:
        explain = functools.partial(self._operators.explain_scaling, request.decisions or DECISIONS, alone=self._alone)
        return await self._answered(context, _by_admin(explain), pb.ScalingExplanation())

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.NodeList:
        return await self._answered(
            context, _by_admin(functools.partial(self._operators.list_nodes, alone=self._alone)), pb.NodeList()
        )

    async def WatchNodes(self, request: pb.WatchNodesRequest, context: Context) -> AsyncIterator[pb.NodeList]:
        try:
            require(self.caller(_metadata(context)))
        except Denied as denied:
            self._deny(context, denied)
            return
        interval_s = max(LEAST_WATCH_S, request.min_interval_s or DEFAULT_WATCH_S)
        closing = self._intake.closing
        last = b""
        while not closing.is_set():
            nodes = await self._operators.list_nodes()
            key = wire.without_ages(nodes)
            if key != last:
                yield nodes
                last = key
            try:
                await asyncio.wait_for(closing.wait(), interval_s)
            except TimeoutError:
                pass

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainReply:
        async def drain() -> pb.DrainReply:
            return pb.DrainReply(in_flight=await self._operators.drain(request, alone=self._alone))

        return await self._answered(context, _by_admin(drain), pb.DrainReply())

    async def Move(self, request: pb.MoveRequest, context: Context) -> pb.MoveReply:
        move = functools.partial(self._operators.move, request, alone=self._alone)
        return await self._answered(context, _by_admin(move), pb.MoveReply())

    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Context) -> pb.SetPolicyReply:
        async def set_policy() -> pb.SetPolicyReply:
            return pb.SetPolicyReply(previous=await self._operators.set_policy(request, alone=self._alone))

        return await self._answered(context, _by_admin(set_policy), pb.SetPolicyReply())

    async def _answered(self, context: Context, answer: Callable[[Caller], Awaitable[Reply]], empty: Reply) -> Reply:
        """The answer, or the status of its refusal beside an empty one."""
        try:
            return await answer(self.caller(_metadata(context)))
        except Denied as denied:
            self._deny(context, denied)
            return empty

    def _check_size(self, request: pb.GenerateRequest | pb.PlaceRequest) -> None:
        """Raises Denied."""
        size_bytes, most_bytes = request.ByteSize(), self._max_message_bytes
        if most_bytes and size_bytes > most_bytes:
            raise Denied(
                Denial.TOO_LARGE,
                f"the message has {size_bytes} bytes, the gateway takes {most_bytes} (max_body_bytes); send less",
            )

    def _deny(self, context: Context, denied: Denied) -> None:
        """The status of a call that is turned away."""
        self._intake.on_denial(denied.denial)
        _set_status(context, DENIALS[denied.denial], str(denied))
        if denied.retry_after_s is not None:
            context.set_trailing_metadata((("retry-after-s", f"{denied.retry_after_s:.3f}"),))


def _by_admin(answer: Callable[[], Awaitable[Reply]]) -> Callable[[Caller], Awaitable[Reply]]:
    async def checked(caller: Caller) -> Reply:
        require(caller)
        return await answer()

    return checked


async def _answer(stream: ClientStream, context: Context, awaited_s: float | None) -> None:
    """`awaited_s`: how long until a node comes for it, None where there is one; its client is told at once."""
    text = stream.text
    assert text is not None, "an answer has a text"
    first = True
    if awaited_s is not None:
        waits = ("x-astrolabe-wait-s", f"{awaited_s:.1f}")
        await context.send_initial_metadata((("x-request-id", stream.shape.request_id), waits))
    while True:
        await stream.changed()
        token_ids = stream.take()
        ended = stream.outcome is not None
        # An end without an answer, not even part of one, is told by the status alone.
        if token_ids or (ended and (not first or stream.outcome in COMPLETE)):
            chunk = wire.generate_chunk(stream, token_ids, text.take(), is_first=first)
            if first and awaited_s is None:
                await context.send_initial_metadata(_initial_metadata(stream))
            first = False
            await context.write(chunk)
        if ended:
            return


def _metadata(context: Context) -> dict[str, str]:
    """The call's metadata; of a key that comes twice the last value."""
    return {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}


def _initial_metadata(stream: ClientStream) -> tuple[tuple[str, str], ...]:
    decision_s = stream.decision_s
    return (
        ("x-astrolabe-node", stream.node_id),
        ("x-request-id", stream.shape.request_id),
        ("x-astrolabe-decision-s", f"{decision_s:.6f}" if decision_s is not None else ""),
    )


def _finish(context: Context, stream: ClientStream) -> None:
    """The call's status for a request that has ended."""
    outcome = stream.outcome
    if outcome is None or outcome in COMPLETE:
        return
    _set_status(context, CODES[outcome], stream.detail)
    trailing = [("x-astrolabe-outcome", outcome.value), ("x-request-id", stream.shape.request_id)]
    if stream.retry_after_s is not None:
        trailing.append(("retry-after-s", f"{stream.retry_after_s:.3f}"))
    context.set_trailing_metadata(tuple(trailing))


def _set_status(context: Context, codes: Codes, detail: str) -> None:
    context.set_code(_STATUS[codes.grpc])
    context.set_details(detail or codes.text)

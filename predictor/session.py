"""`Predict.Session`: the hot path between one gateway and this node.

One task reads frames and applies each at once: aborts, then dispatches and bodies, then asks. Everything that goes back
is gathered and leaves with one write per turn of the event loop, so a step of the engine makes one frame, with all its
tokens. While a write waits for the connection, what comes up meanwhile is gathered too. When the session ends, however
it ends, its requests are aborted in the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

import structlog

from engine_adapters.base import EngineError, RequestRefused
from engine_adapters.forwarding import BodyFeed, ReplyData, ReplyHead
from length_model.core.belief import DEFAULT_PRIOR
from predictor import wire
from predictor.core.estimator import Answers
from predictor.node import NodeRuntime
from predictor.requests import End, WrongNode
from protos import codec
from protos.runtime import protocol
from protos.v1 import astrolabe_predict_pb2 as pb
from simcore.types import Candidate, NodePace, Outcome, TokenLogprobs

log = structlog.get_logger("predictor.session")

LOAD_NOTE_EVERY_S = 0.005
"""Least time between two load notes of a session: an emulated engine at many times real speed has a step per
millisecond, and nobody places by that."""
FINISH_S = 1.0
"""What a session gets to write its last frames at shutdown."""
MOST_NEWS = 32
"""Messages of other gateways that wait for a slow one; the oldest go."""

UNCONSUMED_BYTES = 1024 * 1024
"""What of a forwarded answer may be on its way to its client before its engine is read no more."""
RESUME_BYTES = UNCONSUMED_BYTES // 2
"""When it is read again."""
BODY_WINDOW_BYTES = 1024 * 1024
"""What of a forwarded body a gateway may send before its engine has read of it."""
FRAME_BYTES = 1024 * 1024
"""Forwarded bytes after which the rest waits for the next frame: tokens, answers and loads come between them."""


class OtherProtocol(Exception):
    """The gateway speaks what this node does not understand. The message says who is to be upgraded."""


class _Tokens:
    """What is waiting to be sent of one request."""

    __slots__ = ("end", "ids", "logprobs")

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.end: End | None = None

    @property
    def size_bytes(self) -> int:
        return 0

    def message(self, request_id: str) -> pb.StreamPart:
        return wire.part(request_id, self.ids, self.end, self.logprobs)


class _Reply:
    """What is waiting to be sent of one forwarded answer."""

    __slots__ = ("end", "head", "output_tokens", "pieces", "size_bytes")

    def __init__(self) -> None:
        self.head: ReplyHead | None = None
        self.pieces: list[bytes] = []
        self.size_bytes = 0
        self.output_tokens = 0
        self.end: End | None = None

    def message(self, request_id: str) -> pb.StreamPart:
        data = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        return wire.forwarded_part(request_id, self.head, data, self.output_tokens, self.end)


class _Forwarding:
    """A forwarded call while it runs: the rest of its body, and how much of its answer is not consumed."""

    __slots__ = ("body", "held", "unconsumed_bytes")

    def __init__(self, body: BodyFeed) -> None:
        self.body = body
        self.unconsumed_bytes = 0
        self.held = False


class GatewaySession:
    """One gateway's session, from `run` to its end."""

    def __init__(self, node: NodeRuntime, context: Any) -> None:
        self._node = node
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._gateway_id = ""
        self._mine: set[str] = set()
        self._announced: set[str] = set()
        """What proxies take to the engine, for this gateway."""
        self._dispatch_seq = 0
        self._handed_on_seq = 0
        """The last dispatch that no step may follow: a call of any kind, or one that a proxy brings."""
        self._reserved = 0
        """Changes of the node's reservations that this session's own dispatches have made."""
        self._answers: list[pb.Answer] = []
        self._forwarding: dict[str, _Forwarding] = {}
        self._parts: dict[str, _Tokens | _Reply] = {}
        self._taken: dict[str, int] = {}
        """Bytes of bodies that went on to the engine and are not told yet."""
        self._ended_parts: list[tuple[str, _Tokens | _Reply]] = []
        """Apart from the others, because an id may come again before its end is sent."""
        self._pong = 0
        """The ping that is to be answered; 0: none."""
        self._told = node.config
        """The configuration whose names the gateway has been told."""
        self._told_adapters: tuple[str, ...] | None = None
        self._told_pace: NodePace | None = None
        self._told_leaving = (False, False)
        self._lease: pb.LeaseAnswer | None = None
        """What is to be said of the lease."""
        self._news: deque[pb.ScalingNews] = deque(maxlen=MOST_NEWS)
        """What other gateways have told and this one has not heard yet."""
        self._tells_cache = False
        """Whether the gateway wants to know what the prefix cache holds."""
        self._cache_number: int | None = None
        """Number of the last summary of it that was sent; None: the next one tells the whole."""
        self._cache_timer: asyncio.TimerHandle | None = None
        self._noted: tuple[object, ...] | None = None
        """What the last load told was of; None: the next one is news whatever it says."""
        self._note_due_s = 0.0
        self._note_timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._finishing = False

    async def run(self, frames: AsyncIterator[pb.GatewayFrame]) -> None:
        """Serves the session until the gateway leaves or `finish` has been called. Raises OtherProtocol."""
        node = self._node
        welcome = wire.welcome(node.node_id, self._told, node.profile, BODY_WINDOW_BYTES)
        self._tell_leaving(welcome)
        await self._context.write(welcome)
        unlisten = node.listen(self._wake.set)
        writer = asyncio.create_task(self._write(), name="session writer")
        reader = asyncio.create_task(self._read(frames), name="session reader")
        self._wake.set()
        try:
            done, _ = await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            unlisten()
            node.news.leave(self._hear_news)
            for task in (writer, reader):
                task.cancel()
            for timer in (self._note_timer, self._cache_timer):
                if timer is not None:
                    timer.cancel()
            if self._mine:
                log.info("session ended with requests running", gateway=self._gateway_id, aborted=len(self._mine))
            node.requests.abandon(self._mine)
            for request_id in self._announced:
                node.withdraw(request_id)
            node.predictor.told.forget(self, self._loop.time())

    async def finish(self) -> None:
        """Writes what is pending, then ends the session."""
        self._finishing = True
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._written.wait(), FINISH_S)

    # --- from the gateway ---------------------------------------------------------------------------------------------

    async def _read(self, frames: AsyncIterator[pb.GatewayFrame]) -> None:
        async for frame in frames:
            if frame.HasField("hello"):
                self._greeted(frame.hello)
            for request_id in frame.abort_request_ids:
                if request_id in self._announced:
                    self._announced.discard(request_id)
                    self._node.withdraw(request_id)
                elif request_id in self._mine:
                    await self._node.requests.abort(request_id)
            for dispatched in frame.dispatches:
                match dispatched.WhichOneof("work"):
                    case "forward":
                        self._forward(dispatched)
                    case "announced":
                        self._announce(dispatched)
                    case _:
                        self._dispatch(dispatched)
            # Looked up there: a name in this loop would keep the last call's body until another one's comes.
            for part in frame.body_parts:
                self._feed(part.request_id, part.data)
            for consumed in frame.consumed:
                self._consumed(consumed.request_id, consumed.bytes)
            if frame.HasField("expected_work"):
                # Before the questions of the same frame, which it is sent with.
                self._hear(frame.expected_work)
            if frame.asks:
                self._ask(frame.asks)
            if frame.tell_cache:
                self._tells_cache, self._cache_number = True, None
                self._wake.set()
            if frame.retire:
                self._node.retire(undo=frame.retire == pb.RETIREMENT_UNDO, by=self._gateway_id)
            if frame.HasField("lease"):
                self._ask_lease(frame.lease)
            if frame.HasField("news"):
                self._node.news.tell(frame.news, by=self._hear_news)
            if frame.ping:
                self._pong = frame.ping
                # Who pings has heard nothing for a while: the age of the state is news, too.
                self._noted = None
                self._wake.set()

    def _greeted(self, hello: pb.Hello) -> None:
        self._gateway_id = hello.gateway_id
        theirs = codec.protocol_from_wire(hello.protocol)
        if why := protocol.disagreement(theirs, protocol.ours(), they="the gateway", we="this node"):
            log.warning("session refused", gateway=self._gateway_id, detail=why)
            raise OtherProtocol(why)
        log.info("session begun", gateway=self._gateway_id, release=theirs.release)

    def _hear(self, message: pb.ExpectedWork) -> None:
        try:
            work = codec.expected_work_from_wire(message)
        except ValueError as bad:
            log.warning("a gateway's word counts for nothing", gateway=self._gateway_id, detail=str(bad))
            return
        self._node.predictor.told.hear(self, work, self._loop.time())

    def _dispatch(self, dispatched: pb.Dispatched) -> None:
        message = dispatched.request
        request_id = message.request_id
        self._dispatch_seq = dispatched.dispatch_seq
        reservations = self._node.engine.reservations
        before = reservations.version
        try:
            self._node.requests.dispatch(
                wire.engine_request(message, max_model_len_tokens=self._node.config.max_model_len_tokens),
                codec.belief_from_wire(message.belief),
                self._on_tokens,
            )
        except (RequestRefused, ValueError) as refused:
            self._refuse(message.request_id, Outcome.INVALID, refused, len(message.prompt_token_ids))
        except WrongNode as wrong_node:
            self._refuse(message.request_id, Outcome.NO_NODE, wrong_node, len(message.prompt_token_ids))
        except EngineError as failed:
            outcome = Outcome.NODE_LOST if self._node.closing else Outcome.ENGINE_FAILED
            self._refuse(message.request_id, outcome, failed, len(message.prompt_token_ids))
        else:
            self._mine.add(request_id)
            self._reserved += reservations.version - before

    def _forward(self, dispatched: pb.Dispatched) -> None:
        message = dispatched.forward
        request_id = message.request_id
        self._dispatch_seq = self._handed_on_seq = dispatched.dispatch_seq
        self._wake.set()
        if len(message.body) < message.body_bytes:
            body = BodyFeed(message.body_bytes, lambda size_bytes: self._took(request_id, size_bytes))
        else:
            body = BodyFeed(message.body_bytes)
        try:
            body.feed(message.body)
            self._node.forward(wire.forward_order(message), body, self._on_reply)
        except (RequestRefused, ValueError) as refused:
            self._refuse(request_id, Outcome.INVALID, refused, message.prompt_tokens)
        except WrongNode as wrong_node:
            self._refuse(request_id, Outcome.NO_NODE, wrong_node, message.prompt_tokens)
        except EngineError as failed:
            outcome = Outcome.NODE_LOST if self._node.closing else Outcome.ENGINE_FAILED
            self._refuse(request_id, outcome, failed, message.prompt_tokens)
        else:
            self._mine.add(request_id)
            self._forwarding[request_id] = _Forwarding(body)

    def _announce(self, dispatched: pb.Dispatched) -> None:
        """It is on its way whatever is said here, so nothing is refused: what cannot be counted is not."""
        self._dispatch_seq = self._handed_on_seq = dispatched.dispatch_seq
        self._wake.set()
        try:
            candidate = codec.candidate_from_wire(dispatched.announced.candidate, prior=DEFAULT_PRIOR)
        except ValueError as bad:
            log.warning("an announced request does not count", gateway=self._gateway_id, detail=str(bad))
            return
        self._announced.add(candidate.request_id)
        self._node.announce(candidate, is_unnamed=dispatched.announced.is_unnamed)

    def _feed(self, request_id: str, data: bytes) -> None:
        forwarding = self._forwarding.get(request_id)
        if forwarding is None:
            # What comes for a call that has ended meanwhile is dropped.
            return
        try:
            forwarding.body.feed(data)
        except ValueError as bad:
            log.warning("body refused", request_id=request_id, detail=str(bad))
            forwarding.body.give_up()

    def _took(self, request_id: str, size_bytes: int) -> None:
        self._taken[request_id] = self._taken.get(request_id, 0) + size_bytes
        self._wake.set()

    def _consumed(self, request_id: str, size_bytes: int) -> None:
        forwarding = self._forwarding.get(request_id)
        if forwarding is None:
            return
        forwarding.unconsumed_bytes -= size_bytes
        if forwarding.held and forwarding.unconsumed_bytes <= RESUME_BYTES:
            forwarding.held = False
            self._node.requests.hold(request_id, False)

    def _refuse(self, request_id: str, outcome: Outcome, why: Exception, prompt_tokens: int) -> None:
        log.info("request refused", request_id=request_id, outcome=outcome.value, detail=str(why))
        end = End(outcome=outcome, prompt_tokens=prompt_tokens, output_tokens=0, detail=str(why))
        if request_id in self._mine:
            # The id belongs to a request of this session that runs: its own end must stay the only one.
            return
        self._on_tokens(request_id, (), end)

    def _ask_lease(self, message: pb.LeaseAsk) -> None:
        keeper, now_s = self._node.lease, self._loop.time()
        self._node.news.join(self._hear_news)
        before = keeper.holder_at(now_s)
        answer = keeper.ask(wire.lease_ask(message), now_s)
        if answer is None:
            return
        if answer.granted and before != answer.holder:
            log.info("lease granted", gateway=answer.holder)
        self._lease = wire.lease_answer(message.number, answer)
        self._wake.set()

    def _ask(self, asks: Sequence[pb.Ask]) -> None:
        asked: list[int] = []
        candidates: list[Candidate] = []
        for ask in asks:
            try:
                candidates.append(codec.candidate_from_wire(ask.candidate, prior=DEFAULT_PRIOR))
                asked.append(ask.ask_id)
            except ValueError as bad:
                self._answers.append(wire.unanswerable(ask.ask_id, str(bad)))
        self._wake.set()
        if candidates:
            self._node.asking.ask(candidates, lambda answers: self._on_answers(asked, answers))

    # --- to the gateway -----------------------------------------------------------------------------------------------

    def _hear_news(self, news: pb.ScalingNews) -> None:
        self._news.append(news)
        self._wake.set()

    def _on_answers(self, asked: Sequence[int], answers: Answers) -> None:
        self._answers.extend(wire.answer(ask_id, answer) for ask_id, answer in zip(asked, answers, strict=True))
        self._wake.set()

    def _on_tokens(
        self, request_id: str, token_ids: Sequence[int], end: End | None, logprobs: Sequence[TokenLogprobs] = ()
    ) -> None:
        pending = self._parts.get(request_id)
        if not isinstance(pending, _Tokens):
            pending = self._parts[request_id] = _Tokens()
        pending.ids.extend(token_ids)
        if logprobs:
            pending.logprobs.extend(logprobs)
        if end is not None:
            self._ended(request_id, pending, end)
        self._wake.set()

    def _on_reply(self, request_id: str, reply: ReplyHead | ReplyData | None, end: End | None) -> None:
        pending = self._parts.get(request_id)
        if not isinstance(pending, _Reply):
            pending = self._parts[request_id] = _Reply()
        if isinstance(reply, ReplyData):
            size_bytes = len(reply.data)
            pending.pieces.append(reply.data)
            pending.size_bytes += size_bytes
            pending.output_tokens += reply.output_tokens
            forwarding = self._forwarding[request_id]
            forwarding.unconsumed_bytes += size_bytes
            if forwarding.unconsumed_bytes > UNCONSUMED_BYTES and not forwarding.held:
                forwarding.held = True
                self._node.requests.hold(request_id, True)
        elif reply is not None:
            pending.head = reply
        if end is not None:
            del self._forwarding[request_id]
            self._ended(request_id, pending, end)
        self._wake.set()

    def _ended(self, request_id: str, pending: _Tokens | _Reply, end: End) -> None:
        pending.end = end
        self._ended_parts.append((request_id, pending))
        del self._parts[request_id]
        self._mine.discard(request_id)

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            frame = pb.NodeFrame()
            answers, self._answers = self._answers, []
            parts = self._take_parts()
            if answers:
                frame.answers.extend(answers)
            if parts:
                frame.parts.extend([pending.message(request_id) for request_id, pending in parts])
            pong, self._pong = self._pong, 0
            frame.pong = pong
            taken, self._taken = self._taken, {}
            if taken:
                frame.taken.extend(wire.taken(taken))
            noted = self._note(frame)
            changed = self._tell_changes(frame)
            told = self._tells_cache and self._tell_cache(frame)
            lease, self._lease = self._lease, None
            if lease is not None:
                frame.lease.CopyFrom(lease)
            heard = bool(self._news)
            if heard:
                frame.news.extend(self._news)
                self._news.clear()
            if answers or parts or noted or pong or taken or changed or told or heard or lease is not None:
                await self._context.write(frame)
            if self._finishing and not self._parts and not self._ended_parts:
                self._written.set()
                return

    def _tell_changes(self, frame: pb.NodeFrame) -> bool:
        """Adds what has changed of the names that the engine serves and uses, and of its pace."""
        node = self._node
        changed = False
        if self._told is not node.config:
            self._told, changed = node.config, True
            frame.served.CopyFrom(wire.served(node.config))
        if self._told_adapters is not node.adapters:
            self._told_adapters, changed = node.adapters, True
            frame.adapters.CopyFrom(wire.adapters(node.adapters))
        if self._told_pace is not node.pace:
            self._told_pace, changed = node.pace, True
            frame.pace.CopyFrom(wire.pace(node.pace))
        return self._tell_leaving(frame) or changed

    def _tell_leaving(self, frame: pb.NodeFrame) -> bool:
        leaving = self._node.leaving
        now = (leaving.retiring, leaving.has_left)
        if now == self._told_leaving:
            return False
        self._told_leaving = now
        frame.leaving.CopyFrom(wire.leaving(leaving))
        return True

    def _tell_cache(self, frame: pb.NodeFrame) -> bool:
        """Adds what the gateway does not know yet of the prefix cache; asks to be woken when more may be told."""
        teller = self._node.engine.cache_teller
        now_s = self._loop.time()
        teller.make(now_s)
        summary = teller.after(self._cache_number)
        if summary is not None:
            self._cache_number = summary.number
            frame.cache.CopyFrom(codec.cache_to_wire(summary))
            if summary.number != teller.number:
                self._wake.set()
        if teller.has_news and self._cache_timer is None:
            self._cache_timer = self._loop.call_at(max(now_s, teller.due_s), self._cache_due)
        return summary is not None

    def _cache_due(self) -> None:
        self._cache_timer = None
        self._wake.set()

    def _take_parts(self) -> list[tuple[str, _Tokens | _Reply]]:
        """What goes into the next frame; what is too much for it stays, and wakes the writer again."""
        parts = [*self._ended_parts, *self._parts.items()]
        self._ended_parts.clear()
        self._parts.clear()
        total_bytes = 0
        for position, (_, pending) in enumerate(parts):
            total_bytes += pending.size_bytes
            if total_bytes > FRAME_BYTES and position:
                for request_id, later in parts[position:]:
                    if later.end is not None:
                        self._ended_parts.append((request_id, later))
                    else:
                        self._parts[request_id] = later
                self._wake.set()
                return parts[:position]
        return parts

    def _note(self, frame: pb.NodeFrame) -> bool:
        """Adds the load if it has changed and the last note is old enough."""
        engine, predictor = self._node.engine, self._node.predictor
        # What this gateway has just dispatched is no news to it: it counts that itself until the next note, which comes
        # with the end of a step.
        mirrored, reserved = engine.version
        looks, others = predictor.lookout.looks, reserved - self._reserved
        version = (mirrored, others, predictor.trusted, looks, self._handed_on_seq)
        if version == self._noted:
            return False
        now_s = self._loop.time()
        if now_s < self._note_due_s:
            if self._note_timer is None:
                self._note_timer = self._loop.call_at(self._note_due_s, self._note_now)
            return False
        load = self._node.load()
        if load is None:
            return False
        self._noted = version
        self._note_due_s = now_s + LOAD_NOTE_EVERY_S
        frame.load.CopyFrom(wire.load_note(load, self._dispatch_seq))
        return True

    def _note_now(self) -> None:
        self._note_timer = None
        self._wake.set()

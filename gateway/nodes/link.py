"""One node as the gateway holds it: a `Predict.Session`, kept up for as long as the node is configured.

Frames that come up in one turn of the event loop leave together. What the node says becomes calls of the pump; a lost
session becomes `node_down`, then the link tries again with growing, jittered pauses.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Literal, Protocol, cast

import grpc
import grpc.aio
import msgspec
import structlog

from gateway import wire
from gateway.config import NodeEntry
from gateway.core.events import (
    AdaptersUsed,
    CacheTold,
    ForecastArrived,
    LoadNoted,
    NodeSuspected,
    PaceTold,
    RetirementTold,
)
from gateway.intake.client_stream import ClientStream
from gateway.nodes.outbox import BODY_PART_BYTES, Outbox
from gateway.pump import Pump
from protos import codec
from protos.runtime import protocol
from protos.runtime.addresses import HostPort, parse_address
from protos.runtime.channels import keepalive, open_channel
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_predict_pb2_grpc import PredictStub
from simcore.types import Candidate, EngineConfig, ExpectedWork

log = structlog.get_logger("gateway.nodes.link")

WELCOME_TIMEOUT_S = 5.0
WRITE_STALL_S = 5.0
"""A frame that cannot be handed to the connection for so long means that the node has stopped reading."""
PING_S = 0.25
"""A node that has said nothing for so long is pinged."""
SUSPECT_S = 1.0
"""A node that has said nothing for so long gets no new requests until it speaks."""
CUT_OFF_KEEPALIVES = 2.5
"""The session of a node silent for so many `keepalive_s` is ended, even if its connection answers."""
CLOSED = ("Socket closed", "Connection reset by peer", "Broken pipe")
"""gRPC's and the system's words for it."""
FIRST_PAUSE_S = 0.1
RESERVE_TIMEOUT_S = 2.0

SessionCall = grpc.aio.StreamStreamCall[pb.GatewayFrame, pb.NodeFrame]
LinkStatus = Literal["connecting", "up", "down"]


class SessionLost(Exception):
    """The session is over; the message says why, for people."""


class Names(Protocol):
    """Who owns which node name: two links must not share one."""

    def claim(self, node_id: str, address: str) -> str:
        """Takes the name; the address that holds it already, or "" on success."""

    def release(self, node_id: str, address: str) -> None: ...


class NodeLink:
    """Runs from `start` to `close`. Its sending methods are the pump's `NodePort`; they are called on the loop only."""

    def __init__(
        self,
        entry: NodeEntry,
        *,
        pump: Pump,
        names: Names,
        gateway_id: str,
        keepalive_s: float,
        reconnect_max_s: float,
        on_change: Callable[[], None],
        on_lease: Callable[[NodeLink, pb.LeaseAnswer], None],
        on_news: Callable[[pb.ScalingNews], None],
        candidates: Callable[[Candidate], types_pb.Candidate],
        credentials: Callable[[], grpc.ChannelCredentials | None] = lambda: None,
        server_name: str = "",
    ) -> None:
        """`credentials`: those of a session that begins; None: it is not encrypted. `server_name`: the name that the
        node's certificate must carry; empty: the host of its address."""
        self.entry = entry
        self.status: LinkStatus = "connecting"
        self.node_id = entry.name
        """The node's name; before its first word the configured one, else empty."""
        self.config: EngineConfig | None = None
        self.profile = ""
        self.detail = ""
        """Why it is down, for people."""
        self.retiring = False
        """It says that it is to leave and takes nothing new, from any gateway; False while it is down."""
        self.empty = False
        """It says that it has nothing any more, and will not: it may be stopped."""
        self.sessions = 0
        """How many have begun."""
        self._pump = pump
        self._names = names
        self._gateway_id = gateway_id
        self._reconnect_max_s = reconnect_max_s
        self._on_change = on_change
        self._on_lease = on_lease
        self._on_news = on_news
        self._candidates = candidates
        self._options = _channel_options(keepalive_s)
        if server_name:
            self._options.append(("grpc.ssl_target_name_override", server_name))
        self._credentials = credentials
        self._cut_off_s = max(CUT_OFF_KEEPALIVES * keepalive_s, 1.25 * SUSPECT_S)
        self._heard_s = 0.0
        self._suspected = False
        self._jitter = random.Random()
        self._outbox = Outbox()
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._writing_since_s: float | None = None
        self._call: SessionCall | None = None
        self._stub: Any = None
        self._task: asyncio.Task[None] | None = None
        self._broken = ""
        """Why we ended the session ourselves."""
        self._leaves = False
        self._reserving: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """What people call it: the node's name, or its address until it has one."""
        return self.node_id or self.entry.address

    def start(self) -> None:
        """Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_up(), name=f"link {self.entry.address}")

    def leave(self) -> None:
        """This gateway leaves the node: whatever ends the session from now on is no trouble, and told without alarm."""
        self._leaves = True

    async def close(self, why: str) -> None:
        """Ends the session and removes the node from the router. Idempotent."""
        self.leave()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self.status == "up":
            self._lost(why)
        if self.config is not None:
            self._pump.node_removed(self.node_id)

    async def flush(self) -> None:
        """Waits until all that was asked of the link is handed to the connection, or the session is gone."""
        while (self._outbox or self._writing_since_s is not None) and self.status == "up":
            self._written.clear()
            await self._written.wait()

    # --- NodePort -----------------------------------------------------------------------------------------------------

    def dispatch(self, dispatch_seq: int, stream: ClientStream) -> None:
        if stream.shape.lane == "by_proxy":
            self._outbox.dispatch(wire.announced(dispatch_seq, stream))
        elif stream.call is None:
            self._outbox.dispatch(wire.dispatched(dispatch_seq, stream))
        else:
            dispatched = wire.forwarded(dispatch_seq, stream, BODY_PART_BYTES)
            self._outbox.dispatch(dispatched)
            self._outbox.body(stream.wire_id, stream.call.body, len(dispatched.forward.body))
        self._wake.set()
        self._check_stall()

    def stage(self, dispatch_seq: int, stream: ClientStream, wire_id: str, tokens: int, kv_source: str) -> None:
        self._outbox.dispatch(wire.staged(dispatch_seq, stream, wire_id, tokens, kv_source))
        self._wake.set()
        self._check_stall()

    def ask(self, ask_id: int, candidate: Candidate, expected: ExpectedWork | None) -> None:
        if expected is not None:
            self._outbox.expected(codec.expected_work_to_wire(expected))
        self._outbox.ask(ask_id, self._candidates(candidate))
        self._wake.set()
        self._check_stall()

    def ask_cache(self) -> None:
        self._outbox.tell_cache()
        self._wake.set()

    def abort(self, wire_id: str) -> None:
        self._outbox.abort(wire_id)
        self._wake.set()

    def consumed(self, wire_id: str, data_bytes: int) -> None:
        self._outbox.consumed(wire_id, data_bytes)
        self._wake.set()

    def retire(self, undo: bool) -> None:
        """The node is to leave, or to stay after all, for all gateways. Whether it does it says itself (`retiring`);
        what is said while it is down is lost."""
        self._outbox.retire(undo)
        self._wake.set()

    def ask_lease(self, ask: pb.LeaseAsk) -> None:
        self._outbox.lease(ask)
        self._wake.set()

    def tell_news(self, news: pb.ScalingNews) -> None:
        """For all other gateways that ask this node for its lease."""
        self._outbox.news(news)
        self._wake.set()

    def forget(self, wire_id: str) -> None:
        self._outbox.drop_body(wire_id)

    def reserve(self, candidate: Candidate) -> None:
        task = asyncio.create_task(self._reserve(candidate))
        self._reserving.add(task)
        task.add_done_callback(self._reserving.discard)

    # --- the session --------------------------------------------------------------------------------------------------

    async def _keep_up(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            if await self._session():
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s * self._jitter.uniform(0.8, 1.2))
            pause_s = min(self._reconnect_max_s, pause_s * 2)

    async def _session(self) -> bool:
        """One session from connect to loss; whether it was up in between."""
        self._outbox = Outbox()
        self._wake = asyncio.Event()
        self._writing_since_s = None
        async with self._channel() as channel:
            self._stub = PredictStub(channel)
            self._call = call = self._stub.Session()
            try:
                await self._converse(call)
            except SessionLost as lost:
                detail = str(lost)
            except grpc.aio.AioRpcError as error:
                turned_away = self.status != "up" and self._credentials() is not None
                detail = _explain(error, turned_away=turned_away)
            except asyncio.InvalidStateError:
                # grpc.aio says so when a call ends between two operations on it.
                detail = await _why_ended(call)
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                detail = self._broken
            except ValueError as bad:
                detail = f"it speaks another version: {bad}"
            finally:
                self._call = None
                call.cancel()
            was_up = self.status == "up"
            self._lost(detail)
        return was_up

    def _channel(self) -> grpc.aio.Channel:
        return open_channel(self.entry.address, credentials=self._credentials(), options=self._options)

    def _lost(self, detail: str) -> None:
        if self.status == "up" or detail != self.detail:
            level = logging.INFO if self._leaves else logging.WARNING
            log.log(level, "node is down", node=self.name, address=self.entry.address, detail=detail)
        was_up, self.status, self.detail = self.status == "up", "down", detail
        self.retiring = self.empty = False
        self._written.set()
        if was_up:
            self._names.release(self.node_id, self.entry.address)
            self._pump.node_down(self.node_id, detail)
        self._on_change()

    async def _converse(self, call: SessionCall) -> None:
        """Welcome, then frames both ways until the session breaks, which is always an exception."""
        # Left unread, the frames and their call hold each other, and with them a connection, until memory is searched.
        async with aclosing(cast("AsyncGenerator[pb.NodeFrame]", aiter(call))) as frames:
            await self._exchange(call, frames)

    async def _exchange(self, call: SessionCall, frames: AsyncIterator[pb.NodeFrame]) -> None:
        hello = Outbox()
        hello.hello(self._gateway_id, codec.protocol_to_wire(protocol.ours()))
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                await call.write(hello.pop())
                frame = await anext(frames, None)
        except TimeoutError:
            raise SessionLost(f"no welcome within {WELCOME_TIMEOUT_S:g} s") from None
        if frame is None:
            raise SessionLost(await _why_ended(call))
        if not frame.HasField("welcome"):
            raise SessionLost("its first frame is no welcome")
        self._welcomed(frame.welcome)
        writer = asyncio.create_task(self._write(call), name=f"write {self.entry.address}")
        pinger = asyncio.create_task(self._ping(), name=f"ping {self.entry.address}")
        try:
            self._on_frame(frame)
            async for frame in frames:
                self._on_frame(frame)
        finally:
            writer.cancel()
            pinger.cancel()
        raise SessionLost(await _why_ended(call))

    def _welcomed(self, welcome: pb.Welcome) -> None:
        theirs = codec.protocol_from_wire(welcome.protocol)
        if why := protocol.disagreement(theirs, protocol.ours(), they="the node", we="this gateway"):
            raise SessionLost(why)
        if not welcome.node_id:
            raise SessionLost("it has no name; set node_id in its configuration")
        if self.entry.name and welcome.node_id != self.entry.name:
            raise SessionLost(
                f"it calls itself {welcome.node_id!r}, the gateway's configuration {self.entry.name!r}; make them equal"
            )
        try:
            config = codec.config_from_wire(welcome.config)
        except ValueError as bad:
            raise SessionLost(f"its engine limits make no sense: {bad}") from None
        if config.address.startswith(":"):
            # The node knows the port alone: the host is where we reach it.
            host = parse_address(self.entry.address).host
            config = msgspec.structs.replace(config, address=str(HostPort(host, int(config.address[1:]))))
        holder = self._names.claim(welcome.node_id, self.entry.address)
        if holder:
            raise SessionLost(f"its name {welcome.node_id!r} is that of the node at {holder}; give one another node_id")
        if self.config is not None and self.node_id != welcome.node_id:
            self._pump.node_removed(self.node_id)
        self.node_id, self.config, self.profile = welcome.node_id, config, welcome.profile
        self._outbox.body_window_bytes = welcome.body_window_bytes
        self.status, self.detail = "up", ""
        self.sessions += 1
        log.info(
            "node is up",
            node=self.node_id,
            address=self.entry.address,
            model=config.model,
            profile=self.profile,
            release=theirs.release,
        )
        self._pump.node_up(self.node_id, self, config, welcome.profile)
        self._on_change()

    def _renamed(self, served: pb.ServedNames) -> None:
        assert self.config is not None, "a welcome came first"
        if not served.model:
            log.warning("the node tells no name of its engine; its last ones stay", node=self.node_id)
            return
        others = tuple(served.other_names)
        self.config = msgspec.structs.replace(self.config, model=served.model, other_names=others)
        log.info("node serves other names", node=self.node_id, names=self.config.names)
        self._pump.node_serves(self.node_id, self.config)
        self._on_change()

    def _paced(self, told: types_pb.NodePace) -> None:
        try:
            pace = codec.pace_from_wire(told)
        except ValueError as bad:
            log.warning("the node tells a pace that cannot be; its last one stays", node=self.node_id, detail=str(bad))
            return
        self._pump.post(PaceTold(node_id=self.node_id, pace=pace))

    async def _ping(self) -> None:
        """Watches over the silence of the node: its connection may live while it does not."""
        loop = asyncio.get_running_loop()
        self._heard_s, self._suspected = loop.time(), False
        number = 0
        while True:
            due_s = loop.time() + PING_S
            await asyncio.sleep(PING_S)
            now_s = loop.time()
            if now_s - due_s > PING_S:
                # We ourselves were late, and what the node has said meanwhile may be unread.
                self._heard_s = now_s
            silent_s = now_s - self._heard_s
            if silent_s > self._cut_off_s:
                self._break(f"it has said nothing for {silent_s:.1f} s, though its connection lives")
                return
            if silent_s > SUSPECT_S and not self._suspected:
                self._suspected = True
                self._pump.post(NodeSuspected(node_id=self.node_id, detail=f"no word from it for {silent_s:.1f} s"))
            if silent_s >= PING_S:
                number += 1
                self._outbox.ping(number)
                self._wake.set()
                self._check_stall()

    def _on_frame(self, frame: pb.NodeFrame) -> None:
        pump, node_id = self._pump, self.node_id
        self._heard_s = asyncio.get_running_loop().time()
        if self._suspected:
            self._suspected = False
            pump.post(NodeSuspected(node_id=node_id, detail=""))
        if frame.HasField("leaving"):
            # Before the ends: what the node refuses now is not sent there again.
            self.retiring, self.empty = frame.leaving.retiring, frame.leaving.empty
            pump.post(RetirementTold(node_id=node_id, retiring=self.retiring))
            self._on_change()
        if frame.HasField("lease"):
            self._on_lease(self, frame.lease)
        for news in frame.news:
            self._on_news(news)
        if frame.HasField("served"):
            self._renamed(frame.served)
        if frame.HasField("adapters"):
            names = None if frame.adapters.unknown else tuple(frame.adapters.names)
            pump.post(AdaptersUsed(node_id=node_id, names=names))
        if frame.HasField("pace"):
            self._paced(frame.pace)
        for answer in frame.answers:
            forecast, error = None, answer.error
            if answer.HasField("forecast"):
                try:
                    forecast = codec.forecast_from_wire(answer.forecast)
                except ValueError as bad:
                    error = str(bad)
            pump.post(ForecastArrived(ask_id=answer.ask_id, node_id=node_id, forecast=forecast, error=error))
        for part in frame.parts:
            ended = part.HasField("outcome")
            if part.data or part.HasField("head"):
                head = wire.reply_head(part.head) if part.HasField("head") else None
                pump.answered(node_id, part.request_id, head, part.data, part.output_tokens)
                if not ended:
                    continue
            pump.part(
                node_id,
                part.request_id,
                part.token_ids,
                outcome=codec.outcome_from_wire(part.outcome) if ended else None,
                cached_tokens=part.usage.cached_tokens if ended else 0,
                detail=part.detail,
                told=part,
                found_tokens=part.found_tokens if ended and part.HasField("found_tokens") else None,
                stop_token_id=part.stop_token_id if ended and part.HasField("stop_token_id") else None,
            )
        for taken in frame.taken:
            self._outbox.taken(taken.request_id, taken.bytes)
            self._wake.set()
        if frame.HasField("cache"):
            summary = None
            try:
                summary = codec.cache_from_wire(frame.cache)
            except ValueError as bad:
                log.warning("a summary of the prefix cache makes no sense", node=node_id, detail=str(bad))
            pump.post(CacheTold(node_id=node_id, summary=summary))
        if frame.HasField("load"):
            pump.post(LoadNoted(load=codec.load_from_wire(frame.load.load), dispatch_seq=frame.load.dispatch_seq))

    async def _write(self, call: SessionCall) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._outbox:
                    self._writing_since_s = loop.time()
                    await call.write(self._outbox.pop())
                    self._writing_since_s = None
                    self._written.set()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The reader sees the same end and tells why.
            pass
        except Exception as defect:
            # Without a writer nothing would ever be sent again: better a new session.
            self._break(f"sending failed: {defect}")

    def _check_stall(self) -> None:
        since_s = self._writing_since_s
        if since_s is not None and asyncio.get_running_loop().time() - since_s > WRITE_STALL_S:
            self._break(f"it has read nothing for {WRITE_STALL_S:g} s")

    def _break(self, why: str) -> None:
        """Ends the session from our side."""
        if self._call is not None:
            self._broken = why
            self._call.cancel()

    async def _reserve(self, candidate: Candidate) -> None:
        request = wire.reserve_request(candidate)
        try:
            await self._stub.Reserve(request, timeout=RESERVE_TIMEOUT_S)
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            if not self._leaves:
                log.warning("reservation failed", node=self.name, request_id=candidate.request_id, detail=str(error))


def _channel_options(keepalive_s: float) -> list[tuple[str, int | str]]:
    return [
        *keepalive(every_s=keepalive_s, patience_s=keepalive_s),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # A new channel per attempt must really try, not wait for the backoff of an earlier one.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    ]


async def _why_ended(call: SessionCall) -> str:
    code = await call.code()
    details = await call.details() or ""
    return f"the node ended the session ({code.name}{': ' + details if details else ''})"


def _explain(error: grpc.aio.AioRpcError, *, turned_away: bool) -> str:
    """`turned_away`: certificates are shown, and the session had not begun."""
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        # gRPC says at length what it has tried; the last clause is the reason.
        reason = (error.details() or "").rsplit(": ", 1)[-1]
        # A server that does not know a client's certificate says so by closing.
        why = "; perhaps it does not trust this gateway's certificate" if turned_away and reason in CLOSED else ""
        return f"cannot be reached: {reason}{why}"
    if error.code() == grpc.StatusCode.UNIMPLEMENTED:
        return "something else listens there: it has no Predict.Session"
    return f"{error.code().name}: {error.details()}"

"""Hands calls on to an engine's HTTP server and its answers back, byte for byte.

A pool of plain connections, llhttp's parser (`httptools`) on each, no task and no await a chunk. Closing a connection
is the abort: a server drops the request within a step.

A server may close a connection just when a call is sent on it. If nothing of an answer came, the call goes out once
more on a new one, so of a short body what was sent is kept until then; a long one has a new connection from the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httptools

from engine_adapters.answer_tokens import AnswerTokens
from engine_adapters.base import EngineError, RequestRefused
from engine_adapters.forwarding import BodyFeed, ForwardCall, ForwardSink, ReplyData, ReplyEnd, ReplyHead
from protos.runtime.http_headers import HOP_BY_HOP
from protos.runtime.secret import NO_SECRET, Secret

CONNECT_TIMEOUT_S = 5.0
REPLAY_BYTES = 256 * 1024
"""Longest body that is kept until its answer begins, and so may go out on a connection used before."""
MAX_IDLE = 256
"""Connections kept for later calls."""
CLOSE_S = 1.0

OURS = HOP_BY_HOP | {"authorization", "content-length", "expect", "host", "x-api-key", "x-request-id"}
"""What a client says of its call that the engine hears from us, or not at all."""

_METHOD = re.compile(r"[A-Z]{1,20}")
_TARGET = re.compile(r"/[^\x00-\x20\x7f]*")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[^\x00\r\n]*")


class _Exchange:
    """One call and what has come back of it."""

    __slots__ = (
        "answered", "call", "connecting", "connection", "counts", "feed", "head", "kept", "pump", "retried", "sink"
    )  # fmt: skip

    def __init__(self, call: ForwardCall, head: bytes, feed: BodyFeed, sink: ForwardSink) -> None:
        self.call = call
        self.head = head
        self.feed = feed
        self.sink = sink
        self.kept: list[bytes] | None = [] if call.body_bytes <= REPLAY_BYTES else None
        """What was sent of the body; None: it is too long to be kept."""
        self.answered = False
        self.retried = False
        self.connecting: asyncio.Task[None] | None = None
        self.connection: _Connection | None = None
        self.pump: asyncio.Task[None] | None = None
        self.counts: AnswerTokens | None = None

    def stop_tasks(self) -> None:
        for task in (self.connecting, self.pump):
            if task is not None:
                task.cancel()
        self.connecting = self.pump = None


class EngineRelay:
    """A `Forwarder` to one HTTP server. All on one event loop; `close` at the end."""

    def __init__(
        self,
        url: str,
        *,
        tls: ssl.SSLContext | None = None,
        key: Secret = NO_SECRET,
        named: Callable[[str], str] = str,
    ) -> None:
        """`url`: the server's root. `key`: its API key, which takes the place of the client's; empty: none. `named`:
        the X-Request-Id of the call with that id; one that is no work for the engine keeps its own."""
        parts = urlsplit(url)
        self.url = url
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._path = parts.path
        self._named = named
        self._heads = [f"host: {parts.netloc}"]
        if key:
            self._heads.append(f"authorization: Bearer {key}")
        self._calls: dict[str, _Exchange] = {}
        self._idle: list[_Connection] = []
        self._connections: set[_Connection] = set()
        self._all_lost = asyncio.Event()
        self._closed = False

    @property
    def connections(self) -> int:
        """Open ones, idle or not."""
        return len(self._connections)

    def __len__(self) -> int:
        """Calls that run."""
        return len(self._calls)

    def forward(self, call: ForwardCall, body: BodyFeed, sink: ForwardSink) -> None:
        """See `Forwarder`. Raises RequestRefused for what is no HTTP request, EngineError after `close`."""
        if self._closed:
            raise EngineError("the engine adapter was closed")
        if call.request_id in self._calls:
            raise RequestRefused(f"request {call.request_id!r} runs here already; give each request its own name")
        exchange = _Exchange(call, self._head(call), body, sink)
        self._calls[call.request_id] = exchange
        if exchange.kept is not None:
            while self._idle:
                connection = self._idle.pop()
                if connection.begin(exchange, fresh=False):
                    return
        self._connect(exchange)

    def hold(self, request_id: str, held: bool) -> None:
        """See `Forwarder`."""
        exchange = self._calls.get(request_id)
        if exchange is not None and exchange.connection is not None:
            exchange.connection.hold(held)

    async def abort(self, request_id: str) -> bool:
        """See `Forwarder`."""
        exchange = self._calls.pop(request_id, None)
        if exchange is None:
            return False
        self._leave(exchange)
        exchange.sink(request_id, ReplyEnd(aborted=True))
        return True

    async def close(self) -> None:
        """Aborts what runs and closes all connections. Idempotent."""
        self._closed = True
        for request_id in list(self._calls):
            await self.abort(request_id)
        for connection in list(self._connections):
            connection.cut()
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_lost.wait(), CLOSE_S)

    # --- for connections ----------------------------------------------------------------------------------------------

    def opened(self, connection: _Connection) -> None:
        self._connections.add(connection)
        self._all_lost.clear()

    def lost(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._connections:
            self._all_lost.set()

    def rest(self, connection: _Connection) -> bool:
        """Keeps it for a later call. False: it is not wanted."""
        if self._closed or len(self._idle) >= MAX_IDLE:
            return False
        self._idle.append(connection)
        return True

    def again(self, exchange: _Exchange) -> None:
        """Its connection was gone before it."""
        exchange.retried = True
        self._connect(exchange)

    def ended(self, exchange: _Exchange, last: ReplyEnd | EngineError) -> None:
        """The answer is complete, or will not be."""
        exchange.stop_tasks()
        exchange.connection = None
        if self._calls.pop(exchange.call.request_id, None) is not None:
            exchange.sink(exchange.call.request_id, last)

    def failed(self, exchange: _Exchange, why: EngineError) -> None:
        """It cannot go on, whoever is at fault: its connection is of no more use."""
        self._leave(exchange)
        self.ended(exchange, why)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _leave(self, exchange: _Exchange) -> None:
        exchange.stop_tasks()
        connection, exchange.connection = exchange.connection, None
        if connection is not None:
            connection.cut()

    def _connect(self, exchange: _Exchange) -> None:
        exchange.connecting = asyncio.create_task(self._open(exchange), name="relay connect")

    async def _open(self, exchange: _Exchange) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self._host, self._port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:
            exchange.connecting = None
            self.ended(exchange, EngineError(f"no server at {self.url} ({error or type(error).__name__})"))
            return
        exchange.connecting = None
        if not connection.begin(exchange, fresh=True):
            self.ended(exchange, EngineError(f"{self.url} closes connections at once"))

    def _head(self, call: ForwardCall) -> bytes:
        """The request's head as bytes. Raises RequestRefused."""
        if not _METHOD.fullmatch(call.method) or not _TARGET.fullmatch(call.target):
            raise RequestRefused(f"{call.method} {call.target!r} is no request of HTTP: write for example POST /v1/...")
        dropped = OURS
        for name, value in call.headers:
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                raise RequestRefused(f"the header {name!r} cannot be sent: it holds a line break or no name")
            if name == "connection":
                dropped = dropped | {token.strip().lower() for token in value.split(",")}
        lines = [f"{call.method} {self._path}{call.target} HTTP/1.1", *self._heads]
        lines += [f"{name}: {value}" for name, value in call.headers if name not in dropped]
        # Some answers have it in them, and of a call without a prompt no trace will tell.
        name = self._named(call.request_id) if call.prompt_tokens else call.request_id
        if not _VALUE.fullmatch(name):
            raise RequestRefused(f"request_id {call.request_id!r} holds a line break: give the request another name")
        lines.append(f"x-request-id: {name}")
        if call.body_bytes or call.method not in ("GET", "HEAD", "DELETE", "OPTIONS"):
            lines.append(f"content-length: {call.body_bytes}")
        try:
            return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        except UnicodeEncodeError:
            raise RequestRefused("the request's head holds characters that HTTP has no bytes for") from None


class _Connection(asyncio.Protocol):
    """One connection to the server, with at most one call on it."""

    def __init__(self, relay: EngineRelay) -> None:
        self._relay = relay
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._exchange: _Exchange | None = None
        self._fresh = True
        self._writable: asyncio.Event | None = None
        self._headers: list[tuple[str, str]] = []
        self._in_head = True
        self._has_head = False
        self._until_eof = False
        self._complete = False
        self._keep_alive = False
        self._pieces: list[bytes] = []

    def begin(self, exchange: _Exchange, *, fresh: bool) -> bool:
        """Sends the call. False: the connection has been closed, and nothing was sent."""
        transport = self._transport
        if transport.is_closing():
            return False
        self._exchange = exchange
        self._fresh = fresh
        self._headers = []
        self._in_head = True
        self._has_head = self._until_eof = self._complete = False
        exchange.connection = self
        kept = exchange.kept
        if kept:
            transport.write(exchange.head + b"".join(kept))
        else:
            piece = exchange.feed.take()
            if kept is not None and piece:
                kept.append(piece)
            transport.write(exchange.head + piece)
        if not exchange.feed.is_drained:
            exchange.pump = asyncio.create_task(self._send_body(exchange), name="relay body")
        return True

    def hold(self, held: bool) -> None:
        """Reads no more for now, or goes on."""
        if self._transport.is_closing():
            return
        if held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def cut(self) -> None:
        """Breaks it off: what was asked is not wanted any more."""
        self._exchange = None
        self._transport.abort()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._relay.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        relay = self._relay
        relay.lost(self)
        if self._writable is not None:
            self._writable.set()
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if self._until_eof and exc is None:
            relay.ended(exchange, _end_of(exchange))
        elif not (exchange.answered or self._fresh or exchange.retried):
            exchange.stop_tasks()
            exchange.connection = None
            relay.again(exchange)
        else:
            how = "in the middle of its answer" if exchange.answered else "without an answer"
            relay.ended(exchange, EngineError(f"the connection to {relay.url} broke {how}{f': {exc}' if exc else ''}"))

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set()

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            # Nobody has asked: what the server says on its own cannot be told from the next answer.
            self._transport.abort()
            return
        exchange.answered = True
        exchange.kept = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as bad:
            if not self._complete:
                self._deliver(exchange)
                self._relay.failed(exchange, EngineError(f"{self._relay.url} answered what is no HTTP: {bad}"))
                return
            self._keep_alive = False
        self._deliver(exchange)
        if self._complete:
            self._end(exchange)

    # --- httptools ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            # An answer that nobody has asked for.
            self._keep_alive = False
        else:
            self._headers = []
            self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head and not self._complete:
            self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        self._in_head = False
        exchange = self._exchange
        assert exchange is not None, "bytes come to the parser during an exchange only"
        status = self._parser.get_status_code()
        if status < 200:
            return
        named = dict(self._headers)
        self._has_head = True
        has_body = exchange.call.method != "HEAD" and status not in (204, 304)
        self._until_eof = has_body and "content-length" not in named and "transfer-encoding" not in named
        if exchange.call.method == "HEAD":
            # The parser waits for a body of that length.
            self._complete = True
            self._keep_alive = False

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._complete or self._parser.get_status_code() < 200:
            return
        self._complete = True
        self._keep_alive = bool(self._parser.should_keep_alive())

    # --- inside -------------------------------------------------------------------------------------------------------

    def _deliver(self, exchange: _Exchange) -> None:
        request_id = exchange.call.request_id
        if self._has_head:
            self._has_head = False
            dropped = HOP_BY_HOP
            for name, value in self._headers:
                if name == "connection":
                    dropped = dropped | {token.strip().lower() for token in value.split(",")}
            headers = tuple([header for header in self._headers if header[0] not in dropped])
            exchange.counts = AnswerTokens(exchange.call.target, headers)
            exchange.sink(request_id, ReplyHead(self._parser.get_status_code(), headers))
        pieces = self._pieces
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._pieces = []
            assert exchange.counts is not None, "a body has a head"
            exchange.sink(request_id, ReplyData(data, exchange.counts.add(data)))

    def _end(self, exchange: _Exchange) -> None:
        self._exchange = None
        relay = self._relay
        sent = exchange.pump is None or exchange.pump.done()
        if not sent:
            self._transport.abort()
        elif self._transport.is_closing():
            pass
        else:
            self._transport.resume_reading()
            if not (self._keep_alive and relay.rest(self)):
                self._transport.close()
        relay.ended(exchange, _end_of(exchange))

    async def _send_body(self, exchange: _Exchange) -> None:
        try:
            if self._writable is not None:
                # The first piece fills the connection: the next one is not taken before the server has read of it.
                await self._writable.wait()
            async for piece in exchange.feed:
                # First kept, then sent: a connection that breaks in between takes this task with it.
                if exchange.kept is not None:
                    exchange.kept.append(piece)
                if self._transport.is_closing():
                    return
                self._transport.write(piece)
                if self._writable is not None:
                    await self._writable.wait()
        except EngineError as gone:
            exchange.pump = None
            self._relay.failed(exchange, gone)


def _end_of(exchange: _Exchange) -> ReplyEnd:
    counts = exchange.counts
    if counts is None:
        return ReplyEnd()
    said = counts.usage()
    return ReplyEnd(
        at_limit=counts.at_limit,
        prompt_tokens=said.prompt_tokens,
        output_tokens=said.output_tokens,
        cached_tokens=said.cached_tokens,
    )

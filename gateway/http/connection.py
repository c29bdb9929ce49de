"""One HTTP/1.1 connection: requests in (keep-alive, pipelined, limited in size and time), one response at a time out.

Parsing is llhttp's (the parser of Node.js) through `httptools`, with a plain `asyncio.Protocol` around it: no task a
stream and no await a chunk. Serving the same stub answers takes 10 µs of CPU a streamed chunk and 25 µs a whole answer
here; uvicorn[httptools] 14 and 58, granian 12 and 92, aiohttp 14 and 67 (two busy cores, `python -m bench.micro.front
--servers uvicorn granian aiohttp --servers-python PYTHON`). It also limits heads, bodies, times and pipelining by
itself.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import httptools
import msgspec

from gateway.http.errors import plain_error
from gateway.http.message import CONTINUE, LAST_CHUNK, Request, chunk, head

MAX_PIPELINED = 16
"""Requests that may wait behind the one that is answered; then the connection is not read until it has moved on."""
PIPELINED_BYTES = 1024 * 1024
"""The same for their bodies, the one that comes in included."""
MAX_HEADERS = 100
LEAST_READ_BYTES = 16 * 1024
"""Who reads so much of a long rest within the linger time may go on: answers of engines have a megabyte of it."""
LEAST_SENT_BYTES = 256 * 1024
"""Who sends so much of a long body within the time for a request may go on: 64 MiB take a minute at 9 Mbit/s."""
_ABSOLUTE = re.compile(rb"^https?://[^/?]*", re.IGNORECASE)
"""What stands before the path where a proxy asks; https://www.rfc-editor.org/rfc/rfc9112#name-absolute-form"""


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may take."""

    max_head_bytes: int = 32 * 1024
    max_body_bytes: int = 8 * 1024 * 1024
    max_call_bytes: int = 64 * 1024 * 1024
    """Longest body of a request that `takes_long` says may have a longer one."""
    request_s: float = 30.0
    """Longest time from the first byte of a request to its last, or to the next `LEAST_SENT_BYTES` of its body."""
    idle_s: float = 75.0
    """Longest pause between two requests."""
    linger_s: float = 10.0
    """What a client gets to read the rest of a response that is complete, or `LEAST_READ_BYTES` more of it."""


class Exchange:
    """One request and its response: `respond`, or `start`, `send`..., `end`. The head leaves with what comes next, or
    by `send_head`.

    After the client has left everything but `on_left` does nothing.
    """

    __slots__ = ("_chunked", "_connection", "_head", "ended", "on_left", "on_writable", "request", "started")

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection: Connection | None = connection
        self._chunked = True
        self._head = b""
        """What `start` has made of it and nobody has written: each write is a call of the system."""
        self.request = request
        self.started = False
        self.ended = False
        self.on_left: Callable[[], None] | None = None
        """Called once if the client leaves before `end`."""
        self.on_writable: Callable[[], None] | None = None
        """Called when `is_blocked` has become False."""

    @property
    def is_over(self) -> bool:
        """Whether the response is complete or the client has left."""
        return self._connection is None

    @property
    def is_blocked(self) -> bool:
        """Whether the client reads so slowly that more should not be sent now."""
        return self._connection is not None and self._connection.is_blocked

    @property
    def unsent_bytes(self) -> int:
        """What the client has not taken of what was sent."""
        return 0 if self._connection is None else self._connection.unsent_bytes

    def respond(self, status: int, headers: dict[str, str], body: bytes, *, close: bool = False) -> None:
        """The whole response."""
        connection = self._connection
        if connection is None or self.started:
            return
        self.started = True
        if close:
            connection.keep_alive = False
        data = head(status, headers, length=len(body), keep_alive=connection.keep_alive)
        connection.write(data if self.request.method == "HEAD" else data + body)
        self.end()

    def start(
        self, status: int, headers: Mapping[str, str] | Sequence[tuple[str, str]], *, length: int | None = None
    ) -> None:
        """Begins a response; `length` of its body, None if it is not known. A response without a body is complete with
        `end`."""
        connection = self._connection
        if connection is None or self.started:
            return
        self.started = True
        has_body = self.request.method != "HEAD" and status not in (204, 304)
        if length is not None or not has_body:
            self._chunked = False
        elif self.request.is_http10:
            self._chunked = connection.keep_alive = False
        self._head = head(status, headers, length=length, keep_alive=connection.keep_alive, chunked=self._chunked)

    def drop_body(self) -> None:
        """Nobody needs the request's body any more."""
        self.request = msgspec.structs.replace(self.request, body=b"")

    def send_head(self) -> None:
        """The head alone, if it has not left yet: nobody knows when the body will begin."""
        if self._head:
            self._write(b"")

    def send(self, data: bytes, *, last: bool = False) -> None:
        """A piece of the body (not empty); with `last` the end of it too."""
        if self._chunked:
            data = chunk(data) + LAST_CHUNK if last else chunk(data)
        self._write(data)
        if last:
            self.end()

    def finish(self) -> None:
        """The end of a body that was sent in pieces."""
        if self._chunked:
            self._write(LAST_CHUNK)
        self.end()

    def end(self) -> None:
        """The response is complete."""
        self.send_head()
        connection, self._connection = self._connection, None
        if connection is not None:
            self.ended = True
            connection.exchange_ended()

    def _write(self, data: bytes) -> None:
        if self._connection is not None:
            self._connection.write(self._head + data if self._head else data)
            self._head = b""

    def abort(self) -> None:
        """Breaks the connection: what was sent so far must not look like a whole response."""
        if self._connection is not None:
            self._connection.abort()

    def left(self) -> None:
        """Called by the connection: the client has gone."""
        self._connection = None
        if self.on_left is not None and not self.ended:
            self.on_left()


Handler = Callable[[Exchange], None]
"""Answers an exchange, now or later. Must not raise."""
TakesLong = Callable[[str, Mapping[str, str]], bool]
"""Whether a request for that URL with these headers may have a body of up to `max_call_bytes`."""


class Connection(asyncio.Protocol):
    """One connection and its requests. `registry` holds the live connections, for sweeps and shutdown."""

    def __init__(
        self,
        handler: Handler,
        limits: ConnectionLimits,
        registry: set[Connection],
        takes_long: TakesLong = lambda _url, _headers: False,
    ) -> None:
        self.keep_alive = True
        self._takes_long = takes_long
        self._max_body_bytes = limits.max_body_bytes
        """Of the request that comes in."""
        self.is_blocked = False
        self.deadline_s: float | None = None
        """When to give up on the client, on the loop's clock; None while a response is on its way."""
        self._lingering_bytes = 0
        """What was unsent when the linger time began."""
        self._handler = handler
        self._limits = limits
        self._registry = registry
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._exchange: Exchange | None = None
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._waiting_bytes = 0
        """Of the bodies among them."""
        self._is_paused = False
        self._refusal: tuple[int, str] | None = None
        """Why this connection takes no more requests."""
        self._in_request = False
        self._is_head_whole = False
        self._is_offer = False
        """Whether the head that is whole offers another protocol."""
        self._method = self._version = ""
        self._bare_bytes = 0
        """What has come of the request since the last of its body: head or trailer."""
        self._url = b""
        self._headers: dict[str, str] = {}
        self._lines: list[tuple[str, str]] = []
        self._head_bytes = 0
        self._body: bytes | bytearray = b""
        self._seen_bytes = 0
        """Of the body, when the time for the request began anew."""

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._registry.add(self)
        self.deadline_s = self._loop.time() + self._limits.request_s

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.discard(self)
        self._waiting.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.left()

    def pause_writing(self) -> None:
        self.is_blocked = True

    def resume_writing(self) -> None:
        self.is_blocked = False
        exchange = self._exchange
        if exchange is not None and exchange.on_writable is not None:
            exchange.on_writable()

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        if not self._in_request:
            # The time for a request runs from its first byte; what came before was waiting.
            self._in_request = True
            self._bare_bytes = 0
            if self._exchange is None:
                self.deadline_s = self._loop.time() + self._limits.request_s
        self._bare_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as bad:
            self._refuse(400, f"not a valid HTTP/1.1 request: {bad}")
        if self._bare_bytes > self._limits.max_head_bytes:
            self._refuse(431, f"the request's head or trailer exceeds {self._limits.max_head_bytes} bytes")

    def _feed(self, data: bytes) -> None:
        """Raises httptools.HttpParserError."""
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if not self._is_offer:
                    # A tunnel is wanted; what follows on this connection is not HTTP.
                    self._refusal = (0, "")
                    if self._exchange is not None:
                        self.keep_alive = False
                    return
                data = data[offer.args[0] :]
            else:
                return
            # The offer of another protocol (Java's client makes one with every request) is not taken, and the request
            # stands: the parser has stopped at the end of its head, and gets that anew without the offer.
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(self._head_without_offer())

    def _head_without_offer(self) -> bytes:
        named = [token.strip() for name, value in self._lines if name == "connection" for token in value.split(",")]
        kept = [token for token in named if token.lower() not in ("upgrade", "http2-settings")]
        lines = [line for line in self._lines if line[0] not in ("connection", "upgrade", "http2-settings")]
        lines += [("connection", ", ".join(kept))] if kept else []
        head = [f"{self._method} {self._url.decode('latin-1')} HTTP/{self._version}", *(f"{k}: {v}" for k, v in lines)]
        return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")

    # --- httptools ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._in_request = True
        self._is_head_whole = False
        self._url = b""
        self._headers = {}
        self._lines = []
        self._head_bytes = 0
        self._body = b""
        self._seen_bytes = 0
        self._max_body_bytes = self._limits.max_body_bytes

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_head_whole:
            # A trailer: nothing in it may pass for what the head said.
            return
        if len(self._lines) >= MAX_HEADERS:
            self._refuse(431, f"more than {MAX_HEADERS} headers")
            return
        self._head_bytes += len(name) + len(value) + 4
        line = (name.decode("latin-1").lower(), value.decode("latin-1"))
        self._lines.append(line)
        self._headers[line[0]] = line[1]

    def on_headers_complete(self) -> None:
        self._is_head_whole = True
        self._method = self._parser.get_method().decode("latin-1")
        self._version = self._parser.get_http_version()
        self._is_offer = self._parser.should_upgrade() and self._method != "CONNECT"
        if self._is_offer:
            return
        if self._head_bytes > self._limits.max_head_bytes:
            self._refuse(431, f"the request's head exceeds {self._limits.max_head_bytes} bytes")
        length = self._headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body_bytes and not self._has_room_for(int(length)):
            self._refuse_body()
        elif self._waits_to_continue() and self._exchange is None:
            self._transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        if self._refusal is not None:
            return
        self._bare_bytes = 0
        if len(self._body) + len(body) > self._max_body_bytes and not self._has_room_for(len(self._body) + len(body)):
            self._body = b""
            self._refuse_body()
        elif not self._body:
            self._body = body
        else:
            # One buffer that grows: pieces that are joined at the end would be held twice.
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body
        self._pace()

    def on_message_complete(self) -> None:
        # The rest of these bytes belongs to a next request, if there is any.
        if self._is_offer:
            return
        self._in_request = False
        self._bare_bytes = 0
        if self._refusal is not None:
            return
        url = self._plain_url()
        path = url.partition("?")[0]
        request = Request(
            method=self._method,
            path=unquote(path) if "%" in path else path,
            headers=self._headers,
            body=self._body,
            is_http10=self._version == "1.0",
            url=url,
            lines=self._lines,
        )
        self._body = b""
        keep_alive = bool(self._parser.should_keep_alive())
        # Those that wait go first, also while the next of them is about to begin.
        if self._exchange is None and not self._waiting:
            self._begin(request, keep_alive)
            return
        self._waiting.append((request, keep_alive))
        self._waiting_bytes += len(request.body)
        self._pace()

    def _waits_to_continue(self) -> bool:
        # Clients of HTTP/1.0 do not know it, whatever they say.
        return self._headers.get("expect", "").lower() == "100-continue" and self._version != "1.0"

    def _pace(self) -> None:
        """Reads no more while too much waits behind the request that is answered, and goes on when it has moved on."""
        waits = self._exchange is not None or bool(self._waiting)
        held_bytes = self._waiting_bytes + len(self._body)
        is_full = waits and (len(self._waiting) >= MAX_PIPELINED or held_bytes > PIPELINED_BYTES)
        if is_full == self._is_paused or self._transport.is_closing():
            return
        self._is_paused = is_full
        if is_full:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _plain_url(self) -> str:
        url = self._url if self._url.startswith(b"/") else _ABSOLUTE.sub(b"", self._url, count=1)
        return url.decode("latin-1")

    def _has_room_for(self, body_bytes: int) -> bool:
        """Whether this very request may have a long body."""
        if body_bytes <= self._limits.max_call_bytes and self._takes_long(self._plain_url(), self._headers):
            self._max_body_bytes = self._limits.max_call_bytes
            return True
        return False

    # --- responses ----------------------------------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        return int(self._transport.get_write_buffer_size())

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def exchange_ended(self) -> None:
        """Called by the exchange."""
        self._exchange = None
        if not self.keep_alive:
            self._close()
            return
        # What a client that does not read has left in our memory is not kept for as long as an idle connection.
        if self.is_blocked:
            self._linger()
        else:
            self.deadline_s = self._loop.time() + self._limits.idle_s
        self._pace()
        # Later: a handler that answers at once would otherwise recurse through all that is pipelined.
        if self._waiting:
            self._loop.call_soon(self._next)
        elif self._refusal is not None:
            self._say_refusal()

    def abort(self) -> None:
        self._transport.abort()

    def shut_down(self) -> None:
        """Closes when the response under way, or to the request that is coming in, is complete."""
        self.keep_alive = False
        if self._exchange is None and not self._in_request:
            self._close()

    def expire(self, now_s: float) -> None:
        """Called now and then: gives up on a client that is too slow."""
        if self.deadline_s is not None and now_s > self.deadline_s:
            if self._lingering_bytes - self.unsent_bytes >= LEAST_READ_BYTES:
                self._linger()
            elif self._in_request and len(self._body) - self._seen_bytes >= LEAST_SENT_BYTES:
                self._seen_bytes = len(self._body)
                self.deadline_s = now_s + self._limits.request_s
            elif self._in_request and not self._transport.is_closing():
                what = f"so much as {LEAST_SENT_BYTES} bytes of it" if self._body else "it"
                self._refuse(408, f"the request was too slow: {what} did not come within {self._limits.request_s:g} s")
            else:
                self._transport.abort()

    def _begin(self, request: Request, keep_alive: bool) -> None:
        self.deadline_s = None
        self.keep_alive = self.keep_alive and keep_alive
        self._exchange = exchange = Exchange(self, request)
        self._handler(exchange)

    def _next(self) -> None:
        if self._exchange is None and self._waiting and not self._transport.is_closing():
            request, keep_alive = self._waiting.popleft()
            self._waiting_bytes -= len(request.body)
            self._begin(request, keep_alive)
            self._pace()

    def _refuse_body(self) -> None:
        self._refuse(413, f"the body exceeds {self._max_body_bytes} bytes (max_body_bytes); send less")

    def _refuse(self, status: int, message: str) -> None:
        """Takes no more requests; says why once those before have been answered."""
        if self._refusal is None:
            self._refusal = (status, message)
            self._in_request = False
            if self._exchange is None and not self._waiting:
                self._say_refusal()

    def _say_refusal(self) -> None:
        assert self._refusal is not None, "called when there is one"
        status, message = self._refusal
        if status:
            path = unquote(self._plain_url().partition("?")[0])
            body = plain_error(path, status, message)
            headers = {"content-type": "application/json"}
            self._transport.write(head(status, headers, length=len(body), keep_alive=False) + body)
        if self._transport.can_write_eof():
            # What the client still sends is read and dropped: a reset would take the answer away from it.
            self.deadline_s = self._loop.time() + self._limits.linger_s
            self._transport.write_eof()
        else:
            self._close()

    def _close(self) -> None:
        """Closes once what was written has been read, within the linger time."""
        self._linger()
        self._transport.close()

    def _linger(self) -> None:
        self._lingering_bytes = self.unsent_bytes
        self.deadline_s = self._loop.time() + self._limits.linger_s

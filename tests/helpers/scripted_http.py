"""An HTTP server whose every byte the test decides, and a client's side of a forwarded call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from engine_adapters.base import EngineError
from engine_adapters.forwarding import BodyFeed, ForwardCall, Forwarder, Headers, ReplyData, ReplyEnd, ReplyHead

DEADLINE_S = 10.0


class HeardCall:
    """A request as it came, and the way back."""

    def __init__(self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head = head
        self.body = body
        self.reader = reader
        self.writer = writer

    @property
    def line(self) -> str:
        return self.head.decode("latin-1").split("\r\n")[0]

    @property
    def headers(self) -> list[tuple[str, str]]:
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def left(self) -> None:
        """Returns when the other side has closed the connection."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass

    def close(self) -> None:
        self.writer.close()


Answer = Callable[[HeardCall], Awaitable[None]]


class ScriptedHttp:
    """Hands each request that is complete to `answer`; a connection is kept until either side closes it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.heard: list[HeardCall] = []
        self.connections = 0
        """So many have been opened."""
        self.open = 0
        self.url = ""
        self.reads_bodies = asyncio.Event()
        """Cleared: heads are read, bodies not."""
        self.reads_bodies.set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self._writers.add(writer)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = [v for k, v in HeardCall(head, b"", reader, writer).headers if k.lower() == "content-length"]
                if length:
                    await self.reads_bodies.wait()
                body = await reader.readexactly(int(length[0])) if length else b""
                call = HeardCall(head, body, reader, writer)
                self.heard.append(call)
                await self.answer(call)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()


@asynccontextmanager
async def scripted_http(answer: Answer) -> AsyncIterator[ScriptedHttp]:
    """A server on this machine, gone at the end."""
    server = ScriptedHttp(answer)
    listening = await asyncio.start_server(server._serve, "127.0.0.1", 0, backlog=1000)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        for writer in list(server._writers):
            writer.transport.abort()
        await until(lambda: not server.open)


class Caller:
    """One forwarded call; keeps what comes back."""

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.head: ReplyHead | None = None
        self.data: list[bytes] = []
        self.output_tokens = 0
        self.end: ReplyEnd | EngineError | None = None
        self.on_data: Callable[[], None] | None = None
        self._came = asyncio.Event()

    def __call__(self, request_id: str, reply: ReplyHead | ReplyData | ReplyEnd | EngineError) -> None:
        assert request_id == self.name
        assert self.end is None, "nothing comes behind the end"
        if isinstance(reply, ReplyHead):
            assert self.head is None, "one head"
            self.head = reply
        elif isinstance(reply, ReplyData):
            assert self.head is not None, "the head comes first"
            assert reply.data
            self.data.append(reply.data)
            self.output_tokens += reply.output_tokens
            if self.on_data is not None:
                self.on_data()
        else:
            self.end = reply
        self._came.set()

    def call(
        self,
        forwarder: Forwarder,
        *,
        body: bytes = b"{}",
        method: str = "POST",
        target: str = "/v1/chat/completions",
        headers: Headers = (),
        later_bytes: int = 0,
    ) -> BodyFeed:
        """Starts it; `later_bytes` of the body are still to come."""
        size_bytes = len(body) + later_bytes
        feed = BodyFeed(size_bytes)
        feed.feed(body)
        forwarder.forward(
            ForwardCall(
                request_id=self.name,
                method=method,
                target=target,
                headers=headers,
                body_bytes=size_bytes,
                prompt_tokens=1,
            ),
            feed,
            self,
        )
        return feed

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._came.clear()
                await self._came.wait()

    async def ended(self) -> ReplyEnd | EngineError:
        await self.until(lambda: self.end is not None)
        assert self.end is not None
        return self.end

    @property
    def body(self) -> bytes:
        return b"".join(self.data)


async def until(condition: Callable[[], bool]) -> None:
    """For what tells nobody that it has changed."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what the other side does sets no event here
            await asyncio.sleep(0.005)


def whole(body: bytes, *, status: int = 200, more: str = "", kind: str = "application/json") -> bytes:
    return (
        f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode("latin-1")
        + body
    )


CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)

"""HTTP engines that misbehave on order: a call says in its headers at which of them, and how.

They live in a thread of their own, so that they outlast the event loop of a single test.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from tests.helpers.scripted_http import CHUNKED, LAST, chunk, whole

PAGE = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:gpu_cache_usage_perc 0.0\n"
MODEL = "scripted"
FAULT, WHERE = "x-fault", "x-fault-at"
PIECE = bytes(range(256)) * 256
"""64 KiB."""
LONG_BYTES = 512 * len(PIECE)
"""32 MiB: the long answer."""
EVENTS = 8


def event(number: int, digest: str) -> bytes:
    return b'data: {"n": %d, "sha": "%s"}\n\n' % (number, digest.encode())


def streamed(body: bytes) -> bytes:
    """The whole stream that answers this body."""
    digest = hashlib.sha256(body).hexdigest()
    return b"".join(event(n, digest) for n in range(EVENTS)) + b"data: [DONE]\n\n"


def answered(body: bytes) -> bytes:
    """The plain answer to this body."""
    return b'{"sha": "%s", "bytes": %d}' % (hashlib.sha256(body).hexdigest().encode(), len(body))


class _Call:
    def __init__(self, headers: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.headers = headers
        self.reader = reader
        self.writer = writer

    async def body(self) -> bytes:
        return await self.reader.readexactly(int(self.headers.get("content-length", "0")))

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def wait_until_left(self) -> None:
        while await self.reader.read(65536):
            pass


class ScriptedEngine:
    """One server. `open` counts its connections, `running` the calls that it has not answered."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.url = ""
        self.open = 0
        self.running = 0
        self.began = 0
        """So many calls have reached it."""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=2000)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        assert self._server is not None, "it was started"
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines[1:-2])
                call = _Call(headers, reader, writer)
                if lines[0].startswith("GET /v1/models"):
                    await call.say(whole(b'{"data":[{"id":"%s"}]}' % MODEL.encode()))
                elif lines[0].startswith("GET /metrics"):
                    await call.say(whole(PAGE, kind="text/plain"))
                else:
                    await self._answer(call)
        self.open -= 1
        self._writers.discard(writer)
        writer.transport.abort()

    async def _answer(self, call: _Call) -> None:
        self.running += 1
        self.began += 1
        try:
            where = call.headers.get(WHERE, "all")
            here = where in ("all", str(self.index))
            await ANSWERS[call.headers.get(FAULT, "none") if here else "none"](call)
        finally:
            self.running -= 1


# --- what they do -----------------------------------------------------------------------------------------------------


async def none(call: _Call) -> None:
    body = await call.body()
    if b'"stream": true' in body:
        await call.say(CHUNKED + chunk(streamed(body)) + LAST)
    else:
        await call.say(whole(answered(body)))


async def paced(call: _Call) -> None:
    """A stream that takes a while, an event at a time."""
    body = await call.body()
    digest = hashlib.sha256(body).hexdigest()
    await call.say(CHUNKED)
    for number in range(EVENTS):
        await call.say(chunk(event(number, digest)))
        await asyncio.sleep(0.05)
    await call.say(chunk(b"data: [DONE]\n\n") + LAST)


async def long(call: _Call) -> None:
    await call.body()
    await call.say(b"HTTP/1.1 200 OK\r\ncontent-type: audio/wav\r\ncontent-length: %d\r\n\r\n" % LONG_BYTES)
    for _ in range(LONG_BYTES // len(PIECE)):
        await call.say(PIECE)


async def silent(call: _Call) -> None:
    await call.body()
    await call.wait_until_left()


async def reads_slowly(call: _Call) -> None:
    """So an upload is long under way."""
    left = int(call.headers["content-length"])
    digest, size = hashlib.sha256(), left
    while left:
        data = await call.reader.read(min(left, 256 * 1024))
        if not data:
            return
        left -= len(data)
        digest.update(data)
        await asyncio.sleep(0.02)
    await call.say(whole(b'{"sha": "%s", "bytes": %d}' % (digest.hexdigest().encode(), size)))


async def half_a_head_then_silent(call: _Call) -> None:
    await call.body()
    await call.say(b"HTTP/1.1 200 OK\r\ncontent-ty")
    await call.wait_until_left()


async def half_a_head(call: _Call) -> None:
    await call.body()
    await call.say(b"HTTP/1.1 200 OK\r\ncontent-ty")
    call.writer.close()


async def a_head_only(call: _Call) -> None:
    await call.body()
    await call.say(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
    call.writer.close()


async def half_a_body(call: _Call) -> None:
    await call.body()
    await call.say(whole(b"x" * 100)[:-50])
    call.writer.close()


async def half_a_body_then_silent(call: _Call) -> None:
    await call.body()
    await call.say(whole(b"x" * 100)[:-50])
    await call.wait_until_left()


async def half_a_chunk(call: _Call) -> None:
    body = await call.body()
    digest = hashlib.sha256(body).hexdigest()
    await call.say(CHUNKED + chunk(event(0, digest)) + chunk(event(1, digest))[:-9])
    call.writer.close()


async def half_a_stream(call: _Call) -> None:
    body = await call.body()
    await call.say(CHUNKED + chunk(event(0, hashlib.sha256(body).hexdigest())))
    call.writer.transport.abort()


async def garbage(call: _Call) -> None:
    await call.body()
    await call.say(b"\x16\x03\x01 what is this\r\n\r\n")
    await call.wait_until_left()


async def garbage_in_a_stream(call: _Call) -> None:
    body = await call.body()
    await call.say(CHUNKED + chunk(event(0, hashlib.sha256(body).hexdigest())) + b"no length\r\n")
    await call.wait_until_left()


async def closes_at_once(call: _Call) -> None:
    call.writer.close()


async def resets(call: _Call) -> None:
    call.writer.transport.abort()


async def more_than_asked(call: _Call) -> None:
    """Two answers to one call: the second is nobody's."""
    body = await call.body()
    await call.say(whole(answered(body)) + whole(b'{"sha": "of another"}'))


def _status(status: int) -> Callable[[_Call], Awaitable[None]]:
    async def answer(call: _Call) -> None:
        await call.body()
        await call.say(whole(b'{"error": %d}' % status, status=status))

    return answer


async def too_large_early(call: _Call) -> None:
    """Answers without having read the body, and closes."""
    await call.say(whole(b'{"error": 413}', status=413, more="connection: close\r\n"))
    await asyncio.sleep(0.05)
    call.writer.close()


ANSWERS: dict[str, Callable[[_Call], Awaitable[None]]] = {
    **{
        do.__name__: do
        for do in (
            none,
            paced,
            long,
            silent,
            reads_slowly,
            half_a_head_then_silent,
            half_a_head,
            a_head_only,
            half_a_body,
            half_a_body_then_silent,
            half_a_chunk,
            half_a_stream,
            garbage,
            garbage_in_a_stream,
            closes_at_once,
            resets,
            more_than_asked,
            too_large_early,
        )
    },
    **{f"status_{status}": _status(status) for status in (408, 422, 429, 500, 503)},
}
BEFORE_THE_FIRST_BYTE = (
    "half_a_head", "a_head_only", "garbage", "closes_at_once", "resets", "status_408", "status_429", "status_500",
    "status_503",
)  # fmt: skip
"""Another node answers instead."""
AMID = ("half_a_body", "half_a_chunk", "half_a_stream", "garbage_in_a_stream")
"""The answer has begun, and is never whole."""
NO_END = ("silent", "half_a_head_then_silent", "half_a_body_then_silent")


@contextmanager
def scripted_engines(count: int) -> Iterator[list[ScriptedEngine]]:
    """So many servers, gone at the end."""
    engines = [ScriptedEngine(index) for index in range(count)]
    loop = asyncio.new_event_loop()
    started, stopping = threading.Event(), asyncio.Event()

    async def serve() -> None:
        for engine in engines:
            await engine.start()
        started.set()
        await stopping.wait()
        for engine in engines:
            engine.stop()
        while any(engine.open for engine in engines):  # noqa: ASYNC110 - handlers set no event
            await asyncio.sleep(0.01)

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run, name="scripted engines", daemon=True)
    thread.start()
    assert started.wait(10.0), "the scripted engines do not start"
    try:
        yield engines
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(10.0)


@contextlib.asynccontextmanager
async def served(engine: ScriptedEngine) -> AsyncIterator[ScriptedEngine]:
    """One server on this event loop."""
    await engine.start()
    try:
        yield engine
    finally:
        engine.stop()
        while engine.open:  # noqa: ASYNC110 - handlers set no event
            await asyncio.sleep(0.01)

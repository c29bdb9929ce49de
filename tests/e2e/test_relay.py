"""The relay against a real server that misbehaves on purpose: what reaches it, what comes back, what is left behind."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engine_adapters.base import EngineError, RequestRefused
from engine_adapters.forwarding import BodyFeed, ForwardCall, ReplyEnd
from engine_adapters.relay import REPLAY_BYTES, EngineRelay
from protos.runtime.secret import NO_SECRET, Secret
from tests.helpers.scripted_http import (
    CHUNKED,
    LAST,
    Answer,
    Caller,
    HeardCall,
    ScriptedHttp,
    chunk,
    scripted_http,
    until,
    whole,
)

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'


@asynccontextmanager
async def relayed(answer: Answer, *, key: Secret = NO_SECRET) -> AsyncIterator[tuple[ScriptedHttp, EngineRelay]]:
    """A server and a relay to it; afterwards neither a connection nor a task of the relay is left."""
    tasks = asyncio.all_tasks()
    async with scripted_http(answer) as server:
        relay = EngineRelay(server.url, key=key, named=lambda name: f"<{name}>")
        yield server, relay
        await relay.close()
        await relay.close()
        assert (len(relay), relay.connections) == (0, 0)
        await until(lambda: not server.open)
    await until(lambda: not {t for t in asyncio.all_tasks() - tasks if t.get_name().startswith("relay")})


async def echo(call: HeardCall) -> None:
    await call.say(whole(call.body))


async def test_a_call_reaches_the_server_as_its_client_made_it() -> None:
    sent = (
        ("content-type", "application/json"),
        ("accept-encoding", "br, gzip"),
        ("x-custom", "one"),
        ("x-custom", "caf\xe9"),
        ("connection", "keep-alive, X-Hop"),
        ("x-hop", "not for you"),
        ("transfer-encoding", "chunked"),
        ("expect", "100-continue"),
        ("host", "gateway"),
        ("content-length", "999"),
        ("authorization", "Bearer the-clients"),
        ("x-api-key", "the-clients"),
        ("x-request-id", "the-clients"),
    )
    async with relayed(echo, key=Secret("the-engines")) as (server, relay):
        caller = Caller()
        body = b'{ "unknown" : [1, 2] }\xff\x00'
        caller.call(relay, body=body, target="/v1/chat/completions?a=%20b", headers=sent)
        assert isinstance(await caller.ended(), ReplyEnd)
        heard = server.heard[0]
    assert heard.line == "POST /v1/chat/completions?a=%20b HTTP/1.1"
    assert heard.body == body
    assert heard.headers == [
        ("host", server.url.removeprefix("http://")),
        ("authorization", "Bearer the-engines"),
        ("content-type", "application/json"),
        ("accept-encoding", "br, gzip"),
        ("x-custom", "one"),
        ("x-custom", "caf\xe9"),
        ("x-request-id", "<a>"),
        ("content-length", str(len(body))),
    ]
    assert caller.body == body


async def test_an_answer_comes_back_as_the_server_gave_it() -> None:
    packed = bytes(range(256)) * 3

    async def answer(call: HeardCall) -> None:
        more = "set-cookie: a=1\r\nset-cookie: b=2\r\ncontent-encoding: gzip\r\nconnection: x-hop\r\nx-hop: 1\r\n"
        await call.say(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
        await call.say(whole(packed, status=302, more=f"{more}location: http://elsewhere/\r\nKeep-Alive: 5\r\n"))

    async with relayed(answer) as (server, relay):
        caller = Caller()
        caller.call(relay)
        assert await caller.ended() == ReplyEnd()
        assert len(server.heard) == 1, "redirects are the client's to follow"
    assert caller.head is not None
    assert caller.head.status == 302
    assert caller.head.headers == (
        ("content-type", "application/json"),
        ("content-length", str(len(packed))),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("content-encoding", "gzip"),
        ("location", "http://elsewhere/"),
    )
    assert caller.body == packed


async def test_a_stream_comes_as_it_is_produced_with_its_tokens_counted() -> None:
    go = asyncio.Event()

    async def answer(call: HeardCall) -> None:
        await call.say(CHUNKED + chunk(EVENT))
        await go.wait()
        usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
        await call.say(b"".join(map(chunk, (EVENT, EVENT, usage, b"data: [DONE]\n\n"))) + LAST)

    async with relayed(answer) as (_, relay):
        caller = Caller()
        caller.call(relay)
        await caller.until(lambda: caller.output_tokens == 1)
        go.set()
        end = await caller.ended()
    assert end == ReplyEnd(prompt_tokens=3, output_tokens=4)
    assert caller.output_tokens == 4
    assert caller.body.count(EVENT) == 3
    assert caller.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
async def test_calls_without_a_body_say_nothing_of_one(method: str) -> None:
    async def answer(call: HeardCall) -> None:
        await call.say(whole(b"" if method == "HEAD" else b"{}", more="x-length: 2\r\n"))

    async with relayed(answer) as (server, relay):
        for name in "abc":
            caller = Caller(name)
            caller.call(relay, body=b"", method=method, target="/version")
            assert await caller.ended() == ReplyEnd()
        assert not [h for call in server.heard for h in call.headers if h[0] == "content-length"]


async def test_a_body_that_ends_with_the_connection_is_whole() -> None:
    async def answer(call: HeardCall) -> None:
        await call.say(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1000)
        call.close()

    async with relayed(answer) as (_, relay):
        caller = Caller()
        caller.call(relay)
        assert await caller.ended() == ReplyEnd()
        assert caller.body == b"x" * 1000


async def test_connections_are_used_again() -> None:
    async with relayed(echo) as (server, relay):
        for i in range(20):
            caller = Caller(f"r{i}")
            caller.call(relay, body=b"%d" % i)
            await caller.ended()
            assert caller.body == b"%d" % i
        assert server.connections == 1


@pytest.mark.parametrize("reads_it", [True, False])
async def test_a_connection_that_the_server_has_just_closed_fails_nobody(reads_it: bool) -> None:
    """Once it was idle, the server closes on the next request: before it has read it, or behind."""
    served = 0

    async def answer(call: HeardCall) -> None:
        nonlocal served
        served += 1
        if served == 2:
            call.writer.transport.abort()
        else:
            await call.say(whole(call.body))

    async with relayed(answer) as (server, relay):
        first, second = Caller("first"), Caller("second")
        first.call(relay)
        await first.ended()
        if not reads_it:
            served += 1
            server.heard[0].writer.transport.abort()
        feed = second.call(relay, body=b"x" * 1000, later_bytes=1000)
        await asyncio.sleep(0)
        feed.feed(b"y" * 1000)
        assert isinstance(await second.ended(), ReplyEnd)
        assert second.body == b"x" * 1000 + b"y" * 1000


async def test_a_new_connection_that_breaks_is_not_tried_again() -> None:
    async def answer(call: HeardCall) -> None:
        call.writer.transport.abort()

    async with relayed(answer) as (server, relay):
        caller = Caller()
        caller.call(relay)
        end = await caller.ended()
        assert isinstance(end, EngineError)
        assert "broke without an answer" in str(end)
        assert len(server.heard) == 1


@pytest.mark.parametrize("part", [CHUNKED + chunk(EVENT), whole(b"x" * 100)[:-50], b"HTTP/1.1 200 OK\r\nconte"])
async def test_half_an_answer_is_an_error_also_on_a_used_connection(part: bytes) -> None:
    async def answer(call: HeardCall) -> None:
        if call.body == b"whole":
            await call.say(whole(b"{}"))
        else:
            await call.say(part)
            call.close()

    async with relayed(answer) as (server, relay):
        first, second = Caller("first"), Caller("second")
        first.call(relay, body=b"whole")
        await first.ended()
        second.call(relay, body=b"half")
        end = await second.ended()
        assert isinstance(end, EngineError)
        assert "in the middle of its answer" in str(end)
        assert len(server.heard) == 2


async def test_what_is_no_http_is_an_error() -> None:
    async def answer(call: HeardCall) -> None:
        await call.say(b"SSH-2.0-OpenSSH_9.6\r\n")

    async with relayed(answer) as (_, relay):
        caller = Caller()
        caller.call(relay)
        assert "no HTTP" in str(await caller.ended())


async def test_nobody_there_is_an_error_that_names_the_address() -> None:
    async with relayed(echo) as (server, _):
        url = server.url
    relay = EngineRelay(url)
    caller = Caller()
    caller.call(relay)
    end = await caller.ended()
    assert isinstance(end, EngineError)
    assert url in str(end)
    await relay.close()


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET /x HTTP/1.1\r\n", "/", ()),
        ("get", "/", ()),
        ("GET", "/a b", ()),
        ("GET", "/\r\nx: y", ()),
        ("GET", "http://elsewhere/", ()),
        ("GET", "*", ()),
        ("GET", "/", (("x", "a\r\nb: c"),)),
        ("GET", "/", (("x y", "a"),)),
        ("GET", "/", (("x", "\u20ac"),)),
    ],
)
async def test_what_is_no_request_is_refused(method: str, target: str, headers: tuple[tuple[str, str], ...]) -> None:
    relay = EngineRelay("http://127.0.0.1:1")
    call = ForwardCall(request_id="a", method=method, target=target, headers=headers, body_bytes=0)
    with pytest.raises(RequestRefused):
        relay.forward(call, BodyFeed(0), Caller())
    with pytest.raises(RequestRefused, match="line break"):
        Caller("a\r\nx: y").call(relay)
    assert len(relay) == 0
    await relay.close()
    with pytest.raises(EngineError, match="closed"):
        Caller().call(relay)


async def test_a_long_body_streams_and_is_never_held_whole() -> None:
    pieces, piece_bytes, ahead = 200, 256 * 1024, 4

    async def answer(call: HeardCall) -> None:
        await call.say(whole(b"%d" % len(call.body)))

    async with relayed(answer) as (server, relay):
        first, caller = Caller("first"), Caller()
        first.call(relay)
        await first.ended()
        feed = caller.call(relay, body=b"x" * piece_bytes, later_bytes=(pieces - 1) * piece_bytes)
        for _ in range(pieces - 1):
            await until(lambda: len(feed._pieces) < ahead)
            feed.feed(b"x" * piece_bytes)
            if relay._calls:
                exchange = relay._calls["a"]
                assert exchange.kept is None, "too long to be kept"
                if exchange.connection is not None:
                    buffered = exchange.connection._transport.get_write_buffer_size()
                    assert buffered <= 2 * piece_bytes
        await caller.ended()
        assert caller.body == b"%d" % (pieces * piece_bytes)
        assert server.connections == 2, "it may not be sent twice, so it gets a connection of its own"
    assert piece_bytes * pieces > REPLAY_BYTES


async def test_a_body_that_does_not_come_ends_the_call() -> None:
    async with relayed(echo) as (server, relay):
        caller = Caller()
        feed = caller.call(relay, body=b"x", later_bytes=10)
        await until(lambda: server.open == 1)
        feed.give_up()
        assert "did not come" in str(await caller.ended())
        await until(lambda: not server.open)


async def test_an_answer_before_the_body_is_complete_is_an_answer() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(whole(b"too large", status=413))
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    relay = EngineRelay(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    caller = Caller()
    caller.call(relay, body=b"x" * 1000, later_bytes=10_000_000)
    assert await caller.ended() == ReplyEnd()
    assert caller.head is not None
    assert caller.head.status == 413
    await until(lambda: not relay.connections)
    await relay.close()
    listening.close()
    await listening.wait_closed()


async def test_a_held_answer_waits_in_the_server_and_goes_on() -> None:
    size_bytes = 64 * 1024 * 1024
    written = 0

    async def answer(call: HeardCall) -> None:
        nonlocal written
        call.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size_bytes)
        while written < size_bytes:
            await call.say(b"x" * 65536)
            written += 65536

    async with relayed(answer) as (_, relay):
        caller = Caller()
        caller.on_data = lambda: relay.hold("a", True)
        caller.call(relay)
        await caller.until(lambda: bool(caller.data))
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert len(caller.data) == 1, "nothing comes while it is held"
        assert written < size_bytes // 2
        caller.on_data = None
        relay.hold("a", False)
        assert await caller.ended() == ReplyEnd()
        assert len(caller.body) == size_bytes
        relay.hold("a", True)
        again = Caller()
        written = size_bytes
        again.call(relay)
        await until(lambda: again.head is not None)


@pytest.mark.parametrize("when", ["connecting", "sending", "waiting", "streaming", "held"])
async def test_abort_closes_the_connection_and_ends_the_call_within_the_turn(when: str) -> None:
    gone = asyncio.Event()

    async def answer(call: HeardCall) -> None:
        if when in ("streaming", "held"):
            await call.say(CHUNKED + chunk(EVENT))
        await call.left()
        gone.set()

    async with relayed(answer) as (server, relay):
        caller = Caller()
        caller.call(relay, later_bytes=10 if when == "sending" else 0)
        if when == "sending":
            await until(lambda: server.open == 1)
        elif when == "waiting":
            await until(lambda: len(server.heard) == 1)
        elif when != "connecting":
            await caller.until(lambda: bool(caller.data))
        if when == "held":
            relay.hold("a", True)
        assert await relay.abort("a")
        assert caller.end == ReplyEnd(aborted=True)
        assert not await relay.abort("a")
        if when != "connecting":
            await until(lambda: not server.open)
        if when not in ("connecting", "sending"):
            assert gone.is_set()
        again = Caller()
        again.call(relay)
        assert await relay.abort("a"), "the name is free at once"


async def test_hundreds_at_once_some_of_which_leave() -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)

    async def answer(call: HeardCall) -> None:
        await call.say(CHUNKED)
        for _ in range(int(call.body)):
            await call.say(chunk(EVENT))
            await asyncio.sleep(0)
        await call.say(LAST)

    async with relayed(answer) as (server, relay):
        callers = [Caller(f"r{i}") for i in range(400)]
        wanted = {caller.name: rng.randint(1, 40) for caller in callers}
        leavers = {caller.name: rng.randint(1, 5) for caller in callers if rng.random() < 0.3}
        for caller in callers:
            caller.call(relay, body=b"%d" % wanted[caller.name])

        async def leave(caller: Caller) -> None:
            await caller.until(lambda: caller.output_tokens >= leavers[caller.name] or caller.end is not None)
            await relay.abort(caller.name)

        await asyncio.gather(*(leave(c) for c in callers if c.name in leavers))
        ends = await asyncio.gather(*(c.ended() for c in callers))
        assert all(isinstance(end, ReplyEnd) for end in ends)
        for caller, end in zip(callers, ends, strict=True):
            if caller.name not in leavers:
                assert end == ReplyEnd()
                assert caller.output_tokens == wanted[caller.name]
        assert len(relay) == 0
        await until(lambda: server.open == relay.connections)

"""One HTTP connection without a network: order of answers, limits on what comes in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.http.connection import LEAST_SENT_BYTES, PIPELINED_BYTES, Connection, ConnectionLimits, Exchange

LIMITS = ConnectionLimits(max_head_bytes=1_000, max_body_bytes=64 * 1024 * 1024)


class FakeTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.writes = 0
        self.closed = False
        self.paused = False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        self.written += data
        self.writes += 1

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True


def connected() -> tuple[Connection, FakeTransport, list[Exchange]]:
    """The last holds the requests that have been begun."""
    begun: list[Exchange] = []
    transport = FakeTransport()
    connection = Connection(begun.append, LIMITS, set())
    connection.connection_made(transport)
    return connection, transport, begun


def get(path: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path


def test_a_request_never_passes_one_that_waits() -> None:
    async def talk() -> list[str]:
        connection, _, begun = connected()
        connection.data_received(get(b"/1") + get(b"/2"))
        begun[0].respond(200, {}, b"")
        # It comes in the turn of the event loop in which the second is about to begin.
        connection.data_received(get(b"/3"))
        for number in (1, 2):
            await asyncio.sleep(0)
            begun[number].respond(200, {}, b"")
        return [exchange.request.path for exchange in begun]

    assert asyncio.run(talk()) == ["/1", "/2", "/3"]


def post(path: bytes, body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (path, len(body), body)


def test_long_bodies_that_are_pipelined_are_not_read_before_their_turn() -> None:
    async def talk() -> list[int]:
        connection, transport, begun = connected()
        body = b"x" * (3 * PIPELINED_BYTES)
        sent = b"".join(post(b"/%d" % number, body) for number in range(5)) + get(b"/last")
        at = 0
        held = []
        while True:
            while at < len(sent) and not transport.paused:
                connection.data_received(sent[at : at + 64 * 1024])
                at += 64 * 1024
            held.append(min(at, len(sent)) - sum(len(exchange.request.body) for exchange in begun))
            begun[-1].respond(200, {}, b"")
            await asyncio.sleep(0)
            if len(begun) == 6 and begun[-1].ended:
                break
        assert [len(exchange.request.body) for exchange in begun] == [len(body)] * 5 + [0]
        return held

    assert max(asyncio.run(talk())) < PIPELINED_BYTES + 3 * 64 * 1024


def test_a_long_body_may_take_its_time_as_long_as_it_comes() -> None:
    async def talk() -> tuple[int, bytes]:
        connection, transport, begun = connected()
        now_s = asyncio.get_running_loop().time()
        size = 20 * LEAST_SENT_BYTES
        connection.data_received(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(20):
            connection.data_received(b"x" * LEAST_SENT_BYTES)
            now_s += LIMITS.request_s + 1
            connection.expire(now_s)
        came = len(begun[0].request.body)
        begun[0].respond(200, {}, b"")
        transport.written = b""
        connection.data_received(b"POST /stuck HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        connection.data_received(b"x" * (LEAST_SENT_BYTES - 1))
        connection.expire(now_s + 10 * LIMITS.request_s)
        return came, transport.written

    came, written = asyncio.run(talk())
    assert came == 20 * LEAST_SENT_BYTES
    assert written.startswith(b"HTTP/1.1 408 ")


def test_many_short_requests_that_are_pipelined_are_not_read_before_their_turn() -> None:
    async def talk() -> None:
        connection, transport, begun = connected()
        for number in range(17):
            assert not transport.paused
            connection.data_received(get(b"/%d" % number))
        assert transport.paused
        begun[0].respond(200, {}, b"")
        await asyncio.sleep(0)
        assert not transport.paused

    asyncio.run(talk())


OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
def test_the_offer_of_another_protocol_is_not_taken_and_the_request_stands(size: int) -> None:
    async def talk() -> list[Exchange]:
        connection, transport, begun = connected()
        chunked = b"POST /2 HTTP/1.1\r\nhost: x\r\n%btransfer-encoding: chunked\r\n\r\n3\r\ndef\r\n0\r\n\r\n" % OFFER
        socket = b"GET /3 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        sent = b"POST /1 HTTP/1.1\r\nhost: x\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 3\r\n%b\r\nabc" % OFFER
        sent += chunked + socket + get(b"/4")
        for at in range(0, len(sent), size):
            connection.data_received(sent[at : at + size])
        for number in range(4):
            begun[number].respond(200, {}, b"")
            await asyncio.sleep(0)
        assert transport.written.count(b"HTTP/1.1 200 ") == 4
        return begun

    begun = [exchange.request for exchange in asyncio.run(talk())]
    assert [(r.path, bytes(r.body)) for r in begun] == [("/1", b"abc"), ("/2", b"def"), ("/3", b""), ("/4", b"")]
    assert begun[0].lines == [("host", "x"), ("x-a", "1"), ("x-a", "2"), ("content-length", "3")]
    assert not any("upgrade" in r.headers or "http2-settings" in r.headers for r in begun)


def test_what_follows_the_wish_for_a_tunnel_is_no_request() -> None:
    async def talk() -> int:
        connection, _, begun = connected()
        connection.data_received(b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n" + get(b"/inside"))
        return len(begun)

    assert asyncio.run(talk()) == 1


def test_clients_of_http_10_are_not_told_to_continue() -> None:
    async def talk() -> bytes:
        connection, transport, _ = connected()
        connection.data_received(b"POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        return transport.written

    assert asyncio.run(talk()) == b""


def test_a_trailer_has_the_limit_of_a_head() -> None:
    async def talk() -> tuple[bytes, int]:
        connection, transport, begun = connected()
        connection.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: ")
        for _ in range(3):
            connection.data_received(b"y" * 500)
        connection.data_received(b"\r\n\r\n")
        return transport.written, len(begun)

    written, begun = asyncio.run(talk())
    assert written.startswith(b"HTTP/1.1 431 ")
    assert not begun


def test_a_body_in_many_pieces_is_not_taken_for_a_head() -> None:
    async def talk() -> bytes:
        connection, _, begun = connected()
        connection.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(2_000):
            for piece in (b"1\r\n", b"a", b"\r\n"):
                connection.data_received(piece)
        connection.data_received(b"0\r\nx: y\r\n\r\n")
        return bytes(begun[0].request.body)

    assert asyncio.run(talk()) == b"a" * 2_000


def test_a_head_whose_body_is_not_there_yet_leaves_alone_and_once() -> None:
    async def talk() -> tuple[bytes, bytes]:
        connection, transport, begun = connected()
        connection.data_received(get(b"/stream"))
        begun[0].start(200, {})
        begun[0].send_head()
        begun[0].send_head()
        alone = transport.written
        begun[0].send(b"all", last=True)
        return alone, transport.written.removeprefix(alone)

    alone, rest = asyncio.run(talk())
    assert alone.startswith(b"HTTP/1.1 200")
    assert alone.endswith(b"\r\n\r\n")
    assert rest == b"3\r\nall\r\n0\r\n\r\n"


def test_head_and_first_piece_leave_together_and_so_do_the_last_piece_and_the_end() -> None:
    async def talk() -> tuple[int, bytes, bytes]:
        connection, transport, begun = connected()
        connection.data_received(get(b"/stream"))
        begun[0].start(200, {})
        begun[0].send(b"first")
        first = transport.written
        begun[0].send(b"last", last=True)
        return transport.writes, first, transport.written.removeprefix(first)

    writes, first, rest = asyncio.run(talk())
    assert writes == 2
    assert first.startswith(b"HTTP/1.1 200")
    assert first.endswith(b"\r\n\r\n5\r\nfirst\r\n")
    assert rest == b"4\r\nlast\r\n0\r\n\r\n"


@pytest.mark.parametrize("end", ["end", "finish"])
def test_a_head_without_a_body_leaves_with_the_end(end: str) -> None:
    async def talk() -> bytes:
        connection, transport, begun = connected()
        connection.data_received(get(b"/none"))
        begun[0].start(304, {}, length=0)
        assert not transport.written
        getattr(begun[0], end)()
        return transport.written

    assert asyncio.run(talk()).startswith(b"HTTP/1.1 304")

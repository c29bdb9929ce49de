"""One HTTP connection without a network: order of answers, limits on what comes in."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.http.connection import Connection, ConnectionLimits, Exchange

LIMITS = ConnectionLimits(max_head_bytes=1_000, max_body_bytes=10_000)


class FakeTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

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

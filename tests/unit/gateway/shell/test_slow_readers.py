"""Clients that read slowly are waited for as long as they read, and no longer: no clock and no socket takes part."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.http import calls
from gateway.http.calls import CallDelivery
from gateway.http.connection import LEAST_READ_BYTES, Connection, ConnectionLimits, Exchange
from gateway.intake.client_call import AnswerHead, ClientCall
from gateway.intake.client_stream import ClientStream
from tests.helpers.routing import shape

LIMITS = ConnectionLimits(linger_s=10.0)
REST_BYTES = 1024 * 1024


class SlowSocket:
    """A transport whose client takes what the test says."""

    def __init__(self) -> None:
        self.unsent_bytes = 0
        self.closing = False
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.unsent_bytes += len(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = True


def answered(*, keeps: bool) -> tuple[Connection, SlowSocket]:
    """A connection on which a long answer is complete, and unread."""

    def answer(exchange: Exchange) -> None:
        exchange.start(200, {}, length=REST_BYTES)
        connection.pause_writing()
        exchange.send(bytes(REST_BYTES), last=True)

    connection = Connection(answer, LIMITS, set())
    socket: Any = SlowSocket()
    connection.connection_made(socket)
    head = b"GET / HTTP/1.1\r\nhost: x\r\n" + (b"" if keeps else b"connection: close\r\n")
    connection.data_received(head + b"\r\n")
    return connection, socket


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_client_that_reads_on_gets_the_rest_however_long_it_takes(keeps: bool) -> None:
    connection, socket = answered(keeps=keeps)
    for _ in range(REST_BYTES // LEAST_READ_BYTES):
        assert connection.deadline_s is not None
        socket.unsent_bytes -= LEAST_READ_BYTES
        connection.expire(connection.deadline_s + 0.1)
        assert not socket.aborted


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_client_that_hardly_reads_is_given_up(keeps: bool) -> None:
    connection, socket = answered(keeps=keeps)
    assert connection.deadline_s is not None
    connection.expire(connection.deadline_s - 0.1)
    assert not socket.aborted
    socket.unsent_bytes -= LEAST_READ_BYTES - 1
    connection.expire(connection.deadline_s + 0.1)
    assert socket.aborted


class BlockedExchange:
    """Of a client that takes a byte at each of the first `moves` looks."""

    is_over = False
    is_blocked = True
    started = True
    on_left: Callable[[], None] | None = None
    on_writable: Callable[[], None] | None = None

    def __init__(self, moves: int) -> None:
        self.moves = moves
        self.looks = 0

    def drop_body(self) -> None: ...

    @property
    def unsent_bytes(self) -> int:
        self.looks += 1
        return REST_BYTES - min(self.looks, self.moves)


class Batch:
    def add(self, delivery: CallDelivery) -> None:
        delivery.serve()


class Watcher:
    """Takes the place of the intake."""

    def __init__(self) -> None:
        self.gave_up = asyncio.Event()

    def give_up_reader(self, stream: ClientStream) -> None:
        self.gave_up.set()


async def test_a_reader_is_given_up_when_it_stands_still_and_not_while_it_is_at_a_long_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "STANDSTILL_S", 0.0)
    call = ClientCall(method="POST", target="/v1/embeddings", headers=(), body=b"", body_bytes=0)
    stream = ClientStream(shape(), call=call)
    assert stream.answer is not None
    stream.answer.put_head(AnswerHead(200, ()))
    stream.answer.put(b"more")
    exchange: Any = BlockedExchange(moves=9)
    watcher: Any = Watcher()
    batch: Any = Batch()
    CallDelivery(stream, watcher, exchange, "audio", batch)
    async with asyncio.timeout(5.0):
        await watcher.gave_up.wait()
    assert exchange.looks > 9

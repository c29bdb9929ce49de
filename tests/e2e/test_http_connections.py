"""Connections of the HTTP front: kept, pipelined, slow, broken, hostile. Nothing of it harms anybody else."""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

import pytest

from simcore.types import Outcome
from tests.e2e.http_client import RawClient, message
from tests.e2e.in_process import dispatched, part, running, status, until
from tests.e2e.scripted_node import ScriptedNode

pytestmark = pytest.mark.e2e
BODY = {"model": "m", "prompt": "hello", "max_tokens": 8}


async def test_pipelined_requests_are_answered_in_their_order(http_front: Any) -> None:
    async with RawClient(http_front.http_address) as client:
        paths = ["/health/live", "/nothing", "/v1/models"] * 20
        client.send(b"".join(message("GET", path, b"", {}) for path in paths))
        replies = [await client.reply() for _ in paths]
        assert [r.status for r in replies] == [200, 404, 200] * 20


async def test_a_request_may_come_byte_by_byte_and_in_chunks(http_front: Any) -> None:
    async with RawClient(http_front.http_address) as client:
        for byte in message("POST", "/v1/completions", b'{"prompt": ""}', {}):
            client.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await client.reply()).status == 400
        client.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            b'8\r\n{"prompt\r\n6\r\n": ""}\r\n0\r\n\r\n'
        )
        assert (await client.reply()).json()["error"]["param"] == "prompt"


async def test_http_10_gets_an_answer_that_ends_with_the_connection(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, _), RawClient(gateway.http_address) as client:
        await until(lambda: status(gateway, "n") == "up")
        body = b'{"prompt": "x", "stream": true, "request_id": "r"}'
        client.send(b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await dispatched(node)
        node.say(part("r", b"ok", Outcome.STOP))
        reply = await client.reply()
        assert "transfer-encoding" not in reply.headers
        assert reply.body.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_waits_for_100_continue_gets_it(http_front: Any) -> None:
    async with RawClient(http_front.http_address) as client:
        head = message("POST", "/v1/completions", b'{"prompt": ""}', {"expect": "100-continue"})
        client.send(head[: -len(b'{"prompt": ""}')])
        assert (await client.head())[0] == 100
        client.send(b'{"prompt": ""}')
        assert (await client.reply()).status == 400


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 40_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % i for i in range(200)) + b"\r\n", 431),
        (b"POST /v1/completions HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n", 413),
        (b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n20000\r\n" + b"a" * 0x20000, 413),
        (b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ],
)
async def test_what_is_no_request_is_answered_once_and_the_connection_closed(
    node: ScriptedNode, data: bytes, code: int
) -> None:
    async with running(node.address, max_body_bytes=65536) as (gateway, _), RawClient(gateway.http_address) as client:
        client.send(data)
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (code, "close")
        assert await client.is_closed()


async def test_a_client_that_leaves_stops_the_engine(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, _):
        await until(lambda: status(gateway, "n") == "up")
        for stream in (False, True):
            async with RawClient(gateway.http_address) as client:
                client.post("/v1/completions", {**BODY, "stream": stream, "request_id": f"r{stream}"})
                await dispatched(node)
                node.say(part(f"r{stream}", b"ab"))
                if stream:
                    await client.head()
            async with asyncio.timeout(5):
                assert list((await node.received.get()).abort_request_ids) == [f"r{stream}"]
            explained = gateway.pump.router.explain(f"r{stream}")
            assert explained is not None
            assert explained.outcome is Outcome.CLIENT_LEFT


async def test_a_client_that_never_reads_is_ended_with_an_outcome_of_its_own(node: ScriptedNode) -> None:
    """Some megabytes wait in the buffers of the kernel first."""
    limit = {"max_buffered_tokens": 30_000}
    async with running(node.address, **limit) as (gateway, _), RawClient(gateway.http_address) as slow:
        await until(lambda: status(gateway, "n") == "up")
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        slow.post("/v1/completions", {**BODY, "stream": True, "request_id": "r", "max_tokens": 4000})
        await dispatched(node)

        def ended() -> bool:
            node.say(part("r", b"x" * 20_000))
            return "r" not in gateway.pump.streams

        await until(ended, 20)
        explained = gateway.pump.router.explain("r")
        assert explained is not None
        assert explained.outcome is Outcome.CLIENT_SLOW
        assert "reads too slowly" in explained.detail


async def test_garbage_in_between_disturbs_nobody(node: ScriptedNode) -> None:
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    rng = random.Random(seed)
    async with running(node.address) as (gateway, _), RawClient(gateway.http_address) as good:
        await until(lambda: status(gateway, "n") == "up")
        good.post("/v1/completions", {**BODY, "stream": True, "request_id": "good"})
        await dispatched(node)
        for _ in range(50):
            async with RawClient(gateway.http_address) as bad:
                whole = message("POST", "/v1/completions", rng.randbytes(rng.randrange(200)), {})
                at = rng.randrange(len(whole))
                bad.send(rng.choice((whole, whole[:at], whole[:at] + rng.randbytes(20) + whole[at:])))
                await bad.writer.drain()
        node.say(part("good", b"fine", Outcome.STOP))
        reply = await good.reply()
        assert reply.status == 200
        assert reply.body.endswith(b"data: [DONE]\n\n")


async def test_shutdown_closes_waiting_connections_and_lets_answers_finish(node: ScriptedNode) -> None:
    async with (
        running(node.address, drain_grace_s=5.0) as (gateway, _),
        RawClient(gateway.http_address) as waiting,
        RawClient(gateway.http_address) as busy,
    ):
        await until(lambda: status(gateway, "n") == "up")
        waiting.get("/health")
        assert (await waiting.reply()).status == 200
        busy.post("/v1/completions", {**BODY, "stream": True, "request_id": "r"})
        await dispatched(node)
        stopping = asyncio.create_task(gateway.stop())
        assert await waiting.is_closed()
        node.say(part("r", b"end", Outcome.STOP))
        assert (await busy.reply()).body.endswith(b"data: [DONE]\n\n")
        assert await busy.is_closed()
        await stopping


async def test_a_gateway_that_stops_answers_on_and_says_that_each_answer_is_the_last(node: ScriptedNode) -> None:
    async with (
        running(node.address, lame_duck_s=10.0, drain_grace_s=5.0) as (gateway, _),
        RawClient(gateway.http_address) as old,
    ):
        await until(lambda: status(gateway, "n") == "up")
        old.get("/health")
        assert (await old.reply()).status == 200
        stopping = asyncio.create_task(gateway.stop())
        await asyncio.sleep(0)
        old.post("/v1/completions", {**BODY, "request_id": "r1"})
        await dispatched(node)
        async with RawClient(gateway.http_address) as new:
            new.get("/health/ready")
            unready = await new.reply()
            assert unready.status == 503
            assert b"shutting down" in unready.body
            assert await new.is_closed()
        node.say(part("r1", b"end", Outcome.STOP))
        reply = await old.reply()
        assert reply.status == 200
        assert reply.headers["connection"] == "close"
        assert await old.is_closed()
        await stopping

"""Calls that are handed on as they are, before nodes whose engines the test plays: bytes equal, both ways."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from simcore.types import Outcome
from tests.e2e.forwarding_node import ForwardingNode
from tests.e2e.http_client import RawClient
from tests.e2e.in_process import dispatched, part, running, status, until
from tests.e2e.scripted_node import ScriptedNode

pytestmark = pytest.mark.e2e

EVENTS = ("content-type", "text/event-stream; charset=utf-8")
CHAT = "/v1/chat/completions"


@contextlib.asynccontextmanager
async def before(*nodes: ScriptedNode, **options: Any) -> AsyncIterator[tuple[Any, RawClient, Any]]:
    """A gateway before these nodes, all up, an HTTP client of it, and a gRPC one."""
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await node.start()
            stack.push_async_callback(node.stop)
        gateway, stub = await stack.enter_async_context(running(*(node.address for node in nodes), **options))
        for node in nodes:
            await until(lambda node=node: status(gateway, node.node_id) == "up")  # type: ignore[misc]
        client = await stack.enter_async_context(RawClient(gateway.http_address))
        yield gateway, client, stub


def tools_call(**fields: Any) -> bytes:
    """Odd spacing on purpose: the body must not be written anew."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function"}], **fields}
    return json.dumps(body, indent=3).encode()


async def test_a_streamed_chat_with_tools_goes_through_byte_for_byte() -> None:
    node = ForwardingNode("n")
    async with before(node) as (gateway, client, _):
        body = tools_call(stream=True)
        client.post(CHAT + "?trace=1", body, {"x-request-id": "mine", "x-odd": "1", "authorization": "Bearer k"})
        call = await node.call()
        assert (call.call.method, call.call.target, call.id) == ("POST", CHAT + "?trace=1", "mine")
        assert bytes(call.body) == body
        assert ("x-odd", "1") in call.headers
        assert not {name for name, _ in call.headers} & {"authorization", "host", "content-length"}
        assert call.call.prompt_tokens > 0
        assert call.call.max_output_tokens > 0
        node.head(call, 200, EVENTS, ("x-twice", "a"), ("x-twice", "b"))
        pieces = [b'data: {"a": 1}\n\n', b"data: x", b"y\n\n", b"data: [DONE]\n\n"]
        node.data(call, pieces[0], 1)
        http_status, headers = await client.head()
        assert (http_status, headers["x-request-id"], headers["x-astrolabe-node"]) == (200, "mine", "n")
        assert headers["transfer-encoding"] == "chunked"
        assert await client.chunk() == pieces[0]
        for piece in pieces[1:]:
            node.data(call, piece, 1)
            assert await client.chunk() == piece
        node.end(call)
        assert await client.chunk() == b""
        explained = gateway.pump.router.explain("mine")
        assert (explained.lane, explained.prompt_counted_by) == ("pass_through", "tokenizer")
        assert (explained.outcome, explained.output_tokens) == (Outcome.STOP, 4)
        # The connection serves on.
        client.get("/v1/models")
        assert (await client.reply()).status == 200


async def test_what_the_gateway_understands_goes_by_tokens_all_the_same() -> None:
    node = ForwardingNode("n")
    async with before(node) as (gateway, client, _):
        client.post(CHAT, {"model": "m", "messages": [{"role": "user", "content": "hi"}]}, {"x-request-id": "t"})
        assert (await dispatched(node)).request.request_id == "t"
        node.say(part("t", b"yes", Outcome.STOP))
        assert (await client.reply()).json()["choices"][0]["message"]["content"] == "yes"
        assert gateway.pump.router.explain("t").lane == "tokens"


async def test_where_no_node_hands_calls_on_what_is_not_understood_is_refused_as_ever() -> None:
    node = ScriptedNode("n")
    async with before(node) as (_, client, _):
        client.post(CHAT, tools_call())
        reply = await client.reply()
        assert (reply.status, reply.json()["error"]["param"]) == (400, "tools")
        client.post("/v1/embeddings", {"model": "m", "input": "x"})
        assert (await client.reply()).status == 404

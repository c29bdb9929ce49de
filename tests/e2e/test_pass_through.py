"""Calls that are handed on as they are, before nodes whose engines the test plays: bytes equal, both ways."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from gateway import grpc_api
from gateway.intake.callers import KeyEntry, KeyFile, digest, new_key, write_keys
from protos import codec
from protos.answer_status import outcome_of_status
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from simcore.types import Outcome
from tests.e2e.forwarding_node import PART_BYTES, ForwardingNode
from tests.e2e.http_client import RawClient, Reply
from tests.e2e.in_process import dispatched, part, running, status, until
from tests.e2e.scripted_node import ScriptedNode

pytestmark = pytest.mark.e2e

EVENTS = ("content-type", "text/event-stream; charset=utf-8")
CHAT = "/v1/chat/completions"
TOO_LARGE = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


NO_BODY = [(204, ()), (204, (("content-length", "0"),)), (304, (("content-length", "100"), ("etag", "a"))), (304, ())]


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
        pieces = [b'data: {"a": 1}\n\n', b"data: xy\r\n\r\n", b"odd", b": c\n\n", b"data: [DONE]\n\n"]
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
        assert (explained.outcome, explained.output_tokens) == (Outcome.STOP, 5)
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


@pytest.mark.parametrize(("http_status", "lines"), NO_BODY)
async def test_an_answer_that_has_no_body_is_whole(http_status: int, lines: tuple[tuple[str, str], ...]) -> None:
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        client.post("/v1/embeddings", {"model": "m", "input": "x"})
        call = await node.call()
        node.head(call, http_status, *lines)
        node.end(call)
        assert (await client.head())[0] == http_status
        client.get("/health")
        assert (await client.reply()).json() == {"status": "ok"}, "the connection serves on"


async def test_both_lanes_tell_the_same_of_a_request() -> None:
    node = ForwardingNode("n")

    def told(reply: Reply) -> dict[str, str]:
        return {name: value for name, value in reply.headers.items() if name.startswith("x-")}

    async with before(node) as (_, client, _):
        client.post(CHAT, {"model": "m", "messages": [{"role": "user", "content": "hi"}]}, {"x-request-id": "r"})
        assert (await dispatched(node)).HasField("request")
        node.say(part("r", b"yes", Outcome.STOP))
        tokens = told(await client.reply())
        client.post(CHAT, tools_call(), {"x-request-id": "r"})
        forged = [(name, "forged") for name in tokens]
        node.answer(await node.call(), 200, b"{}", Outcome.STOP, *forged)
        call = told(await client.reply())
        assert set(tokens) == set(call) == {"x-request-id", "x-astrolabe-node", "x-astrolabe-decision-s"}
        assert (call["x-request-id"], call["x-astrolabe-node"]) == ("r", "n") == tuple(tokens.values())[:2]
        assert float(call["x-astrolabe-decision-s"]) > 0


async def test_a_chat_with_a_model_that_gives_no_text_gets_its_engine_s_own_answer() -> None:
    node = ForwardingNode("n", pools=True)
    async with before(node) as (_, client, _):
        client.post(CHAT, {"model": "m", "messages": [{"role": "user", "content": "hi"}]})
        node.answer(await node.call(), 404, b'{"detail":"Not Found"}', Outcome.INVALID)
        reply = await client.reply()
        assert (reply.status, reply.body) == (404, b'{"detail":"Not Found"}')


async def test_chats_go_to_a_server_that_words_them_itself_and_completions_by_tokens() -> None:
    node = ForwardingNode("n", own_chats=True)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    async with before(node) as (gateway, client, _):
        client.post(CHAT, body, {"x-request-id": "c"})
        call = await node.call()
        assert json.loads(call.body) == body
        assert (await dispatched(node)).HasField("forward")
        node.answer(call, 200, b'{"reasoning_content":"hm"}', Outcome.STOP)
        assert (await client.reply()).body == b'{"reasoning_content":"hm"}'
        client.post("/v1/completions", {"model": "m", "prompt": "hi"}, {"x-request-id": "t"})
        assert (await dispatched(node)).HasField("request")
        node.say(part("t", b"yes", Outcome.STOP))
        await client.reply()
        assert [gateway.pump.router.explain(name).lane for name in "ct"] == ["pass_through", "tokens"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("endpoint-load-metrics-format", "JSON"),
        ("x-data-parallel-rank", "1"),
        ("content-type", "application/x-www-form-urlencoded"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", CHAT])
async def test_headers_that_only_an_engine_s_server_minds_take_the_call_there(path: str, name: str, value: str) -> None:
    body = (
        {"model": "m", "prompt": "hi"}
        if path != CHAT
        else {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    )
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        client.post(path, body, {name: value})
        call = await node.call()
        assert (name, value) in call.headers
        node.answer(call, 200, b"{}", Outcome.STOP, ("endpoint-load-metrics", "JSON {}"))
        assert (await client.reply()).headers["endpoint-load-metrics"] == "JSON {}"
    deaf = ScriptedNode("d")
    async with before(deaf) as (_, client, _):
        client.post(path, body, {name: value})
        reply = await client.reply()
        assert (reply.status, reply.json()["error"]["param"]) == (400, name)


async def test_where_no_node_hands_calls_on_what_is_not_understood_is_refused_as_ever() -> None:
    node = ScriptedNode("n")
    async with before(node) as (_, client, _):
        client.post(CHAT, tools_call())
        reply = await client.reply()
        assert (reply.status, reply.json()["error"]["param"]) == (400, "tools")
        client.post("/v1/embeddings", {"model": "m", "input": "x"})
        assert (await client.reply()).status == 404


# --- bodies -----------------------------------------------------------------------------------------------------------


ODD_BODIES = [
    b'\xef\xbb\xbf{"model": "m", "prompt": "x"}',
    b'{"model": "m", "prompt": "x", "max_tokens": 5.0}',
    b'{"model": "m", "prompt": "x", "max_tokens": "5"}',
    b'{"model": "m", "prompt": ["x", "y"], "temperature": NaN}',
    b'{"model": "m", "prompt": [[1, 2], [3]], "n": 2, "invented": {"deep": [1]}}',
    b'{"model": "m", "prompt": "x", "temperature": -3}',
    b"not JSON at all",
    b"",
]


@pytest.mark.parametrize("body", ODD_BODIES)
async def test_odd_bodies_get_the_engines_own_answer(body: bytes) -> None:
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        client.post("/v1/completions", body)
        call = await node.call()
        assert bytes(call.body) == body
        node.answer(call, 422, b'{"detail": "odd"}', Outcome.INVALID, ("x-engine", "yes"))
        reply = await client.reply()
        assert (reply.status, reply.body, reply.headers["x-engine"]) == (422, b'{"detail": "odd"}', "yes")
        assert reply.headers["content-length"] == "17"


async def test_what_is_ours_to_say_is_still_said_by_us() -> None:
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        client.post(CHAT, tools_call(policy="no such policy"))
        assert (await client.reply()).json()["error"]["param"] == "policy"
        client.post(CHAT, tools_call(model="unknown"))
        reply = await client.reply()
        assert (reply.status, reply.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        (CHAT, "openai"),
        ("/v1/completions", "openai"),
        ("/v1/responses", "openai"),
        ("/v1/embeddings", "openai"),
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/v1/messages/invented", "anthropic"),
        ("/v1/rerank", "vllm"),
        ("/score", "vllm"),
        ("/pooling", "vllm"),
        ("/tokenize", "vllm"),
        ("/inference/v1/generate", "vllm"),
    ],
)
async def test_what_the_gateway_says_itself_has_the_shape_of_the_api(path: str, shape: str, tmp_path: Path) -> None:
    def check(reply: Reply, http_status: int, openai: tuple[str, str | None], anthropic: str, vllm: str) -> None:
        assert reply.status == http_status
        said = reply.json()
        error = said["error"]
        assert error["message"]
        if shape == "anthropic":
            assert (said["type"], error["type"], set(error)) == ("error", anthropic, {"type", "message"})
        elif shape == "vllm":
            assert (error["type"], error["code"]) == (vllm, http_status)
        else:
            assert (error["type"], error["code"]) == openai

    node = ForwardingNode("n")
    key = new_key()
    write_keys(tmp_path / "keys.toml", KeyFile(keys=(KeyEntry(name="c", sha256=digest(key).hex(), role="client"),)))
    async with before(node, max_body_bytes=2048, max_call_bytes=4096, keys=str(tmp_path / "keys.toml")) as made:
        _, client, _ = made
        body = {"model": "unknown", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "tools": [{"a": 1}]}
        client.post(path, body)
        openai: tuple[str, str | None] = ("authentication_error", "no_key")
        check(await client.reply(), 401, openai, "authentication_error", "Unauthorized")
        mine = {"authorization": f"Bearer {key}"}
        client.post(path, body, mine)
        openai = ("invalid_request_error", "model_not_found")
        check(await client.reply(), 404, openai, "not_found_error", "NotFoundError")
        client.post(path, {**body, "model": "m"}, {**mine, "x-astrolabe-deadline-s": "0.01"})
        openai = ("timeout_error", "deadline")
        check(await client.reply(), 504, openai, "timeout_error", "Gateway Timeout")
        client.send(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 4097\r\n\r\n" % path.encode())
        check(await client.reply(), 413, ("invalid_request_error", None), "request_too_large", TOO_LARGE.phrase)


async def test_several_prompts_and_answers_are_counted_together() -> None:
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        client.post("/v1/completions", {"model": "m", "prompt": ["ab", "cde"], "n": 3, "max_tokens": 10})
        call = await node.call()
        assert (call.call.prompt_tokens, call.call.max_output_tokens) == (5, 60)
        assert min(call.call.belief.atoms_tokens) >= 6
        node.answer(call, 200, b"{}")
        assert (await client.reply()).body == b"{}"


async def test_a_long_body_leaves_in_parts_while_others_go_first() -> None:
    node = ForwardingNode("n")
    async with before(node) as (gateway, client, _), RawClient(gateway.http_address) as other:
        image = "A" * (20 * 1024 * 1024)
        body = tools_call(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]}])
        client.post(CHAT, body, {"x-request-id": "long"})
        await until(lambda: "long" in node.by_id)
        other.post("/v1/embeddings", {"model": "m", "input": "x"}, {"x-request-id": "short"})
        calls = {call.id: call for call in [await node.call(), await node.call()]}
        assert calls["long"].body == body
        assert calls["long"].parts == -(-len(body) // PART_BYTES)
        assert all(len(part.data) <= PART_BYTES for frame in node.frames for part in frame.body_parts)
        assert all(not frame.dispatches and not frame.asks for frame in node.frames if frame.body_parts)
        for call in calls.values():
            node.answer(call, 200, call.id.encode())
        assert (await client.reply()).body == b"long"
        assert (await other.reply()).body == b"short"


async def test_a_body_whose_engine_does_not_read_waits_here() -> None:
    node = ForwardingNode("n")
    assert node.welcome is not None
    node.welcome.welcome.body_window_bytes = 4 * PART_BYTES
    async with before(node) as (gateway, client, _), RawClient(gateway.http_address) as other:
        body = tools_call(filler="x" * (10 * PART_BYTES))
        client.post(CHAT, body, {"x-request-id": "long"})
        await until(lambda: "long" in node.by_id and len(node.by_id["long"].body) == 4 * PART_BYTES)
        other.post("/v1/embeddings", {"model": "m", "input": "x"})
        node.answer(await node.call(), 200, b"ok")
        assert (await other.reply()).body == b"ok"
        long = node.by_id["long"]
        assert len(long.body) == 4 * PART_BYTES
        node.say(predict_pb.NodeFrame(taken=[predict_pb.Consumed(request_id="long", bytes=len(body))]))
        assert (await node.call()).body == body
        node.answer(long, 200, b"ok")
        assert (await client.reply()).body == b"ok"


async def test_a_body_over_the_limit_is_refused_before_it_has_come() -> None:
    node = ForwardingNode("n")
    async with before(node, max_body_bytes=2048, max_call_bytes=4096) as (_, client, _):
        client.send(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 4097\r\n\r\n")
        assert (await client.reply()).status == 413
        assert node.calls.empty()


async def test_chunked_uploads_expectations_and_trailers_are_settled_here() -> None:
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n"
        client.send(head)
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        client.send(b'8\r\n{"input"\r\n5\r\n: 1 }\r\n0\r\nx-trailer: 1\r\n\r\n')
        call = await node.call()
        assert bytes(call.body) == b'{"input": 1 }'
        names = {name for name, _ in call.headers}
        assert not names & {"transfer-encoding", "expect", "x-trailer"}
        node.answer(call, 200, b"ok")
        assert (await client.reply()).body == b"ok"


async def test_a_compressed_body_goes_as_it_is_and_its_model_is_known() -> None:
    node, other = ForwardingNode("n"), ForwardingNode("o", model="other")
    async with before(node, other) as (_, client, _):
        body = gzip.compress(json.dumps({"model": "other", "input": "x"}).encode())
        client.post("/v1/embeddings", body, {"content-encoding": "gzip"})
        call = await other.call()
        assert bytes(call.body) == body
        assert ("content-encoding", "gzip") in call.headers
        other.answer(call, 200, b"ok")
        assert (await client.reply()).body == b"ok"


async def test_a_recording_finds_its_model_in_the_form() -> None:
    node, other = ForwardingNode("n"), ForwardingNode("o", model="base", names=("whisper",))
    async with before(node, other) as (_, client, _):
        body = (
            b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n\x00\xff\r\n\r\n--b\r\n'
            b'Content-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--b--\r\n'
        )
        client.post("/v1/audio/transcriptions", body, {"content-type": "multipart/form-data; boundary=b"})
        call = await other.call()
        assert bytes(call.body) == body
        other.answer(call, 200, b'{"text": "x"}')
        assert (await client.reply()).body == b'{"text": "x"}'


# --- paths ------------------------------------------------------------------------------------------------------------


async def test_methods_queries_and_unknown_paths_are_the_nodes_to_answer() -> None:
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        for method, path in (("GET", "/version?a=%20b&a=2"), ("DELETE", "/v1/thing/7"), ("OPTIONS", "/v1/embeddings")):
            client.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            call = await node.call()
            assert (call.call.method, call.call.target) == (method, path)
            # Nothing that the node would wait for in its engine's trace.
            assert (call.call.prompt_tokens, call.call.HasField("belief")) == (0, False)
            node.answer(call, 404, b'{"detail":"Not Found"}', Outcome.INVALID)
            reply = await client.reply()
            assert (reply.status, reply.body) == (404, b'{"detail":"Not Found"}')


async def test_a_head_and_an_answer_without_a_body() -> None:
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        client.send(b"HEAD /version HTTP/1.1\r\nhost: x\r\n\r\n")
        call = await node.call()
        node.head(call, 200, ("content-length", "99"))
        node.end(call)
        assert (await client.head())[1]["content-length"] == "99"
        client.post("/v1/embeddings", {})
        call = await node.call()
        node.head(call, 204)
        node.end(call)
        http_status, headers = await client.head()
        assert http_status == 204
        assert not {"content-length", "transfer-encoding"} & set(headers)
        client.get("/version")
        node.answer(await node.call(), 200, b"still in step")
        assert (await client.reply()).body == b"still in step"


@pytest.mark.parametrize("path", ["/sleep", "/%73leep", "//sleep", "/v1/../sleep", "/SLEEP/", "/v1/load_lora_adapter/"])
async def test_what_stops_an_engine_for_all_never_passes(path: str) -> None:
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        client.post(path, {})
        assert (await client.reply()).status == 404
        assert not node.by_id


async def test_adapters_are_loaded_by_admins_where_they_say(tmp_path: Path) -> None:
    keys = {role: new_key() for role in ("admin", "client")}
    entries = tuple(KeyEntry(name=role, sha256=digest(key).hex(), role=role) for role, key in keys.items())  # type: ignore[arg-type]
    write_keys(tmp_path / "keys.toml", KeyFile(keys=entries))
    node, other = ForwardingNode("n"), ForwardingNode("o")
    async with before(node, other, keys=str(tmp_path / "keys.toml")) as (_, client, _):
        path = "/v1/load_lora_adapter"
        client.post(path, {}, {"authorization": f"Bearer {keys['client']}", "x-astrolabe-node": "o"})
        assert (await client.reply()).status == 403
        client.post(path, {}, {"authorization": f"Bearer {keys['admin']}"})
        assert (await client.reply()).status == 400
        client.post(path, {"a": 1}, {"authorization": f"Bearer {keys['admin']}", "x-astrolabe-node": "o"})
        call = await other.call()
        assert not {"authorization", "x-astrolabe-node"} & {name for name, _ in call.headers}
        other.answer(call, 200, b"loaded")
        assert (await client.reply()).body == b"loaded"
        # Anthropic's clients have a header of their own for the key, and errors in another shape.
        client.post("/v1/messages", {"model": "m"}, {"x-api-key": keys["client"]})
        call = await (node if (await first_of(node, other)) is node else other).call()
        assert "x-api-key" not in {name for name, _ in call.headers}
        (node if call.id in node.by_id else other).answer(call, 200, b"{}")
        assert (await client.reply()).status == 200
        client.post("/v1/messages", {"model": "m"}, {"x-api-key": "wrong"})
        reply = await client.reply()
        assert (reply.status, reply.json()["type"]) == (401, "error")


async def test_a_lone_node_s_adapters_need_no_name_of_it() -> None:
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        client.post("/v1/load_lora_adapter", {"a": 1})
        node.answer(await node.call(), 200, b"loaded")
        assert (await client.reply()).body == b"loaded"
        client.post("/v1/load_lora_adapter", {"a": 1}, {"x-astrolabe-node": "other"})
        assert (await client.reply()).status == 400


async def first_of(*nodes: ForwardingNode) -> ForwardingNode:
    """The node that has a call to answer."""
    await until(lambda: any(not node.calls.empty() for node in nodes))
    return next(node for node in nodes if not node.calls.empty())


async def test_a_response_is_asked_for_where_it_is() -> None:
    nodes = [ForwardingNode("a"), ForwardingNode("b"), ForwardingNode("c")]
    async with before(*nodes) as (_, client, _):
        client.post("/v1/responses", {"model": "m", "input": "x"})
        holder = await first_of(*nodes)
        call = await holder.call()
        holder.answer(call, 200, b'{"id": "resp_1", "output": []}')
        assert (await client.reply()).status == 200
        for _ in range(4):
            client.get("/v1/responses/resp_1")
            holder.answer(await holder.call(), 200, b"kept")
            assert (await client.reply()).body == b"kept"
        client.post("/v1/responses", {"model": "m", "input": "y", "previous_response_id": "resp_1"})
        holder.answer(await holder.call(), 200, b'{"id": "resp_2"}')
        assert (await client.reply()).status == 200


async def test_a_response_that_nobody_remembers_is_looked_for_everywhere() -> None:
    nodes = [ForwardingNode("a"), ForwardingNode("b"), ForwardingNode("c")]
    async with before(*nodes) as (_, client, _):
        client.post("/v1/responses/resp_9/cancel", b"{}")
        for node in nodes[:2]:
            call = await node.call()
            assert bytes(call.body) == b"{}"
            node.answer(call, 404, b"not here", Outcome.INVALID)
        nodes[2].answer(await nodes[2].call(), 200, b"here")
        assert (await client.reply()).body == b"here"
        client.get("/v1/responses/resp_8")
        for node in nodes:
            node.answer(await node.call(), 404, b"not in " + node.node_id.encode(), Outcome.INVALID)
        assert (await client.reply()).body == b"not in c"


async def test_what_only_looks_like_a_response_is_looked_for_nowhere() -> None:
    nodes = [ForwardingNode("a"), ForwardingNode("b")]
    async with before(*nodes) as (_, client, _):
        client.post("/v1/responses/render", {"model": "m", "input": "x"})
        node = await first_of(*nodes)
        node.answer(await node.call(), 404, b"no such route", Outcome.INVALID)
        assert (await client.reply()).body == b"no such route"
        assert all(other.calls.empty() for other in nodes)


async def test_a_node_that_fails_does_not_end_the_search_for_a_response() -> None:
    nodes = [ForwardingNode(name) for name in "abc"]
    async with before(*nodes) as (_, client, _):
        client.get("/v1/responses/resp_far")
        nodes[0].end(await nodes[0].call(), Outcome.ENGINE_FAILED, "broke")
        nodes[1].answer(await nodes[1].call(), 500, b"broke", Outcome.ENGINE_FAILED)
        nodes[2].answer(await nodes[2].call(), 200, b'{"id":"resp_far"}')
        reply = await client.reply()
        assert (reply.status, reply.body) == (200, b'{"id":"resp_far"}')


async def test_a_client_that_leaves_ends_the_search_for_a_response() -> None:
    nodes = [ForwardingNode("a"), ForwardingNode("b")]
    async with before(*nodes) as (gateway, client, _):
        client.get("/v1/responses/resp_7")
        call = await nodes[0].call()
        client.writer.close()
        await until(lambda: call.is_aborted)
        await until(lambda: not gateway.pump.streams)
        assert not nodes[1].by_id


async def test_all_names_of_nodes_are_listed() -> None:
    async with before(ForwardingNode("n", names=("alias", "adapter"))) as (_, client, _):
        client.get("/v1/models")
        assert [model["id"] for model in (await client.reply()).json()["data"]] == ["m", "adapter", "alias"]


# --- failures ---------------------------------------------------------------------------------------------------------


async def test_an_answer_that_another_node_may_spare_the_client_is_kept_back() -> None:
    nodes = [ForwardingNode("a"), ForwardingNode("b")]
    async with before(*nodes) as (gateway, client, _):
        body = tools_call()
        client.post(CHAT, body, {"x-request-id": "r"})
        first = await first_of(*nodes)
        first.answer(await first.call(), 503, b"full", Outcome.OVERLOADED)
        second = nodes[1 - nodes.index(first)]
        call = await second.call()
        assert (bytes(call.body), call.id) == (body, "r~2")
        second.answer(call, 200, b"done")
        reply = await client.reply()
        assert (reply.status, reply.body, reply.headers["x-astrolabe-node"]) == (200, b"done", second.node_id)
        assert len(gateway.pump.router.explain("r").decisions) == 2


async def test_when_no_node_is_left_the_client_gets_what_the_last_one_said() -> None:
    nodes = [ForwardingNode("a"), ForwardingNode("b")]
    async with before(*nodes) as (_, client, _):
        client.post(CHAT, tools_call())
        for said in (b"first", b"second"):
            node = await first_of(*nodes)
            node.answer(await node.call(), 500, said, Outcome.ENGINE_FAILED, ("x-engine", "own"))
        reply = await client.reply()
        assert (reply.status, reply.body, reply.headers["x-engine"]) == (500, b"second", "own")


@pytest.mark.parametrize(
    ("http_status", "is_spared"), [(401, True), (500, True), (529, True), (501, False), (413, False)]
)
async def test_another_node_is_tried_where_it_may_do_better(http_status: int, is_spared: bool) -> None:
    nodes = [ForwardingNode("a"), ForwardingNode("b")]
    async with before(*nodes) as (_, client, _):
        client.post("/v1/embeddings", {"model": "m", "input": "x"})
        first = await first_of(*nodes)
        first.answer(await first.call(), http_status, b"no", outcome_of_status(http_status))
        if is_spared:
            second = nodes[1 - nodes.index(first)]
            second.answer(await second.call(), 200, b"yes")
        reply = await client.reply()
        assert (reply.status, reply.body) == ((200, b"yes") if is_spared else (http_status, b"no"))
        assert sum(len(node.by_id) for node in nodes) == 1 + is_spared


async def test_a_node_that_is_lost_before_the_first_byte_is_replaced() -> None:
    nodes = [ForwardingNode("a"), ForwardingNode("b")]
    async with before(*nodes) as (_, client, _):
        body = tools_call(stream=True)
        client.post(CHAT, body)
        first = await first_of(*nodes)
        call = await first.call()
        # A head alone is nothing that a client has seen.
        first.head(call, 200, EVENTS)
        await first.stop()
        second = nodes[1 - nodes.index(first)]
        call = await second.call()
        assert bytes(call.body) == body
        second.answer(call, 200, b"done")
        assert (await client.reply()).body == b"done"


@pytest.mark.parametrize(
    ("path", "event"),
    [
        (CHAT, b'data: {"error":{'),
        ("/v1/messages", b'event: error\ndata: {"type":"error","error":{"type":"api_error"'),
        ("/v1/responses", b'event: error\ndata: {"type":"error","code":"engine_failed"'),
    ],
)
async def test_a_stream_that_breaks_ends_with_an_error_of_its_api(path: str, event: bytes) -> None:
    nodes = [ForwardingNode("a"), ForwardingNode("b")]
    async with before(*nodes) as (_, client, _):
        client.post(path, tools_call(stream=True))
        node = await first_of(*nodes)
        call = await node.call()
        node.head(call, 200, EVENTS)
        node.data(call, b"data: 1\n\n", 1)
        node.end(call, Outcome.ENGINE_FAILED, "the connection broke")
        body = (await client.reply()).body
        assert body.startswith(b"data: 1\n\n" + event)
        assert body.endswith(b"\n\n")
        assert b"the connection broke" in body
        assert b"cannot go on elsewhere" in body
        assert b"[DONE]" not in body
        assert sum(len(node.by_id) for node in nodes) == 1


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ((b'data: 1\n\ndata: {"ha',), b"data: 1\n\n"),
        ((b"data: 1\n\ndata: 2\n",), b"data: 1\n\n"),
        ((b"data: 1\r\n\r\nid: 3\r\nda", b"ta: {"), b"data: 1\r\n\r\n"),
        ((b"event: x\ndata: 1",), b""),
        ((b"data: 1\n\n", b"data: " + b"x" * 20_000, b"data"), b"data: 1\n\ndata: " + b"x" * 20_000 + b"data\n\n"),
        ((b"{not events}",), b"{not events}\n\n"),
    ],
)
async def test_a_stream_that_breaks_within_an_event_ends_with_a_whole_one(
    sent: tuple[bytes, ...], shown: bytes
) -> None:
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        client.post(CHAT, tools_call(stream=True))
        call = await node.call()
        node.head(call, 200, EVENTS)
        for piece in sent:
            node.data(call, piece, 1)
            await asyncio.sleep(0.01)
        node.end(call, Outcome.ENGINE_FAILED, "the connection broke")
        body = (await client.reply()).body
        assert body.startswith(shown + b'data: {"error":{'), body[-300:]
        assert body.endswith(b"\n\n")
        client.get("/health")
        assert (await client.reply()).status == 200, "the connection serves on"


async def test_a_whole_stream_goes_through_however_it_is_cut() -> None:
    node = ForwardingNode("n")
    stream = b"data: 1\n\n: c\r\n\r\ndata: \xff\xfe\n\nid: 1\rdata: x\r\rodd line\n\ndata: [DONE]\n\ndata: left over"
    async with before(node) as (_, client, _):
        for size in (1, 2, 3, 7, len(stream)):
            client.post(CHAT, tools_call(stream=True))
            call = await node.call()
            node.head(call, 200, EVENTS)
            for at in range(0, len(stream), size):
                node.data(call, stream[at : at + size], 1)
                await asyncio.sleep(0)
            node.end(call)
            assert (await client.reply()).body == stream


async def test_an_answer_cut_off_elsewhere_breaks_the_connection() -> None:
    node = ForwardingNode("n")
    sent = b"half of it"
    async with before(node) as (_, client, _):
        client.post("/v1/embeddings", {"model": "m", "input": "x"})
        call = await node.call()
        node.head(call, 200, ("content-length", "100"))
        node.data(call, sent)
        node.end(call, Outcome.ENGINE_FAILED, "the connection broke")
        await client.head()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.reader.readexactly(200)


async def test_a_client_that_leaves_ends_the_call_and_its_body() -> None:
    node = ForwardingNode("n")
    async with before(node) as (gateway, client, _):
        client.post(CHAT, tools_call(stream=True), {"x-request-id": "r"})
        call = await node.call()
        node.head(call, 200, EVENTS)
        node.data(call, b"data: 1\n\n", 1)
        await client.head()
        client.writer.close()
        await until(lambda: call.is_aborted)
        await until(lambda: not gateway.pump.streams)
        assert gateway.pump.router.explain("r").outcome is Outcome.CLIENT_LEFT


async def test_a_deadline_that_passes_before_anything_came_is_told() -> None:
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        client.post("/v1/embeddings", {"model": "m", "input": "x"}, {"x-astrolabe-deadline-s": "0.05"})
        reply = await client.reply()
        assert (reply.status, reply.json()["error"]["code"]) == (504, "deadline")
        await until(lambda: all(call.is_aborted for call in node.by_id.values()))


async def test_a_slow_reader_holds_up_nobody_and_is_told_of_to_its_node() -> None:
    node = ForwardingNode("n")
    async with before(node) as (gateway, client, _), RawClient(gateway.http_address) as other:
        client.post(CHAT, tools_call(stream=True))
        call = await node.call()
        node.head(call, 200, EVENTS)
        piece = b"data: " + b"x" * 64_000 + b"\n\n"
        sent = 0
        # Play a node that keeps to the window of 1 MiB until nothing moves any more.
        for _ in range(400):
            if sent - call.consumed_bytes < 1 << 20:
                node.data(call, piece, 1)
                sent += len(piece)
            await asyncio.sleep(0.001)
        assert sent - call.consumed_bytes >= 1 << 20, "the client's side took it all: raise the number of pieces"
        (stream,) = gateway.pump.streams.values()
        assert stream.answer.unread_bytes <= (1 << 20) + len(piece)
        other.post("/v1/embeddings", {"model": "m", "input": "x"})
        node.answer(await node.call(), 200, b"ok")
        assert (await other.reply()).body == b"ok"
        node.end(call)
        assert len((await client.reply()).body) == sent


# --- gRPC -------------------------------------------------------------------------------------------------------------


async def test_the_same_over_grpc() -> None:
    node = ForwardingNode("n")
    async with before(node) as (gateway, _, stub):
        body = tools_call(stream=True)
        headers = [engine_pb.Header(name="X-Request-Id", value="g"), engine_pb.Header(name="x-odd", value="1")]

        async def parts() -> AsyncIterator[pb.ForwardRequest]:
            yield pb.ForwardRequest(target=CHAT, headers=headers, body=body[:10])
            yield pb.ForwardRequest(body=body[10:])

        replies = stub.Forward(parts())
        call = await node.call()
        assert (bytes(call.body), call.id, call.call.method) == (body, "g", "POST")
        assert ("x-odd", "1") in call.headers
        node.head(call, 200, EVENTS)
        node.data(call, b"data: 1\n\n", 1)
        node.data(call, b"data: 2\n\n", 1)
        node.end(call)
        got = [reply async for reply in replies]
        assert b"".join(reply.data for reply in got) == b"data: 1\n\ndata: 2\n\n"
        assert (got[0].head.status, got[0].node_id, got[0].request_id) == (200, "n", "g")
        assert codec.outcome_from_wire(got[-1].outcome) is Outcome.STOP
        assert gateway.pump.router.explain("g").lane == "pass_through"


async def test_grpc_clients_get_no_further_than_others() -> None:
    async with before(ForwardingNode("n")) as (_, _, stub):
        for target in ("/sleep", "//sleep", "/%2573leep", "sleep"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in stub.Forward(iter([pb.ForwardRequest(target=target)])):
                    pass
            assert refused.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


# --- connections ------------------------------------------------------------------------------------------------------


async def test_calls_that_are_pipelined_are_answered_in_their_order() -> None:
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        for number in range(3):
            client.get(f"/version?{number}")
        for number in range(3):
            call = await node.call()
            assert call.call.target == f"/version?{number}"
            node.answer(call, 200, b"%d" % number)
        assert [(await client.reply()).body for _ in range(3)] == [b"0", b"1", b"2"]


async def test_an_http10_client_reads_a_stream_to_the_end_of_its_connection() -> None:
    node = ForwardingNode("n")
    async with before(node) as (_, client, _):
        client.send(b"GET /version HTTP/1.0\r\nhost: x\r\n\r\n")
        call = await node.call()
        node.head(call, 200, EVENTS)
        node.data(call, b"data: 1\n\n")
        node.end(call)
        reply = await client.reply()
        assert (reply.body, "transfer-encoding" in reply.headers) == (b"data: 1\n\n", False)


async def test_clients_that_leave_at_any_moment_leave_nothing_behind() -> None:
    """With long bodies half sent, before and after the head, with bytes that nobody has read."""
    nodes = [ForwardingNode("a"), ForwardingNode("b")]
    async with before(*nodes) as (gateway, _, _):
        body = tools_call(stream=True, padding="x" * 700_000)
        clients = [RawClient(gateway.http_address) for _ in range(60)]
        for number, client in enumerate(clients):
            await client.__aenter__()
            client.post(CHAT, body, {"x-request-id": f"r{number}"})
        await until(lambda: any(node.by_id for node in nodes))
        for number, client in enumerate(clients):
            for node in nodes:
                call = node.by_id.get(f"r{number}")
                if call is not None and number % 3:
                    node.head(call, 200, EVENTS)
                    if number % 3 == 2:
                        node.data(call, b"data: " + b"y" * 300_000, 1)
            if number % 2:
                await asyncio.sleep(0)
            client.writer.close()
        await until(lambda: not gateway.pump.streams)
        await until(lambda: all(call.is_aborted for node in nodes for call in node.by_id.values()))
        assert not gateway.pump._sent
        for link in gateway.nodes.links.values():
            await until(lambda link=link: not link._outbox)  # type: ignore[misc]


async def test_a_grpc_client_that_reads_nothing_does_not_hold_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_api, "STANDSTILL_S", 0.2)
    node = ForwardingNode("n")
    async with before(node) as (gateway, _, stub):
        replies = stub.Forward(iter([pb.ForwardRequest(target="/v1/embeddings", body=b"{}")]))
        call = await node.call()
        node.head(call, 200, ("content-type", "audio/wav"))
        piece = bytes(512 * 1024)
        while not call.is_aborted:
            # As a node does that is told what its client has taken.
            if call.sent_bytes - call.consumed_bytes <= 1024 * 1024:
                node.data(call, piece)
                call.sent_bytes += len(piece)
            await asyncio.sleep(0.01)
        assert not gateway.pump.streams
        assert gateway.pump.router.explain(call.id).outcome is Outcome.CLIENT_SLOW
        with pytest.raises(grpc.aio.AioRpcError) as told:
            async for _ in replies:
                pass
        assert told.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

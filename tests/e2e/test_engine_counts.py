"""Who counts the prompt of a call: the gateway's tokenizer, an engine's server, or nobody."""

from __future__ import annotations

import json
from typing import Any

import grpc
import grpc.aio
import openai
import pytest

from protos.v1 import astrolabe_dispatch_pb2 as pb
from simcore.types import Outcome
from tests.e2e.cluster import MakeCluster
from tests.e2e.forwarding_node import ForwardingNode
from tests.e2e.in_process import ask, dispatched, part
from tests.e2e.test_pass_through import CHAT, before, tools_call

pytestmark = pytest.mark.e2e

MODEL = "llama-2-7b"


def explained(gateway: Any, request_id: str) -> tuple[str, str]:
    told = gateway.pump.router.explain(request_id)
    return told.lane, told.prompt_counted_by


def of_calls(gateway: Any) -> dict[str, float]:
    """How many requests were counted by whom, by the metrics."""
    _, page = gateway._metrics_page()
    lines = [line for line in page.decode().splitlines() if line.startswith("astrolabe_prompts_counted_total{")]
    return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in lines}


async def test_a_model_that_the_tokenizer_is_not_of_is_handed_on_and_counted_by_its_engine() -> None:
    node = ForwardingNode("n", model="other", names=("adapter",))
    async with before(node, tokenizer_models=("m",), count_within_s=5.0) as (gateway, client, _):
        for name in ("other", "adapter"):
            body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
            client.post(CHAT, body, {"x-request-id": f"r-{name}"})
            question = await node.call()
            assert (question.call.target, question.call.prompt_tokens) == ("/tokenize", 0)
            assert json.loads(bytes(question.body)) == {name: body[name] for name in ("model", "messages")}
            node.answer(question, 200, json.dumps({"count": 321, "tokens": list(range(321))}).encode())
            call = await node.call()
            assert (call.call.target, call.call.prompt_tokens) == (CHAT, 321)
            node.answer(call, 200, b'{"choices": []}')
            assert (await client.reply()).status == 200
            assert explained(gateway, f"r-{name}") == ("pass_through", "engine")
        assert of_calls(gateway) == {"engine": 2.0}, "questions of the gateway's own are nobody's requests"


async def test_a_server_without_the_route_is_asked_once_and_prompts_are_estimated() -> None:
    node = ForwardingNode("n", model="other")
    async with before(node, tokenizer_models=("m",), count_within_s=5.0) as (gateway, client, _):
        for i in range(3):
            client.post(CHAT, tools_call(model="other"), {"x-request-id": f"r{i}"})
            if i == 0:
                question = await node.call()
                assert question.call.target == "/tokenize"
                node.answer(question, 404, b'{"detail": "Not Found"}')
            call = await node.call()
            assert call.call.target == CHAT
            node.answer(call, 200, b"{}")
            assert (await client.reply()).status == 200
            assert explained(gateway, f"r{i}") == ("pass_through", "length")


async def test_a_server_that_is_silent_keeps_nobody_waiting() -> None:
    node = ForwardingNode("n", model="other")
    async with before(node, tokenizer_models=("m",), count_within_s=0.01) as (gateway, client, _):
        client.post(CHAT, tools_call(model="other"), {"x-request-id": "r"})
        question, call = await node.call(), await node.call()
        assert (question.call.target, call.call.target) == ("/tokenize", CHAT)
        node.answer(call, 200, b"{}")
        assert (await client.reply()).status == 200
        assert question.is_aborted
        assert explained(gateway, "r") == ("pass_through", "length")


async def test_what_the_tokenizer_is_of_nobody_else_is_asked_about() -> None:
    node = ForwardingNode("n", names=("adapter",))
    async with before(node, tokenizer_models=("m",)) as (gateway, client, _):
        for name in ("m", "adapter"):
            client.post(CHAT, tools_call(model=name), {"x-request-id": f"r-{name}"})
            call = await node.call()
            assert call.call.target == CHAT
            node.answer(call, 200, b"{}")
            assert (await client.reply()).status == 200
            assert explained(gateway, f"r-{name}") == ("pass_through", "tokenizer")


async def test_texts_that_the_gateway_must_encode_itself_are_refused_for_other_models() -> None:
    node = ForwardingNode("n", model="other")
    async with before(node, tokenizer_models=("m",)) as (_, _, stub):
        with pytest.raises(grpc.aio.AioRpcError, match="tokenizer is not that of 'other'") as refused:
            await stub.Generate(ask(model="other")).read()
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        call = stub.Generate(pb.GenerateRequest(model="other", token_ids=pb.TokenIds(ids=[1, 2])))
        request = (await dispatched(node)).request
        assert list(request.prompt_token_ids) == [1, 2]
        node.say(part(request.request_id, b"yes", Outcome.STOP))
        assert (await call.read()).outcome


def test_an_engine_counts_what_it_then_computes(make_cluster: MakeCluster) -> None:
    gateway = {"tokenizer_model": ["another"], "count_within_ms": 5000}
    cluster = make_cluster(nodes=1, gateway=gateway)
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hello"}],
            tools=tools,
            max_tokens=40,
            extra_headers={"x-request-id": "counted"},
        )
        with cluster.stub() as stub:
            told = stub.Explain(pb.ExplainRequest(request_id="counted"), timeout=5.0)
        assert (told.lane, told.prompt_counted_by) == ("pass_through", "engine")
        assert answer.usage is not None
        assert told.actual.usage.prompt_tokens == answer.usage.prompt_tokens

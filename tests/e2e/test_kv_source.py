"""A vLLM client before two servers over real HTTP: what the source of KV is asked, and what its engine is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog

from engine_adapters.base import EngineOutput, EngineRequest
from engine_adapters.vllm import kv_source
from engine_adapters.vllm.client import VllmClient
from protos.runtime.secret import Secret
from simcore.types import EngineConfig
from tests.e2e.in_process import until
from tests.helpers.scripted_http import Answer, HeardCall, ScriptedHttp, scripted_http

HELD = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]], "remote_engine_id": "e", "remote_port": 5600}
PROMPT = (5, 6, 7)


def reply(body: str, status: str = "200 OK") -> Answer:
    async def say(call: HeardCall) -> None:
        await call.say(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())

    return say


async def engine(call: HeardCall) -> None:
    if call.line.startswith("GET"):
        await reply(json.dumps({"data": [{"id": "m", "object": "model"}]}))(call)
        return
    choice = {"index": 0, "text": "a", "token_ids": [97], "finish_reason": "length"}
    await reply(f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n")(call)


@asynccontextmanager
async def client_of(server: ScriptedHttp) -> AsyncIterator[VllmClient]:
    client = VllmClient(server.url, key=Secret("k"))
    await client.connect()
    client.limit(EngineConfig(model="m"))
    try:
        yield client
    finally:
        await client.close()


def stage(source: str) -> EngineRequest:
    return EngineRequest(request_id="r~2", prompt_token_ids=PROMPT, max_tokens=1, kv_source=source)


async def answered(client: VllmClient, source: str) -> list[EngineOutput]:
    return [output async for output in client.generate(stage(source))]


async def test_a_source_is_asked_to_hold_the_prompt_and_its_answer_is_handed_on() -> None:
    async with scripted_http(reply(json.dumps({"kv_transfer_params": HELD}))) as source, scripted_http(engine) as own:
        async with client_of(own) as client:
            assert [o.token_ids for o in await answered(client, source.url)] == [(97,)]
        (asked,) = source.heard
        wanted = json.loads(asked.body)
        assert asked.line == "POST /v1/completions HTTP/1.1"
        assert dict(asked.headers)["Authorization"] == "Bearer k"
        assert (wanted["model"], wanted["prompt"], wanted["max_tokens"]) == ("m", list(PROMPT), 1)
        assert wanted["kv_transfer_params"]["do_remote_decode"] is True
        assert json.loads(own.heard[-1].body)["kv_transfer_params"] == HELD


@pytest.mark.parametrize(
    "says",
    [
        pytest.param(reply("no", "404 Not Found"), id="another-model"),
        pytest.param(reply("{}"), id="no-connector"),
        pytest.param(reply(json.dumps({"kv_transfer_params": None})), id="nothing-held"),
        pytest.param(reply("<html>"), id="no-json"),
        pytest.param(reply(json.dumps({"kv_transfer_params": [1]})), id="no-table"),
        pytest.param(None, id="it-hangs"),
    ],
)
async def test_what_no_source_holds_is_computed(says: Answer | None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(call: HeardCall) -> None:
        await call.left()

    monkeypatch.setattr(kv_source, "HOLD_TIMEOUT_S", 5.0 if says else 0.1)
    async with scripted_http(says or hang) as source, scripted_http(engine) as own:
        async with client_of(own) as client:
            with structlog.testing.capture_logs() as lines:
                for _ in range(2):
                    assert [o.token_ids for o in await answered(client, source.url)] == [(97,)]
        assert ["kv_transfer_params" in json.loads(call.body) for call in own.heard[1:]] == [False, False]
        # One line, however often.
        (line,) = [line for line in lines if line["event"] == "KV cannot be fetched"]
        assert source.url in line["detail"]


async def test_a_source_that_is_gone() -> None:
    async with scripted_http(engine) as source:
        gone = source.url
    async with scripted_http(engine) as own, client_of(own) as client:
        assert [o.token_ids for o in await answered(client, gone)] == [(97,)]
        assert "kv_transfer_params" not in json.loads(own.heard[-1].body)


async def test_an_abort_leaves_the_source_and_asks_its_own_engine_nothing() -> None:
    left = asyncio.Event()

    async def hang(call: HeardCall) -> None:
        await call.left()
        left.set()

    async with scripted_http(hang) as source, scripted_http(engine) as own:
        async with client_of(own) as client:
            heard: list[object] = []
            client.submit(stage(source.url), lambda _, output: heard.append(output))
            await until(lambda: bool(source.heard))
            assert await client.abort("r~2")
            async with asyncio.timeout(10.0):
                await left.wait()
        assert heard == [EngineOutput((), "aborted")]
        assert len(own.heard) == 1

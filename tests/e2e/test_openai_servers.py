"""Servers without a trace, each with its own dialect over real HTTP: what they are sent, what is made of answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web

from engine_adapters.base import EngineOptions, EngineOutput, EngineRequest, RequestRefused
from engine_adapters.openai_metrics import OpenAiEngine
from length_model.core.belief import known
from predictor.core.estimator import NoForecast
from predictor.node import NodeRuntime
from simcore.cost.shipped import load_shipped
from simcore.trace import TraceSnapshot
from simcore.types import Candidate, EngineConfig, Forecast

LIMITS = EngineConfig(model="", num_blocks=1000, max_model_len_tokens=2048)
PAGES = {
    "vllm": "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\nvllm:gpu_cache_usage_perc 0.5\n",
    "sglang": "sglang:num_running_reqs 3\nsglang:num_queue_reqs 1\nsglang:token_usage 0.5\n",
    "tgi": "tgi_batch_current_size 3\ntgi_queue_size 1\n",
}
ANSWER = "hi there"


class Server:
    """Answers as the real one does: vLLM with token ids, the others with text alone, TGI with its own last words."""

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._complete)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "some-model", "object": "model"}]})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=PAGES[self.dialect])

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self.dialect == "tgi" and not isinstance(body["prompt"], str):
            return web.json_response({"error": "invalid type: sequence, expected a string"}, status=422)
        if self.dialect == "tgi" and body.get("top_p", 0.5) >= 1.0:
            return web.json_response({"error": "`top_p` must be > 0.0 and < 1.0"}, status=422)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for i, piece in enumerate(ANSWER):
            is_last = i == len(ANSWER) - 1
            reason = {"tgi": "eos_token"}.get(self.dialect, "stop") if is_last else None
            choice: dict[str, Any] = {"index": 0, "text": piece, "finish_reason": reason}
            if self.dialect == "vllm":
                choice["token_ids"] = [ord(piece)]
            await answer.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        if self.dialect != "tgi":
            usage = {"prompt_tokens": 3, "completion_tokens": len(ANSWER)}
            await answer.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
        await answer.write(b"data: [DONE]\n\n")
        return answer


Pair = tuple[Server, OpenAiEngine]


@pytest.fixture(params=list(PAGES))
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    server = Server(request.param)
    await server.start()
    options = EngineOptions(node_id="n", url=server.url, config=LIMITS, tokenizer="bytes", wait_s=5.0)
    engine = OpenAiEngine(options)
    await engine.start()
    yield server, engine
    await engine.close()
    await server.stop()


def ask(**more: Any) -> EngineRequest:
    prompt = tuple(b"why")
    return EngineRequest(request_id="a", prompt_token_ids=prompt, max_tokens=20, **more)


async def collect(engine: OpenAiEngine, request: EngineRequest) -> list[EngineOutput]:
    async with asyncio.timeout(10.0):
        return [output async for output in engine.generate(request)]


async def test_a_request_in_the_server_s_own_terms_and_its_answer_as_tokens(pair: Pair) -> None:
    server, engine = pair
    assert engine.config().engine == server.dialect
    outputs = await collect(engine, ask(temperature=0.7, top_p=1.0, seed=5, stop=("END",)))
    assert bytes(t for o in outputs for t in o.token_ids).decode() == ANSWER
    assert outputs[-1].finish == "stop"
    body = server.bodies[-1]
    assert body["prompt"] == ("why" if server.dialect == "tgi" else list(b"why"))
    assert (body["temperature"], body["seed"], body["stop"], body["max_tokens"]) == (0.7, 5, ["END"], 20)


async def test_what_it_cannot_do_is_refused_and_not_dropped(pair: Pair) -> None:
    server, engine = pair
    if server.dialect == "tgi":
        with pytest.raises(RequestRefused, match="stop_token_ids"):
            await collect(engine, ask(stop_token_ids=(7,)))
    else:
        await collect(engine, ask(stop_token_ids=(7,)))
        assert server.bodies[-1]["stop_token_ids"] == [7]


async def test_its_counts_become_a_state_and_forecasts_say_that_they_are_rough(pair: Pair) -> None:
    server, engine = pair
    async for item in engine.watch():
        assert isinstance(item, TraceSnapshot)
        assert (len(item.running), len(item.waiting)) == (3, 1)
        break
    step_time = load_shipped("a30/llama-2-7b")
    node = NodeRuntime("n", engine, engine, profile=step_time, reservation_ttl_s=30.0, scenarios=4)
    await node.start()
    try:
        candidate = Candidate(request_id="c", prompt_tokens=100, max_output_tokens=50, belief=known(50))
        forecast = (await node.asking.forecast([candidate]))[0]
        assert isinstance(forecast, Forecast), isinstance(forecast, NoForecast)
        assert forecast.source == "approximate"
        assert forecast.e2e_s.p90 > 1.5 * forecast.e2e_s.p50, "a length that is known, a state that is not"
        assert any(server.dialect in note for note in msgspec.to_builtins(node.config)["outside_rules"])
    finally:
        await node.close()

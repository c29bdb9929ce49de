"""Servers without a trace, each with its own dialect over real HTTP: what they are sent, what is made of answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from engine_adapters.base import (
    EngineError,
    EngineMisconfigured,
    EngineOptions,
    EngineOutput,
    EngineRequest,
    RequestRefused,
)
from engine_adapters.openai_metrics import OpenAiEngine
from engine_adapters.vllm.adapter import VllmEngine
from engine_adapters.vllm.address import TraceAddress, listen
from engine_adapters.vllm.publisher import Publisher
from length_model.core.belief import known
from predictor.core.estimator import NoForecast
from predictor.node import NodeRuntime
from protos.runtime.secret import Secret, checked_secret
from simcore.cost.shipped import load_shipped
from simcore.proved import PROVED_VLLM_VERSIONS
from simcore.trace import TraceSnapshot
from simcore.types import Candidate, EngineConfig, Forecast
from tests.e2e.in_process import until

LIMITS = EngineConfig(model="", num_blocks=1000, max_model_len_tokens=2048)
PAGES = {
    "vllm": "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\nvllm:gpu_cache_usage_perc 0.5\n",
    "sglang": "sglang:num_running_reqs 3\nsglang:num_queue_reqs 1\nsglang:token_usage 0.5\n",
    "tgi": "tgi_batch_current_size 3\ntgi_queue_size 1\n",
}
IN_USE = 'vllm:lora_requests_info{max_lora="2",running_lora_adapters="adapter",waiting_lora_adapters=""} 1\n'
ANSWER = "hi there"


class Server:
    """Answers as the real one does: vLLM with token ids, the others with text alone, TGI with its own last words."""

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.names = ["some-model"]
        self.page = ""
        """Instead of the dialect's."""
        self.key = ""
        """Empty: it asks for none."""
        self.fault = 0
        """Status of its answers to requests; 0: it answers."""
        self.answer: bytes | None = None
        """What it says instead of its own words."""
        self.answer_type = "text/event-stream"
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

    def _let_in(self, request: web.Request) -> None:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            # As some do it: what was sent stands in the answer.
            raise web.HTTPUnauthorized(text=json.dumps({"error": f"wrong: {request.headers.get('Authorization')}"}))

    async def _models(self, request: web.Request) -> web.Response:
        self._let_in(request)
        return web.json_response({"data": [{"id": name, "object": "model"} for name in self.names]})

    async def _metrics(self, request: web.Request) -> web.Response:
        self._let_in(request)
        return web.Response(text=self.page or PAGES[self.dialect])

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self._let_in(request)
        body = await request.json()
        self.bodies.append(body)
        if self.fault:
            return web.Response(status=self.fault, text=f"no: {request.headers.get('Authorization')}")
        if self.answer is not None:
            return web.Response(body=self.answer, content_type=self.answer_type)
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


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    plain = Server("vllm")
    await plain.start()
    yield plain
    await plain.stop()


def beside(server: Server, **more: Any) -> OpenAiEngine:
    options = {"url": server.url, "config": LIMITS, "tokenizer": "bytes", "wait_s": 5.0, **more}
    return OpenAiEngine(EngineOptions(node_id="n", **options))


@pytest.mark.parametrize(
    ("answer", "text", "finish"),
    [
        (b'data: {"choices":[{"text":"hi"}]}\r\n\r\ndata: [DONE]\r\n\r\n', "hi", "stop"),
        (b'data:{"choices":[{"text":"hi","finish_reason":"eos"}]}\n\n', "hi", "stop"),
        (
            b': ping\n\nevent: x\ndata: {"choices":[{"delta":{"content":"hi"},"finish_reason":"length"}]}\n\n',
            "hi",
            "length",
        ),
        (
            b'data: {"usage":{"completion_tokens":9},"choices":[{"text":"h"}]}\n'
            b'data: {"choices":[{"text":"i","finish_reason":"stop"}]}\n',
            "hi",
            "stop",
        ),
        (b'data: {"choices":[{"text":"h","finish_reason":"stop"}]}\ndata: {"choices":[{"text":"i"}]}\n', "hi", "stop"),
        (b'{"choices": [{"text": "hi", "finish_reason": "stop"}],\n "usage": {"completion_tokens": 2}}', "hi", "stop"),
        (b'{"choices": [{"message": {"content": "hi"}}]}', "hi", "stop"),
    ],
)
async def test_an_answer_in_other_words(server: Server, answer: bytes, text: str, finish: str) -> None:
    engine = beside(server)
    await engine.start()
    server.answer = answer
    try:
        outputs = await collect(engine, ask())
        assert bytes(t for o in outputs for t in o.token_ids).decode() == text
        assert outputs[-1].finish == finish
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'data: {"choices":[{"text":"hi"}]}\n\n', "finish_reason"),
        (b'data: {"choices":[{"text":7}]}\n\n', r"choices\[0\].text"),
        (b'data: {"error":"out of memory"}\n\n', "out of memory"),
        (b'{"error": {"message": "out of memory"}}', "out of memory"),
        (b"data: nonsense\n\n", "no JSON"),
        (b"", "finish_reason"),
    ],
)
async def test_an_answer_that_cannot_be_understood(server: Server, answer: bytes, words: str) -> None:
    engine = beside(server)
    await engine.start()
    server.answer = answer
    try:
        with pytest.raises(EngineError, match=words):
            await collect(engine, ask())
    finally:
        await engine.close()


async def test_all_names_are_served_and_the_one_asked_for_is_passed_on(server: Server) -> None:
    server.names = ["big", "small", "tiny"]
    engine = beside(server, model="small")
    await engine.start()
    try:
        assert engine.config().names == ("small", "big", "tiny")
        await collect(engine, ask(model="tiny"))
        await collect(engine, msgspec.structs.replace(ask(), request_id="b"))
        assert [body["model"] for body in server.bodies] == ["tiny", "small"]
        with pytest.raises(RequestRefused, match="not 'huge'"):
            await collect(engine, ask(model="huge"))
    finally:
        await engine.close()
    with pytest.raises(EngineError, match=r"'big', 'small', 'tiny'.*says 'huge'"):
        await beside(server, model="huge").start()


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[str]:
    """Address of the trace of an engine that calls itself `small`."""
    address = TraceAddress(path=str(tmp_path / "folder" / "t.sock"))
    config = msgspec.structs.replace(LIMITS, model="small", engine="vllm", engine_version=PROVED_VLLM_VERSIONS[0])
    publisher = Publisher(config=config, address=address)
    publisher.start(listen(address))
    yield str(address)
    publisher.close()


async def test_a_traced_engine_with_several_names_and_a_key(server: Server, trace: str) -> None:
    server.names, server.key = ["small", "big", "adapter"], KEY
    engine = VllmEngine(EngineOptions(node_id="n", url=f"{server.url}/v1", trace=trace, key=KEY, model="big"))
    await engine.start()
    try:
        assert engine.config().names == ("big", "small", "adapter")
        for last in ("later", "adapter"):
            server.names = ["small", "big", last]
            assert await engine.names() == engine.config().names == ("big", "small", last)
        async for item in engine.watch():
            assert isinstance(item, TraceSnapshot)
            break
        assert engine._traced is not None
        restarted = msgspec.structs.replace(engine._traced, model="renamed")
        engine._check_limits(restarted)
        with pytest.raises(EngineError, match="restarted with another max_num_seqs: restart the daemon"):
            engine._check_limits(msgspec.structs.replace(restarted, max_num_seqs=3))
        assert await engine.adapters() is None
        server.page = PAGES["vllm"] + IN_USE
        assert await engine.adapters() == ("adapter",)
        server.page = "<html>"
        with pytest.raises(EngineError, match="/metrics: no series of a known engine"):
            await engine.adapters()
        outputs = [output async for output in engine.generate(ask(model="adapter"))]
        assert bytes(t for o in outputs for t in o.token_ids).decode() == ANSWER
        assert server.bodies[-1]["model"] == "adapter"
        server.answer = b'data: {"choices":[{"text":"hi","finish_reason":"stop"}]}\n\n'
        with pytest.raises(EngineError, match=r"without choices\[0\]\.token_ids"):
            await anext(aiter(engine.generate(ask())))
    finally:
        await engine.close()
    server.names = ["other"]
    with pytest.raises(EngineError, match=r"serves 'other', but the trace at .* is of 'small'"):
        await VllmEngine(EngineOptions(node_id="n", url=server.url, trace=trace, key=KEY)).start()


async def test_names_that_come_and_go_while_it_runs(server: Server) -> None:
    engine = beside(server)
    await engine.start()
    try:
        limits = engine.config()
        server.names = ["other", "adapter"]
        assert await engine.names() == ("other", "adapter")
        assert engine.config() == msgspec.structs.replace(limits, model="other", other_names=("adapter",))
        await collect(engine, ask())
        assert server.bodies[-1]["model"] == "other"
        await collect(engine, ask(model="adapter"))
        assert server.bodies[-1]["model"] == "adapter"
        # An empty list is what a server says that is not ready.
        server.names = []
        with pytest.raises(EngineError, match="serves no model"):
            await engine.names()
        assert engine.config().names == ("other", "adapter")
    finally:
        await engine.close()


async def test_a_server_on_this_host_is_reached_past_the_environment_s_proxy(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    engine = beside(server)
    await engine.start()
    assert (await collect(engine, ask()))[-1].finish == "stop"
    await engine.close()
    monkeypatch.setenv("ASTROLABE_USE_PROXY", "1")
    with pytest.raises(EngineError, match="no vLLM server"):
        await beside(server, wait_s=0.1).start()


KEY = checked_secret("sk-hunter2")


async def test_a_server_with_a_key(server: Server) -> None:
    server.key = KEY
    engine = beside(server, key=KEY)
    await engine.start()
    try:
        assert (await collect(engine, ask()))[-1].finish == "stop"
        async for _ in engine.watch():
            break
        server.fault = 500
        with pytest.raises(EngineError, match="answers 500: no: Bearer") as failed:
            await collect(engine, ask())
        assert KEY not in str(failed.value)
    finally:
        await engine.close()


@pytest.mark.parametrize(("key", "words"), [("", "wants an API key"), ("sk-other", "does not take the API key")])
async def test_without_the_right_one_it_ends_at_once_and_says_which_option(
    server: Server, key: str, words: str
) -> None:
    server.key = KEY
    began_s = time.monotonic()
    with pytest.raises(EngineMisconfigured, match=words) as refused:
        await beside(server, key=Secret(key), wait_s=600.0).start()
    assert time.monotonic() - began_s < 60
    assert "--engine-api-key-file" in str(refused.value)
    assert not key or key not in str(refused.value)


def loaded(node: NodeRuntime) -> tuple[int, int] | None:
    load = node.load()
    return None if load is None else (load.running, load.waiting)


async def test_the_adapters_in_use_are_followed_where_there_are_any(server: Server) -> None:
    server.names = ["some-model", "adapter"]
    server.page = PAGES["vllm"] + IN_USE
    engine = beside(server)
    node = NodeRuntime(
        "n",
        engine,
        engine,
        profile=load_shipped("a30/llama-2-7b"),
        reservation_ttl_s=30.0,
        scenarios=4,
        models_every_s=0.05,
    )
    await node.start()
    try:
        await until(lambda: node.adapters == ("adapter",))
        server.page = "<html>"
        await until(lambda: not node.engine.synchronised)
        assert node.adapters == ("adapter",), "what cannot be read changes nothing"
        server.page, server.names = "", ["some-model"]
        await until(lambda: node.adapters is None)
    finally:
        await node.close()


async def test_a_page_that_turns_odd_leaves_the_daemon_alive(server: Server) -> None:
    engine = beside(server)
    node = NodeRuntime("n", engine, engine, profile=load_shipped("a30/llama-2-7b"), reservation_ttl_s=30.0, scenarios=4)
    await node.start()
    try:
        assert node.engine.synchronised
        server.page = "vllm:num_requests_running +Inf\nvllm:num_requests_waiting 1e300\n"
        await until(lambda: loaded(node) == (0, 0))
        assert node.engine.synchronised
        for page in ("<html>", "vllm:num_requests_running one"):
            server.page = page
            await until(lambda: not node.engine.synchronised)
            server.page = ""
            await until(lambda: node.engine.synchronised and loaded(node) == (3, 1))
    finally:
        await node.close()

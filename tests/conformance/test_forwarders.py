"""What every adapter that hands calls on must do, run over the registry."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

import pytest

from engine_adapters.base import EngineClient, EngineError, EngineOptions, EngineProbe, RequestRefused
from engine_adapters.forwarding import Forwarder, ReplyEnd
from engine_adapters.registry import client_and_probe
from predictor.core.mirror import Applied, NodeMirror
from simcore.trace import CacheDelta, TraceDelta, TraceSnapshot, parent_id
from simcore.types import EngineConfig
from tests.helpers.scripted_http import CHUNKED, LAST, Caller, HeardCall, chunk, scripted_http, whole
from tests.helpers.step_time import STEP_TIME

CONFIG = EngineConfig(
    model="m",
    max_num_seqs=32,
    max_num_batched_tokens=256,
    block_size_tokens=4,
    num_blocks=4000,
    max_model_len_tokens=400,
)
DEADLINE_S = 20.0


@asynccontextmanager
async def emulated_options() -> AsyncIterator[EngineOptions]:
    yield EngineOptions(node_id="n", config=CONFIG, step_time=STEP_TIME)


@asynccontextmanager
async def vllm_options() -> AsyncIterator[EngineOptions]:
    url = os.environ.get("ASTROLABE_TEST_VLLM", "")
    if not url:
        pytest.skip("no vLLM server to ask: `make test-vllm` starts one and sets ASTROLABE_TEST_VLLM to its URL")
    yield EngineOptions(node_id="n", url=url, wait_s=5.0)


@asynccontextmanager
async def openai_options() -> AsyncIterator[EngineOptions]:
    async with scripted_http(answer_like_a_server) as server:
        yield EngineOptions(node_id="n", url=server.url, config=CONFIG, tokenizer="bytes", wait_s=5.0)


async def answer_like_a_server(call: HeardCall) -> None:
    """As much of an OpenAI-compatible server as is asked for here: a token in a millisecond."""
    path = call.line.split(" ")[1]
    if path == "/metrics":
        page = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:gpu_cache_usage_perc 0.0\n"
        await call.say(whole(page, kind="text/plain"))
    elif path == "/v1/models":
        await call.say(whole(b'{"object":"list","data":[{"id":"m","object":"model"}]}'))
    elif path not in ("/v1/completions", "/v1/chat/completions"):
        await call.say(whole(b'{"detail":"Not Found"}', status=404))
    else:
        try:
            asked = json.loads(call.body)
        except ValueError:
            await call.say(whole(b'{"error":{"message":"no JSON"}}', status=400))
            return
        await generate(call, asked, is_chat=path.endswith("chat/completions"))


async def generate(call: HeardCall, asked: dict[str, Any], *, is_chat: bool) -> None:
    tokens = asked["max_tokens"]
    usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": tokens + 5}
    if not asked.get("stream"):
        said = {"message": {"role": "assistant", "content": "x" * tokens}} if is_chat else {"text": "x" * tokens}
        choice = {"index": 0, **said, "finish_reason": "length"}
        await call.say(whole(json.dumps({"choices": [choice], "usage": usage}).encode()))
        return
    await call.say(CHUNKED)

    async def event(tree: object) -> None:
        await call.say(chunk(b"data: " + json.dumps(tree).encode() + b"\n\n"))

    if is_chat:
        await event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    for i in range(tokens):
        said = {"delta": {"content": "x"}} if is_chat else {"text": "x"}
        await event({"choices": [{"index": 0, **said, "finish_reason": "length" if i == tokens - 1 else None}]})
        await asyncio.sleep(0.001)
    if asked.get("stream_options", {}).get("include_usage"):
        await event({"choices": [], "usage": usage})
    await call.say(chunk(b"data: [DONE]\n\n") + LAST)


OPTIONS: dict[str, Callable[[], AbstractAsyncContextManager[EngineOptions]]] = {
    "emulated": emulated_options,
    "vllm": vllm_options,
    "openai_metrics": openai_options,
}
"""How to build each adapter; one that needs something absent here skips."""


class Adapter:
    """One adapter, started, in the roles that are tried here."""

    def __init__(self, client: EngineClient, probe: EngineProbe) -> None:
        self.client = client
        self.probe = probe
        self.forwarder = cast(Forwarder, client)
        self.model = client.config().model

    def call(self, caller: Caller, *, chat: bool = False, tokens: int = 10, stream: bool = True, **more: Any) -> None:
        path = "/v1/chat/completions" if chat else "/v1/completions"
        caller.call(
            self.forwarder,
            body=self.body(chat=chat, tokens=tokens, stream=stream, **more),
            target=path,
            headers=(("content-type", "application/json"),),
        )

    def body(self, *, chat: bool = False, tokens: int = 10, stream: bool = True, **more: Any) -> bytes:
        prompt = {"messages": [{"role": "user", "content": "why?"}]} if chat else {"prompt": "why?"}
        options = {"stream_options": {"include_usage": True}} if stream else {}
        tree = {"model": self.model, **prompt, "max_tokens": tokens, "ignore_eos": True, "stream": stream, **options}
        return json.dumps({**tree, **more}).encode()


@pytest.fixture(params=list(OPTIONS))
async def adapter(request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
    async with OPTIONS[request.param]() as options:
        client, probe = client_and_probe(request.param, options)
        await client.start()
        try:
            if not client.capabilities.forwards:
                pytest.skip(f"{request.param} hands nothing on")
            yield Adapter(client, probe)
        finally:
            await client.close()


def events(caller: Caller) -> list[dict[str, Any]]:
    """The stream's events, which must end in good order."""
    lines = [line[6:] for line in caller.body.split(b"\n\n") if line.startswith(b"data: ")]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_a_get_is_answered(adapter: Adapter) -> None:
    caller = Caller()
    caller.call(adapter.forwarder, method="GET", target="/v1/models", body=b"")
    end = await caller.ended()
    assert isinstance(end, ReplyEnd)
    assert not end.aborted
    assert caller.head is not None
    assert caller.head.status == 200
    assert adapter.model in [entry["id"] for entry in json.loads(caller.body)["data"]]


@pytest.mark.parametrize("chat", [True, False])
async def test_a_stream_comes_whole_and_its_tokens_are_counted(adapter: Adapter, chat: bool) -> None:
    for tokens in (1, 2, 37):
        caller = Caller(f"r{tokens}")
        adapter.call(caller, chat=chat, tokens=tokens)
        end = await caller.ended()
        assert isinstance(end, ReplyEnd), end
        assert caller.head is not None
        assert dict(caller.head.headers)["content-type"].startswith("text/event-stream")
        assert not {"transfer-encoding", "connection", "keep-alive"} & {name for name, _ in caller.head.headers}
        usage = events(caller)[-1]["usage"]
        assert usage["completion_tokens"] == tokens
        assert (end.prompt_tokens, end.output_tokens) == (usage["prompt_tokens"], tokens)
        assert caller.output_tokens == tokens
        assert end.at_limit


async def test_tokens_are_counted_as_they_come_where_no_usage_is_told(adapter: Adapter) -> None:
    caller = Caller()
    seen: list[int] = []
    caller.on_data = lambda: seen.append(caller.output_tokens)
    adapter.call(caller, tokens=30, stream_options={"include_usage": False})
    end = await caller.ended()
    assert isinstance(end, ReplyEnd), end
    assert end.output_tokens is None
    # A server that is behind with its answers puts several tokens into one event.
    assert 2 <= caller.output_tokens <= 31
    assert len(set(seen)) > 1, "not all at the end"


@pytest.mark.parametrize("chat", [True, False])
async def test_a_whole_answer_has_its_usage(adapter: Adapter, chat: bool) -> None:
    caller = Caller()
    adapter.call(caller, chat=chat, tokens=12, stream=False)
    end = await caller.ended()
    assert isinstance(end, ReplyEnd), end
    usage = json.loads(caller.body)["usage"]
    assert (end.prompt_tokens, end.output_tokens) == (usage["prompt_tokens"], 12)
    assert end.at_limit
    assert caller.output_tokens == 12


@pytest.mark.parametrize(
    ("target", "body", "statuses"),
    [("/no/such/path", b"{}", {404}), ("/v1/completions", b"{nonsense", {400, 422})],
)
async def test_the_servers_own_errors_are_answers(
    adapter: Adapter, target: str, body: bytes, statuses: set[int]
) -> None:
    caller = Caller()
    caller.call(adapter.forwarder, target=target, body=body, headers=(("content-type", "application/json"),))
    end = await caller.ended()
    assert isinstance(end, ReplyEnd)
    assert caller.head is not None
    assert caller.head.status in statuses
    assert caller.body


async def test_a_body_may_come_in_pieces(adapter: Adapter) -> None:
    caller = Caller()
    body = adapter.body(tokens=5)
    feed = caller.call(
        adapter.forwarder,
        target="/v1/completions",
        body=body[:1],
        later_bytes=len(body) - 1,
        headers=(("content-type", "application/json"),),
    )
    for i in range(1, len(body)):
        feed.feed(body[i : i + 1])
        if i % 20 == 0:
            await asyncio.sleep(0)
    end = await caller.ended()
    assert isinstance(end, ReplyEnd), end
    assert end.output_tokens == 5


async def test_a_body_that_does_not_come_ends_the_call(adapter: Adapter) -> None:
    caller = Caller()
    feed = caller.call(adapter.forwarder, target="/v1/completions", body=b"{", later_bytes=10)
    await asyncio.sleep(0.01)
    feed.give_up()
    assert isinstance(await caller.ended(), EngineError)


async def test_abort_is_the_last_word_and_frees_the_name(adapter: Adapter) -> None:
    caller = Caller()
    adapter.call(caller, tokens=150)
    await caller.until(lambda: caller.output_tokens >= 3)
    assert await adapter.forwarder.abort("a")
    assert caller.end == ReplyEnd(aborted=True)
    assert not await adapter.forwarder.abort("a")
    again = Caller()
    adapter.call(again, tokens=5)
    end = await again.ended()
    assert isinstance(end, ReplyEnd)
    assert end.output_tokens == 5


async def test_a_name_that_runs_is_refused(adapter: Adapter) -> None:
    caller, other = Caller(), Caller()
    adapter.call(caller, tokens=150)
    with pytest.raises(RequestRefused, match="'a'"):
        adapter.call(other)
    assert await adapter.forwarder.abort("a")
    assert other.end is None


async def test_a_held_answer_waits_and_goes_on(adapter: Adapter) -> None:
    caller = Caller()
    caller.on_data = lambda: adapter.forwarder.hold("a", True)
    adapter.call(caller, tokens=100)
    await caller.until(lambda: bool(caller.data))
    pieces = len(caller.data)
    await asyncio.sleep(0.05)
    assert len(caller.data) == pieces
    assert caller.end is None
    caller.on_data = None
    adapter.forwarder.hold("a", False)
    end = await caller.ended()
    assert isinstance(end, ReplyEnd), end
    assert end.output_tokens == 100
    assert len(events(caller)) > 2, "whole, in however many events a busy server puts it"
    adapter.forwarder.hold("a", True)


async def test_many_at_once(adapter: Adapter) -> None:
    callers = [Caller(f"r{i}") for i in range(60)]
    for i, caller in enumerate(callers):
        adapter.call(caller, tokens=5 + i % 7, chat=bool(i % 2))
    ends = await asyncio.gather(*(caller.ended() for caller in callers))
    assert [end.output_tokens for end in ends if isinstance(end, ReplyEnd)] == [5 + i % 7 for i in range(60)]


async def test_close_ends_what_runs_and_takes_no_more(adapter: Adapter) -> None:
    caller = Caller()
    adapter.call(caller, tokens=150)
    await caller.until(lambda: bool(caller.data))
    await adapter.client.close()
    assert caller.end == ReplyEnd(aborted=True)
    with pytest.raises(EngineError, match="closed"):
        adapter.call(Caller("b"))


@pytest.mark.parametrize("answers", [1, 3])
async def test_the_trace_names_the_call_and_shows_it_leave(adapter: Adapter, answers: int) -> None:
    if not adapter.client.capabilities.per_request_trace:
        pytest.skip("its state tells sums only")
    caller = Caller()
    seen: set[str] = set()
    was_here = asyncio.Event()
    is_gone = asyncio.Event()

    async def follow() -> None:
        mirror: NodeMirror | None = None
        async for item in adapter.probe.watch():
            if isinstance(item, TraceSnapshot):
                mirror = NodeMirror(item)
            elif not isinstance(item, CacheDelta):
                assert isinstance(item, TraceDelta)
                assert mirror is not None
                assert mirror.apply(item) is Applied.APPLIED
            assert mirror is not None
            seen.update(r.request_id for r in (*mirror.running(), *mirror.waiting()))
            if mirror.running_count == answers:
                was_here.set()
            if was_here.is_set() and not mirror.running_count and not mirror.waiting_count:
                is_gone.set()

    following = asyncio.create_task(follow())
    async with asyncio.timeout(DEADLINE_S):
        adapter.call(caller, tokens=150, n=answers)
        await was_here.wait()
        assert await adapter.forwarder.abort("a")
        await is_gone.wait()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert "a" in seen
    assert len(seen) == answers
    assert {parent_id(name) for name in seen} == {"a"}

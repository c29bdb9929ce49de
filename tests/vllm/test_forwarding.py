"""Calls handed on to a real vLLM: those of each API are joined with the trace, and leave it when their client does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from engine_adapters.base import EngineOptions
from engine_adapters.forwarding import BodyFeed, ForwardCall, ReplyData, ReplyHead
from engine_adapters.vllm.adapter import VllmEngine
from length_model.core.belief import known
from predictor.node import NodeRuntime
from predictor.requests import End, ForwardOrder
from simcore.cost.shipped import load_shipped
from simcore.types import Outcome
from tests.vllm.servers import Server

DEADLINE_S = 60.0
TOKENS = 200
SAID = [{"role": "user", "content": "why?"}]
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "chat": ("/v1/chat/completions", {"messages": SAID, "max_tokens": TOKENS}, 1),
    "chat, three answers": ("/v1/chat/completions", {"messages": SAID, "max_tokens": TOKENS, "n": 3}, 3),
    "completions": ("/v1/completions", {"prompt": "why?", "max_tokens": TOKENS}, 1),
    "two prompts, two answers each": ("/v1/completions", {"prompt": ["why", "who"], "max_tokens": TOKENS, "n": 2}, 4),
    "messages": ("/v1/messages", {"messages": SAID, "max_tokens": TOKENS}, 1),
    "responses": ("/v1/responses", {"input": "why?", "max_output_tokens": TOKENS}, 1),
}
"""Path, body, and how many requests vLLM makes of it."""


class Node:
    """A node beside the server, without a gateway."""

    def __init__(self, url: str) -> None:
        engine = VllmEngine(EngineOptions(node_id="n", url=url, wait_s=DEADLINE_S))
        profile = load_shipped("a30/llama-2-7b")
        self.runtime = NodeRuntime("n", engine, engine, profile=profile, reservation_ttl_s=30.0, scenarios=4)
        self.status = 0
        self.end: End | None = None

    def forward(self, path: str, tree: dict[str, Any]) -> None:
        body = json.dumps({"model": self.runtime.config.model, "stream": True, "ignore_eos": True, **tree}).encode()
        call = ForwardCall(
            request_id="a",
            method="POST",
            target=path,
            headers=(("content-type", "application/json"),),
            body_bytes=len(body),
            prompt_tokens=12,
            max_output_tokens=TOKENS,
        )
        feed = BodyFeed(len(body))
        feed.feed(body)
        self.runtime.requests.forward(ForwardOrder(call=call, belief=known(TOKENS)), feed, self._sink)

    def _sink(self, request_id: str, reply: ReplyHead | ReplyData | None, end: End | None) -> None:
        if isinstance(reply, ReplyHead):
            self.status = reply.status
        self.end = end or self.end

    async def until(self, condition: Callable[[], bool]) -> None:
        changed = asyncio.Event()
        unlisten = self.runtime.listen(changed.set)
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition():
                    assert self.end is None or self.end.outcome is not Outcome.INVALID, self.end
                    changed.clear()
                    await changed.wait()
        finally:
            unlisten()

    def counts(self) -> tuple[int, int]:
        """(running and waiting, of them reserved)."""
        load = self.runtime.load()
        assert load is not None
        return load.running + load.waiting, load.reserved


@pytest.fixture
async def node(fast_server: Server) -> AsyncIterator[Node]:
    node = Node(fast_server.url)
    await node.runtime.start()
    yield node
    await node.runtime.close()


@pytest.mark.parametrize("case", list(CASES))
async def test_the_trace_makes_the_reservation_good_and_loses_what_is_broken_off(node: Node, case: str) -> None:
    path, tree, requests = CASES[case]
    node.forward(path, tree)
    assert node.counts() == (1, 1)
    await node.until(lambda: node.counts() == (requests, 0))
    assert node.runtime.engine.names("a") == requests
    assert node.end is None
    assert await node.runtime.requests.abort("a")
    assert node.end is not None
    assert node.end.outcome is Outcome.CANCELLED
    await node.until(lambda: node.counts() == (0, 0))


@pytest.mark.parametrize("case", list(CASES))
async def test_an_answer_is_complete_with_its_tokens_counted(node: Node, case: str) -> None:
    path, tree, requests = CASES[case]
    short = {name: 8 if value == TOKENS else value for name, value in tree.items()}
    usage = {} if path in ("/v1/messages", "/v1/responses") else {"stream_options": {"include_usage": True}}
    node.forward(path, {**short, **usage})
    await node.until(lambda: node.end is not None)
    assert node.end is not None
    assert node.status == 200
    assert node.end.outcome in (Outcome.LENGTH, Outcome.STOP)
    assert node.end.prompt_tokens > 0
    # Only some of these APIs know `ignore_eos`.
    assert 1 <= node.end.output_tokens <= 8 * requests
    await node.until(lambda: node.counts() == (0, 0))

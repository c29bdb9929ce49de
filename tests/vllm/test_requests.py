"""What a request asks of vLLM arrives there: seeds, stop conditions, priorities; and an abort ends it at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine_adapters.base import EngineOptions, EngineRequest
from engine_adapters.vllm.adapter import VllmEngine
from predictor.core.mirror import NodeMirror
from simcore.trace import CacheDelta, TraceSnapshot
from tests.vllm.chains import ask, chain, is_quiet, state
from tests.vllm.servers import Server, until

DEADLINE_S = 60.0
PROMPT = tuple(range(40, 70))


@asynccontextmanager
async def adapter(server: Server) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(EngineOptions(node_id="n", url=server.url, wait_s=DEADLINE_S))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def direct(server: Server, model: str, **options: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": list(PROMPT), "max_tokens": 40, "ignore_eos": True, "return_token_ids": True}
    return server.ask({**body, **options})


async def test_an_answer_is_the_one_that_vllm_gives_to_the_same_options(real_server: Server) -> None:
    async with adapter(real_server) as engine:
        model = engine.config().model
        greedy = direct(real_server, model, temperature=0)["choices"][0]
        plain = [i for i, c in enumerate(greedy["text"]) if i > 3 and c.isascii() and c.isprintable()]
        cases: list[dict[str, Any]] = [
            {"temperature": 0.0},
            {"temperature": 1.0, "seed": 7},
            {"temperature": 1.0, "seed": 8},
            {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "seed": 7},
            {"temperature": 0.0, "stop_token_ids": (greedy["token_ids"][8],)},
            {"temperature": 0.0, "stop": (greedy["text"][plain[0]],)},
        ]
        answers: list[list[int]] = []
        for i, options in enumerate(cases):
            wanted = direct(real_server, model, **options)
            request = EngineRequest(
                request_id=f"r{i}", prompt_token_ids=PROMPT, max_tokens=40, ignore_eos=True, **options
            )
            outputs = [output async for output in engine.generate(request)]
            answers.append([t for o in outputs for t in o.token_ids])
            assert answers[-1] == wanted["choices"][0]["token_ids"], options
            assert outputs[-1].finish == wanted["choices"][0]["finish_reason"], options
            assert len(answers[-1]) == wanted["usage"]["completion_tokens"], options
        assert answers[1] != answers[2], "another seed, another answer"
        assert len(answers[4]) < 40, "it stopped at a token"
        assert len(answers[5]) < 40, "it stopped at a text"


def test_a_priority_reaches_the_engine_s_queue(sync_server: Server, tmp_path: Path) -> None:
    with chain(sync_server, tmp_path, gateway={"hold": "never"}, time_scale=10) as cluster, cluster.stub() as stub:
        # More than the engine has seats and blocks for, all before the two that matter.
        calls = [stub.Generate(ask(f"r{i}", [i] * 30, max_tokens=900)) for i in range(24)]
        until(lambda: len(state(cluster).running) > 0 and len(state(cluster).waiting) > 4, what="a queue")
        calls += [stub.Generate(ask(n, [7] * 30, max_tokens=5, priority=p)) for n, p in (("late", 5), ("soon", 1))]

        def queue() -> dict[str, int]:
            return {r.request_id: r.priority for r in state(cluster).waiting}

        until(lambda: {"late", "soon"} <= queue().keys(), what="both in the engine's queue")
        seen = queue()
        assert (seen["soon"], seen["late"]) == (1, 5)
        assert list(seen.values()) == sorted(seen.values()), "in the order of their priorities"
        for call in calls:
            call.cancel()
        until(lambda: is_quiet(cluster, sync_server), what="a quiet engine")


@pytest.mark.parametrize("kind", ["fast_server", "sync_server"])
async def test_after_a_client_has_left_the_engine_takes_no_further_step_for_it(
    request: pytest.FixtureRequest, kind: str
) -> None:
    server: Server = request.getfixturevalue(kind)
    async with adapter(server) as engine:
        mirrors: list[NodeMirror] = []
        steps: list[str] = []

        async def follow() -> None:
            async for item in engine.watch():
                if isinstance(item, TraceSnapshot):
                    mirrors.append(NodeMirror(item))
                elif not isinstance(item, CacheDelta):
                    mirrors[0].apply(item)
                    steps.extend(s.request_id for s in item.scheduled)

        following = asyncio.create_task(follow())
        await holds(lambda: bool(mirrors))
        asked = EngineRequest(request_id="a", prompt_token_ids=PROMPT, max_tokens=900, ignore_eos=True)
        answer = engine.generate(asked)
        for _ in range(5):
            await anext(answer)
        await holds(lambda: mirrors[0].running_count == 1)
        connections, core = open_connections(server), server.engine_core()
        core.suspend()
        try:
            # The engine stands still in the middle of a step when the client leaves.
            await answer.aclose()  # type: ignore[attr-defined]
            await holds(lambda: open_connections(server) < connections)
            assert await asyncio.to_thread(server.is_ready), "the HTTP server has passed the abort on"
            before = len(steps)
        finally:
            core.resume()
        await holds(lambda: mirrors[0].running_count == 0)
        await holds(lambda: mirrors[0].free_blocks == mirrors[0].config.num_blocks)
        # Those in flight and one or two that were not yet told of; of 900.
        assert len(steps) - before <= 5
        following.cancel()


async def holds(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in other processes
            await asyncio.sleep(0.02)


def open_connections(server: Server) -> int:
    """Of clients to the server."""
    all_of_them = psutil.net_connections(kind="tcp")
    return sum(c.laddr.port == server.port and c.status == psutil.CONN_ESTABLISHED for c in all_of_them if c.laddr)

"""A real server known by its metrics alone."""

from __future__ import annotations

import asyncio
import contextlib

from engine_adapters.base import EngineOptions, EngineRequest
from engine_adapters.openai_metrics import OpenAiEngine
from simcore.trace import TraceSnapshot
from simcore.types import EngineConfig
from tests.vllm.servers import Server


async def test_counts_and_our_own_account_of_a_real_server(real_server: Server) -> None:
    limits = EngineConfig(model="", max_num_seqs=16)
    engine = OpenAiEngine(EngineOptions(node_id="n", url=real_server.url, config=limits, wait_s=10.0))
    await engine.start()
    try:
        assert engine.config().engine == "vllm"
        assert engine.config().max_model_len_tokens == 1024
        assert engine.config().num_blocks > 1, "the page says how large the cache is"
        seen: list[TraceSnapshot] = []
        page_read = asyncio.Event()

        async def watch() -> None:
            async for item in engine.watch():
                assert isinstance(item, TraceSnapshot)
                seen.append(item)
                page_read.set()

        def mid_answer() -> bool:
            return any(request.output_tokens > 1 for state in seen for request in state.running)

        watching = asyncio.create_task(watch())
        asked = 0
        async with asyncio.timeout(120):
            # A busy machine may read no page between the first token of an answer and its last one.
            while not mid_answer():
                asked += 1
                request = EngineRequest(
                    request_id=f"a{asked}", prompt_token_ids=(5,) * 30, max_tokens=900, ignore_eos=True
                )
                outputs = [output async for output in engine.generate(request)]
                assert sum(len(o.token_ids) for o in outputs) == 900
                assert outputs[-1].finish == "length"
            # The page that was on its way may still be of the time before the end.
            for _ in range(2):
                page_read.clear()
                await page_read.wait()
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        assert {r.request_id for state in seen for r in state.running} <= {f"a{i + 1}" for i in range(asked)}
        assert not seen[-1].running
    finally:
        await engine.close()

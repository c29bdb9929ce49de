"""A real server known by its metrics alone."""

from __future__ import annotations

import asyncio

from engine_adapters.base import EngineOptions, EngineOutput, EngineRequest
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
        request = EngineRequest(request_id="a", prompt_token_ids=(5,) * 30, max_tokens=900, ignore_eos=True)
        outputs: list[EngineOutput] = []

        async def read() -> None:
            outputs.extend([output async for output in engine.generate(request)])

        reading = asyncio.create_task(read())
        seen: list[TraceSnapshot] = []
        async with asyncio.timeout(60):
            async for item in engine.watch():
                assert isinstance(item, TraceSnapshot)
                seen.append(item)
                if reading.done():
                    break
        await reading
        assert sum(len(o.token_ids) for o in outputs) == 900
        assert outputs[-1].finish == "length"
        busy = [s for s in seen if [r.request_id for r in s.running] == ["a"]]
        assert busy, "our own request is seen while it runs"
        assert max(r.output_tokens for s in busy for r in s.running) > 1
        assert not seen[-1].running
    finally:
        await engine.close()

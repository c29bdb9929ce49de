"""The prefix cache of an emulated engine: what its trace tells is what its prompts then find."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import msgspec
import pytest

from engine_adapters.base import EngineOptions, EngineOutput, EngineRequest
from engine_adapters.emulated import EmulatedEngine
from predictor.core.prefix_content import PrefixContent
from simcore.prefix import block_hashes
from simcore.trace import CacheDelta, TraceItem, TraceSnapshot
from simcore.types import EngineConfig
from tests.helpers.step_time import STEP_TIME

CONFIG = EngineConfig(
    model="m", max_num_seqs=8, max_num_batched_tokens=64, block_size_tokens=4, num_blocks=60, max_model_len_tokens=200
)
SEED = 7


class Follower:
    """A reader of the trace, which keeps what the cache is said to hold."""

    def __init__(self, engine: EmulatedEngine) -> None:
        self.content = PrefixContent(block_size_tokens=CONFIG.block_size_tokens, most_blocks=CONFIG.num_blocks)
        self.steps = 0
        self._came = asyncio.Event()
        self._trace: AsyncIterator[TraceItem] = engine.watch()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for item in self._trace:
            if isinstance(item, CacheDelta):
                assert not self.content.apply(item), "a change was lost"
            elif isinstance(item, TraceSnapshot):
                self.content.begin()
                self.steps = item.seq
            else:
                self.steps = item.seq
            self._came.set()

    async def until_step(self, seq: int) -> None:
        async with asyncio.timeout(10):
            while self.steps < seq or self.content.names() is None:
                self._came.clear()
                await self._came.wait()
        # The change of the last step comes right behind it.
        await asyncio.sleep(0)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def engine() -> AsyncIterator[EmulatedEngine]:
    made = EmulatedEngine(EngineOptions(node_id="n", config=CONFIG, step_time=STEP_TIME, time_scale=1000.0))
    await made.start()
    yield made
    await made.close()


async def answered(engine: EmulatedEngine, prompt: list[int], name: str, tokens: int = 9) -> tuple[list[int], int]:
    """(The answer, tokens of the prompt that were found cached)."""
    request = EngineRequest(request_id=name, prompt_token_ids=tuple(prompt), max_tokens=tokens, ignore_eos=True)
    said: list[int] = []
    last: EngineOutput | None = None
    async for output in engine.generate(request):
        said += output.token_ids
        last = output
    assert last is not None
    return said, last.cached_tokens


async def test_what_the_trace_tells_is_what_prompts_find(engine: EmulatedEngine) -> None:
    rng = random.Random(SEED)
    beginnings = [[rng.randrange(256) for _ in range(rng.randrange(4, 60))] for _ in range(4)]
    follower, hits, misses = Follower(engine), 0, 0
    await follower.until_step(0)
    assert engine.config().prefix_cache_traced
    for number in range(60):
        prompt = [*rng.choice(beginnings), *(rng.randrange(256) for _ in range(rng.randrange(1, 12)))]
        names = block_hashes(prompt, CONFIG.block_size_tokens)
        expected = follower.content.cached_tokens(names, len(prompt))
        _, found = await answered(engine, prompt, f"r{number}")
        assert found == expected, f"seed {SEED}, request {number}"
        hits, misses = hits + (found > 0), misses + (found == 0)
        await settled(engine, follower)
    assert hits > 20
    # The cache is too small for all: some were evicted.
    assert misses > len(beginnings)
    late = Follower(engine)
    await settled(engine, late)
    assert set(late.content.names() or ()) == set(follower.content.names() or ())
    await late.close()
    await follower.close()


async def settled(engine: EmulatedEngine, follower: Follower) -> None:
    """Until the follower knows the last step."""
    snapshot = await anext(engine.watch())
    assert isinstance(snapshot, TraceSnapshot)
    await follower.until_step(snapshot.seq)


async def test_the_next_turn_finds_the_answer_too(engine: EmulatedEngine) -> None:
    prompt = list(range(30))
    said, found = await answered(engine, prompt, "first", tokens=13)
    assert found == 0
    # 43 tokens, of which the last was never computed: ten blocks of four.
    _, found = await answered(engine, [*prompt, *said, 1, 2, 3], "second")
    assert found == 40
    _, found = await answered(engine, prompt[:29] + [99] * 9, "other")
    assert found == 28


async def test_without_a_prefix_cache_nothing_is_told_or_found() -> None:
    config = msgspec.structs.replace(CONFIG, enable_prefix_caching=False)
    engine = EmulatedEngine(EngineOptions(node_id="n", config=config, step_time=STEP_TIME, time_scale=1000.0))
    await engine.start()
    assert not engine.config().prefix_cache_traced
    items: list[TraceItem] = []

    async def read() -> None:
        items.extend([item async for item in engine.watch()])

    reading = asyncio.create_task(read())
    for name in ("a", "b"):
        assert (await answered(engine, list(range(30)), name))[1] == 0
    await engine.close()
    await asyncio.gather(reading, return_exceptions=True)
    assert not any(isinstance(item, CacheDelta) for item in items)

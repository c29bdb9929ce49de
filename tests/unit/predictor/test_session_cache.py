"""A session tells its gateway what the prefix cache holds, when it is asked to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from engine_adapters.base import EngineOptions, EngineProbe
from engine_adapters.emulated import EmulatedEngine
from gateway.core.nodes.prefix_index import PrefixIndex
from predictor.core.cache_teller import TELL_EVERY_S
from predictor.node import NodeRuntime
from protos import codec
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_predict_pb2 as pb
from simcore.trace import CacheDelta, TraceItem
from simcore.types import EngineConfig
from tests.helpers.sessions import SessionEnd
from tests.helpers.step_time import STEP_TIME

CONFIG = EngineConfig(
    model="m", max_num_seqs=8, max_num_batched_tokens=64, block_size_tokens=4, num_blocks=200, max_model_len_tokens=400
)
NAMES = tuple((i << 40) + i for i in range(1, 11))
DEADLINE_S = 10.0


class CacheProbe:
    """An engine's trace, and what the test says of its prefix cache instead of what the engine does."""

    def __init__(self, inner: EngineProbe) -> None:
        self.says: asyncio.Queue[CacheDelta] = asyncio.Queue()
        self._inner = inner

    async def watch(self) -> AsyncIterator[TraceItem]:
        trace = self._inner.watch()
        yield await anext(trace)
        steps, words = asyncio.ensure_future(anext(trace)), asyncio.ensure_future(self.says.get())
        try:
            while True:
                done, _ = await asyncio.wait((steps, words), return_when=asyncio.FIRST_COMPLETED)
                if words in done:
                    yield words.result()
                    words = asyncio.ensure_future(self.says.get())
                if steps in done:
                    if not isinstance(steps.result(), CacheDelta):
                        yield steps.result()
                    steps = asyncio.ensure_future(anext(trace))
        finally:
            steps.cancel()
            words.cancel()


class Session(SessionEnd):
    """Its frames are read into an index."""

    def __init__(self, node: NodeRuntime) -> None:
        super().__init__(node)
        self.index = PrefixIndex()
        self.cache: list[pb.CacheSummary] = []
        self.ends: dict[str, pb.StreamPart] = {}

    def hear(self, frame: pb.NodeFrame) -> None:
        if frame.HasField("cache"):
            self.cache.append(frame.cache)
            self.index.hear(codec.cache_from_wire(frame.cache), 0.0)
        for part in frame.parts:
            if part.HasField("outcome"):
                self.ends[part.request_id] = part


@pytest.fixture
async def rig() -> AsyncIterator[tuple[NodeRuntime, CacheProbe]]:
    engine = EmulatedEngine(EngineOptions(node_id="n", config=CONFIG, step_time=STEP_TIME))
    probe = CacheProbe(engine)
    node = NodeRuntime("n", engine, probe, profile=STEP_TIME, reservation_ttl_s=30.0, scenarios=4)
    await node.start()
    yield node, probe
    await node.close()


async def test_the_whole_then_what_changes_and_the_whole_again_when_asked(rig: tuple[NodeRuntime, CacheProbe]) -> None:
    node, probe = rig
    session = Session(node)
    probe.says.put_nowait(CacheDelta(1, True, NAMES[:3], ()))
    await asyncio.sleep(2 * TELL_EVERY_S)
    assert not session.cache, "it has not asked"
    session.send(pb.GatewayFrame(tell_cache=True))
    await session.until(lambda: session.index.cached_blocks(NAMES) == 3)
    probe.says.put_nowait(CacheDelta(2, False, NAMES[3:6], ()))
    probe.says.put_nowait(CacheDelta(3, False, (), NAMES[5:6]))
    await session.until(lambda: session.index.cached_blocks(NAMES) == 5)
    assert [summary.whole for summary in session.cache] == [True, False]
    late = Session(node)
    late.send(pb.GatewayFrame(tell_cache=True))
    await late.until(lambda: late.index.cached_blocks(NAMES) == 5)
    session.send(pb.GatewayFrame(tell_cache=True))
    await session.until(lambda: len(session.cache) == 3)
    assert session.cache[2].whole
    # A gap in the trace: nothing is known until it tells the whole.
    probe.says.put_nowait(CacheDelta(9, False, NAMES[6:7], ()))
    await session.until(lambda: not session.index.is_told)
    probe.says.put_nowait(CacheDelta(10, True, NAMES[:1], ()))
    await session.until(lambda: session.index.cached_blocks(NAMES) == 1)
    for each in (session, late):
        each.task.cancel()
    await asyncio.gather(session.task, late.task, return_exceptions=True)


async def test_the_end_of_a_request_says_what_its_engine_found_cached(rig: tuple[NodeRuntime, CacheProbe]) -> None:
    node, _ = rig
    session = Session(node)
    request = engine_pb.EngineGenerateRequest(request_id="r", prompt_token_ids=range(20))
    request.sampling.max_tokens = 5
    request.sampling.ignore_eos = True
    session.send(pb.GatewayFrame(dispatches=[pb.Dispatched(dispatch_seq=1, request=request)]))
    await session.until(lambda: "r" in session.ends)
    assert session.ends["r"].HasField("found_tokens")
    assert session.ends["r"].found_tokens == 0
    session.task.cancel()
    await asyncio.gather(session.task, return_exceptions=True)

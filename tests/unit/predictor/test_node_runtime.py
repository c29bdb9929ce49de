"""The node at run time: it follows the trace through gaps and breaks, and keeps its account of requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import orjson
import pytest
from msgspec import structs

from engine_adapters.base import EngineError, EngineOptions, EngineProbe, EngineRequest, RequestRefused
from engine_adapters.emulated import EmulatedEngine
from engine_adapters.forwarding import BodyFeed, ForwardCall, ReplyData, ReplyHead
from length_model.core.belief import known
from predictor.core.estimator import NoForecast
from predictor.node import NodeRuntime
from predictor.requests import End, ForwardOrder
from simcore.trace import TraceDelta, TraceItem
from simcore.types import Candidate, EngineConfig, Forecast, Outcome
from tests.helpers.step_time import STEP_TIME

CONFIG = EngineConfig(
    model="m", max_num_seqs=8, max_num_batched_tokens=64, block_size_tokens=4, num_blocks=200, max_model_len_tokens=400
)
DEADLINE_S = 10.0


class UnreliableProbe:
    """Passes a trace on, except for what the test takes out of it."""

    def __init__(self, inner: EngineProbe) -> None:
        self.lose = 0
        """How many of the next deltas get lost."""
        self.breaks = 0
        """How often the connection breaks with the next delta."""
        self.watched = 0
        self._inner = inner

    async def watch(self) -> AsyncIterator[TraceItem]:
        self.watched += 1
        async for item in self._inner.watch():
            if isinstance(item, TraceDelta) and self.lose:
                self.lose -= 1
                continue
            if isinstance(item, TraceDelta) and self.breaks:
                self.breaks -= 1
                raise EngineError("the cable was pulled")
            yield item


class Rig:
    def __init__(self, config: EngineConfig = CONFIG) -> None:
        self.engine = EmulatedEngine(EngineOptions(node_id="n", config=config, step_time=STEP_TIME))
        self.probe = UnreliableProbe(self.engine)
        self.node = NodeRuntime("n", self.engine, self.probe, profile=STEP_TIME, reservation_ttl_s=30.0, scenarios=4)
        self.ends: dict[str, End] = {}
        self.tokens: dict[str, int] = {}

    def dispatch(self, name: str, max_tokens: int = 50) -> None:
        request = EngineRequest(
            request_id=name, prompt_token_ids=tuple(range(20)), max_tokens=max_tokens, ignore_eos=True
        )
        self.node.requests.dispatch(request, known(max_tokens), self._sink)

    def _sink(self, request_id: str, token_ids: Sequence[int], end: End | None, _logprobs: Sequence[object]) -> None:
        self.tokens[request_id] = self.tokens.get(request_id, 0) + len(token_ids)
        if end is not None:
            self.ends[request_id] = end

    async def until(self, condition: Callable[[], bool]) -> None:
        changed = asyncio.Event()
        unlisten = self.node.listen(changed.set)
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition():
                    changed.clear()
                    await changed.wait()
        finally:
            unlisten()

    def is_idle(self) -> bool:
        load = self.node.load()
        return load is not None and (load.running, load.waiting, load.free_blocks) == (0, 0, CONFIG.num_blocks)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.node.start()
    yield rig
    await rig.node.close()
    assert len(rig.node.requests) == 0, "every request has ended"


async def test_a_lost_delta_is_noticed_and_the_trace_read_anew(rig: Rig) -> None:
    rig.dispatch("a", 100)
    await rig.until(lambda: rig.tokens.get("a", 0) > 5)
    rig.probe.lose = 2
    await rig.until(lambda: rig.node.trace.resyncs == 1 and rig.node.engine.synchronised)
    assert rig.probe.watched == 2
    await rig.until(lambda: "a" in rig.ends and rig.is_idle())
    assert rig.tokens["a"] == 100


async def test_a_broken_trace_is_taken_up_again_and_the_state_ages_meanwhile(rig: Rig) -> None:
    rig.dispatch("a", 300)
    await rig.until(lambda: rig.tokens.get("a", 0) > 5)
    rig.probe.breaks = 1
    await rig.until(lambda: not rig.node.engine.synchronised)
    first = rig.node.age_s()
    assert rig.node.age_s() > first
    await rig.until(lambda: rig.node.engine.synchronised)
    await rig.until(lambda: "a" in rig.ends and rig.is_idle())
    assert rig.ends["a"].outcome is Outcome.LENGTH


async def test_a_dispatch_counts_at_once_and_until_its_end(rig: Rig) -> None:
    for i in range(12):
        rig.dispatch(f"r{i}", 40)
        load = rig.node.load()
        assert load is not None
        assert load.running + load.waiting == i + 1
    await rig.until(lambda: len(rig.ends) == 12 and rig.is_idle())
    assert all(rig.tokens[f"r{i}"] == 40 for i in range(12))


async def test_what_is_refused_leaves_no_trace(rig: Rig) -> None:
    with pytest.raises(RequestRefused):
        rig.dispatch("too long", 0)
    rig.dispatch("a", 20)
    with pytest.raises(RequestRefused, match="runs here already"):
        rig.dispatch("a", 20)
    load = rig.node.load()
    assert load is not None
    assert load.running + load.waiting == 1
    await rig.until(lambda: "a" in rig.ends and rig.is_idle())


async def test_closing_ends_everything_as_lost_with_the_node() -> None:
    rig = Rig()
    await rig.node.start()
    rig.dispatch("a", 300)
    await rig.until(lambda: rig.tokens.get("a", 0) > 0)
    await rig.node.close()
    await rig.node.close()
    assert rig.ends["a"].outcome is Outcome.NODE_LOST
    with pytest.raises(EngineError, match="shutting down"):
        rig.dispatch("b")


async def test_many_questions_leave_the_loop_free_and_are_answered_in_order(rig: Rig) -> None:
    for i in range(20):
        rig.dispatch(f"r{i}", 300)
    asked = [
        [
            Candidate(request_id=f"q{k}-{i}", prompt_tokens=20 if i else 9999, max_output_tokens=50, belief=known(30))
            for i in range(30)
        ]
        for k in range(4)
    ]
    rig.node.asking._candidate_s = 1.0
    answers = await asyncio.gather(*(rig.node.asking.forecast(candidates) for candidates in asked))
    for candidates, found in zip(asked, answers, strict=True):
        assert isinstance(found[0], NoForecast)
        assert [f.request_id for f in found[1:] if isinstance(f, Forecast)] == [c.request_id for c in candidates[1:]]
    assert not rig.node.asking.is_busy
    for i in range(20):
        assert await rig.node.requests.abort(f"r{i}")
    await rig.until(rig.is_idle)
    assert {e.outcome for e in rig.ends.values()} == {Outcome.CANCELLED}


async def test_an_emulated_engine_can_be_told_where_an_answer_ends_by_itself(rig: Rig) -> None:
    prompt = tuple(range(20))
    ask = EngineRequest(request_id="a", prompt_token_ids=prompt, max_tokens=200, emulated_output_tokens=23)
    rig.node.requests.dispatch(ask, None, rig._sink)
    await rig.until(lambda: "a" in rig.ends and rig.is_idle())
    assert (rig.tokens["a"], rig.ends["a"].outcome) == (23, Outcome.STOP)
    rig.node.requests.dispatch(structs.replace(ask, request_id="b", max_tokens=10), None, rig._sink)
    await rig.until(lambda: "b" in rig.ends and rig.is_idle())
    assert (rig.tokens["b"], rig.ends["b"].outcome) == (10, Outcome.LENGTH)


async def test_an_engine_that_cannot_be_told_refuses(rig: Rig) -> None:
    rig.engine.capabilities = structs.replace(rig.engine.capabilities, settable_length=False)
    ask = EngineRequest(request_id="a", prompt_token_ids=(1, 2), max_tokens=9, emulated_output_tokens=3)
    with pytest.raises(RequestRefused, match="emulated engines"):
        rig.node.requests.dispatch(ask, None, rig._sink)


@pytest.mark.parametrize("ahead", [False, True])
async def test_an_engine_that_plans_ahead_hides_its_host(ahead: bool) -> None:
    config = structs.replace(CONFIG, async_scheduling=ahead)
    hidden = structs.replace(STEP_TIME, name="test/hidden")
    engine = EmulatedEngine(EngineOptions(node_id="n", config=config, step_time=STEP_TIME))
    node = NodeRuntime(
        "n",
        engine,
        engine,
        profile=STEP_TIME,
        profile_ahead=hidden,
        ask_engine=False,
        reservation_ttl_s=30.0,
        scenarios=4,
    )
    await node.start()
    try:
        assert node.engine.step_time is (hidden if ahead else STEP_TIME)
    finally:
        await node.close()


async def test_the_names_of_the_engine_are_followed() -> None:
    engine = EmulatedEngine(EngineOptions(node_id="n", config=CONFIG, step_time=STEP_TIME))
    probe = UnreliableProbe(engine)
    node = NodeRuntime("n", engine, probe, profile=STEP_TIME, reservation_ttl_s=30.0, scenarios=4, models_every_s=0.001)
    await node.start()
    changed = asyncio.Event()
    unlisten = node.listen(changed.set)

    async def until_names(*names: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while node.config.names != names:
                await changed.wait()
                changed.clear()

    try:
        first = node.config
        assert (first.names, first.forwards) == (("m",), True)
        engine.offer("adapter", True)
        await until_names("m", "adapter")
        assert structs.replace(node.config, other_names=()) == first
        # What cannot be read changes nothing, and is read again.
        with_adapter, tried, again = node.config, 0, engine.names

        async def unreachable() -> tuple[str, ...]:
            nonlocal tried
            tried += 1
            raise EngineError("it is restarted")

        engine.names = unreachable  # type: ignore[method-assign]
        async with asyncio.timeout(DEADLINE_S):
            while tried < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert node.config is with_adapter
        engine.offer("adapter", False)
        engine.names = again  # type: ignore[method-assign]
        await until_names("m")
    finally:
        unlisten()
        await node.close()


@pytest.mark.parametrize("is_reachable", [True, False])
async def test_a_call_that_changes_the_names_is_answered_when_they_are_known(is_reachable: bool) -> None:
    engine = EmulatedEngine(EngineOptions(node_id="n", config=CONFIG, step_time=STEP_TIME))
    probe = UnreliableProbe(engine)
    node = NodeRuntime("n", engine, probe, profile=STEP_TIME, reservation_ttl_s=30.0, scenarios=4, models_every_s=1e9)
    await node.start()
    names = engine.names
    asked = asyncio.Event()
    go_on = asyncio.Event()

    async def slow_names() -> tuple[str, ...]:
        asked.set()
        await go_on.wait()
        if not is_reachable:
            raise EngineError("it is restarted")
        return await names()

    engine.names = slow_names  # type: ignore[method-assign]
    told: list[tuple[object, tuple[str, ...]]] = []
    ended = asyncio.Event()

    def sink(_: str, reply: ReplyHead | ReplyData | None, end: End | None) -> None:
        told.append((reply, node.config.names))
        if end is not None:
            ended.set()

    body = orjson.dumps({"lora_name": "adapter", "lora_path": "/somewhere"})
    call = ForwardCall(
        request_id="a",
        method="POST",
        target="/v1/load_lora_adapter?x=1",
        headers=(("content-type", "application/json"),),
        body_bytes=len(body),
    )
    feed = BodyFeed(len(body))
    feed.feed(body)
    try:
        node.forward(ForwardOrder(call=call, belief=None), feed, sink)
        async with asyncio.timeout(DEADLINE_S):
            await asked.wait()
            assert told == []
            go_on.set()
            await ended.wait()
        known = ("m", "adapter") if is_reachable else ("m",)
        assert isinstance(told[0][0], ReplyHead)
        assert told[0][0].status == 200
        assert {told_names for _, told_names in told} == {known}
    finally:
        await node.close()

"""A node that is told to leave: what it takes, what it says, what brings it back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from engine_adapters.base import EngineOptions
from engine_adapters.emulated import EmulatedEngine
from predictor.core.leaving import Leaving
from predictor.node import NodeRuntime
from predictor.session import GatewaySession
from protos import codec
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import EngineConfig, Outcome
from tests.helpers.step_time import STEP_TIME

CONFIG = EngineConfig(
    model="m", max_num_seqs=8, max_num_batched_tokens=64, block_size_tokens=4, num_blocks=200, max_model_len_tokens=400
)
DEADLINE_S = 10.0
RETIRE = pb.GatewayFrame(retire=pb.RETIREMENT_RETIRE)
UNDO = pb.GatewayFrame(retire=pb.RETIREMENT_UNDO)


def test_one_that_is_busy_comes_back() -> None:
    leaving = Leaving()
    assert leaving.retire(is_empty=False)
    assert not leaving.retire(is_empty=False), "no news"
    assert (leaving.retiring, leaving.has_left) == (True, False)
    assert leaving.undo(is_empty=False)
    assert not leaving.undo(is_empty=False)
    assert not leaving.retiring


def test_one_that_is_empty_has_left_for_good() -> None:
    leaving = Leaving()
    leaving.retire(is_empty=False)
    assert not leaving.look(is_empty=False)
    assert leaving.look(is_empty=True)
    assert not leaving.look(is_empty=True), "no news"
    assert not leaving.undo(is_empty=False), "a reservation is no reason either"
    assert (leaving.retiring, leaving.has_left) == (True, True)


def test_an_undo_that_finds_it_empty_comes_too_late() -> None:
    """Nobody had looked since its last request ended."""
    leaving = Leaving()
    leaving.retire(is_empty=False)
    assert not leaving.undo(is_empty=True)
    assert leaving.has_left


def test_one_that_serves_leaves_by_no_look() -> None:
    leaving = Leaving()
    assert not leaving.look(is_empty=True)
    assert not leaving.undo(is_empty=True)
    assert not leaving.has_left


class Session:
    """One gateway's session with the node."""

    def __init__(self, node: NodeRuntime) -> None:
        self.first: pb.NodeFrame | None = None
        self.said: list[tuple[bool, bool]] = []
        """Retiring and empty, each time the node told it."""
        self.ends: dict[str, pb.StreamPart] = {}
        self.tokens: dict[str, int] = {}
        self._seq = 0
        self._came = asyncio.Event()
        self._frames: asyncio.Queue[pb.GatewayFrame] = asyncio.Queue()
        self.task = asyncio.create_task(GatewaySession(node, self).run(self._sent()))

    async def _sent(self) -> AsyncIterator[pb.GatewayFrame]:
        while True:
            yield await self._frames.get()

    def send(self, frame: pb.GatewayFrame) -> None:
        self._frames.put_nowait(frame)

    def dispatch(self, name: str, max_tokens: int = 30) -> None:
        self._seq += 1
        request = engine_pb.EngineGenerateRequest(
            request_id=name,
            prompt_token_ids=range(20),
            sampling=types_pb.SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        )
        self.send(pb.GatewayFrame(dispatches=[pb.Dispatched(dispatch_seq=self._seq, request=request)]))

    async def write(self, frame: pb.NodeFrame) -> None:
        self.first = self.first or frame
        if frame.HasField("leaving"):
            self.said.append((frame.leaving.retiring, frame.leaving.empty))
        for part in frame.parts:
            self.tokens[part.request_id] = self.tokens.get(part.request_id, 0) + len(part.token_ids)
            if part.HasField("outcome"):
                self.ends[part.request_id] = part
        self._came.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._came.clear()
                await self._came.wait()

    def outcome(self, name: str) -> Outcome:
        return codec.outcome_from_wire(self.ends[name].outcome)

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def node() -> AsyncIterator[NodeRuntime]:
    engine = EmulatedEngine(EngineOptions(node_id="n", config=CONFIG, step_time=STEP_TIME))
    node = NodeRuntime("n", engine, engine, profile=STEP_TIME, reservation_ttl_s=30.0, scenarios=4)
    await node.start()
    yield node
    await node.close()


async def test_what_runs_ends_and_what_comes_is_refused_to_every_gateway(node: NodeRuntime) -> None:
    one, two = Session(node), Session(node)
    one.dispatch("runs", max_tokens=300)
    await one.until(lambda: bool(one.tokens.get("runs")))
    two.send(RETIRE)
    await one.until(lambda: one.said == [(True, False)])
    await two.until(lambda: two.said == [(True, False)])
    for session, name in ((one, "late-1"), (two, "late-2")):
        session.dispatch(name)
        await session.until(lambda s=session, n=name: n in s.ends)  # type: ignore[misc]
        assert session.outcome(name) is Outcome.NO_NODE
    await one.until(lambda: "runs" in one.ends)
    assert (one.outcome("runs"), one.tokens["runs"]) == (Outcome.LENGTH, 300)
    for session in (one, two):
        await session.until(lambda s=session: s.said[-1] == (True, True))  # type: ignore[misc]
    two.send(UNDO)
    two.dispatch("after")
    await two.until(lambda: "after" in two.ends)
    assert two.outcome("after") is Outcome.NO_NODE, "it has left: a stop may be on its way"
    await asyncio.gather(one.leave(), two.leave())


async def test_one_that_is_taken_back_takes_again(node: NodeRuntime) -> None:
    one, two = Session(node), Session(node)
    one.dispatch("runs", max_tokens=300)
    await one.until(lambda: bool(one.tokens.get("runs")))
    one.send(RETIRE)
    await two.until(lambda: two.said == [(True, False)])
    two.send(UNDO)
    await one.until(lambda: one.said == [(True, False), (False, False)])
    one.dispatch("new")
    await one.until(lambda: len(one.ends) == 2)
    assert one.outcome("new") is Outcome.LENGTH
    await asyncio.gather(one.leave(), two.leave())


async def test_it_is_the_nodes_state_and_survives_the_session_that_said_it(node: NodeRuntime) -> None:
    one = Session(node)
    one.send(RETIRE)
    await one.until(lambda: one.said[-1:] == [(True, True)])
    await one.leave()
    later = Session(node)
    await later.until(lambda: later.first is not None)
    assert later.first is not None
    assert later.first.HasField("welcome")
    assert (later.first.leaving.retiring, later.first.leaving.empty) == (True, True), "before anything is sent there"
    await later.leave()


async def test_a_dispatch_in_the_same_frame_as_the_retire_is_taken(node: NodeRuntime) -> None:
    """The parts of a frame are applied in the order of the fields."""
    one = Session(node)
    request = engine_pb.EngineGenerateRequest(
        request_id="r", prompt_token_ids=range(20), sampling=types_pb.SamplingParams(max_tokens=5, ignore_eos=True)
    )
    frame = pb.GatewayFrame(dispatches=[pb.Dispatched(dispatch_seq=1, request=request)], retire=pb.RETIREMENT_RETIRE)
    one.send(frame)
    await one.until(lambda: "r" in one.ends)
    assert one.outcome("r") is Outcome.LENGTH
    await one.until(lambda: one.said[-1] == (True, True))
    await one.leave()

"""When a session tells its gateway of the node's load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from engine_adapters.base import EngineOptions
from engine_adapters.emulated import EmulatedEngine
from predictor.node import NodeRuntime
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import EngineConfig
from tests.helpers.sessions import SessionEnd
from tests.helpers.step_time import STEP_TIME

CONFIG = EngineConfig(
    model="m", max_num_seqs=8, max_num_batched_tokens=64, block_size_tokens=4, num_blocks=200, max_model_len_tokens=400
)
DEADLINE_S = 10.0


class NotedSession(SessionEnd):
    """Keeps the frames."""

    def __init__(self, node: NodeRuntime) -> None:
        super().__init__(node)
        self.frames: list[pb.NodeFrame] = []

    @property
    def notes(self) -> list[tuple[int, int]]:
        """(The last dispatch that is counted, requests on their way), of each note."""
        return [(f.load.dispatch_seq, f.load.load.reserved) for f in self.frames if f.HasField("load")]

    def hear(self, frame: pb.NodeFrame) -> None:
        self.frames.append(frame)


@pytest.fixture
async def node() -> AsyncIterator[NodeRuntime]:
    """One whose engine's first step ends after the test."""
    engine = EmulatedEngine(EngineOptions(node_id="n", config=CONFIG, step_time=STEP_TIME, time_scale=1e-6))
    node = NodeRuntime("n", engine, engine, profile=STEP_TIME, reservation_ttl_s=30.0, scenarios=4)
    await node.start()
    yield node
    await node.close()


async def test_a_dispatch_is_news_to_the_other_gateways_only(node: NodeRuntime) -> None:
    sender, other = NotedSession(node), NotedSession(node)
    for session in (sender, other):
        await session.until(lambda session=session: session.notes == [(0, 0)])  # type: ignore[misc]
    request = engine_pb.EngineGenerateRequest(request_id="r", prompt_token_ids=range(20))
    request.sampling.max_tokens = 5
    sender.send(pb.GatewayFrame(dispatches=[pb.Dispatched(dispatch_seq=1, request=request)]))
    await other.until(lambda: other.notes == [(0, 0), (0, 1)])
    asked = types_pb.Candidate(request_id="q", prompt_tokens=20, max_output_tokens=5)
    sender.send(pb.GatewayFrame(asks=[pb.Ask(ask_id=1, candidate=asked)]))
    await sender.until(lambda: any(frame.answers for frame in sender.frames))
    assert sender.notes == [(0, 0)]
    # Who has heard nothing for a while is told all the same.
    sender.send(pb.GatewayFrame(ping=1))
    await sender.until(lambda: sender.notes == [(0, 0), (1, 1)])
    for session in (sender, other):
        session.task.cancel()
    await asyncio.gather(sender.task, other.task, return_exceptions=True)

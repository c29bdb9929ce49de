"""What gateways say that they are going to send: added up, forgotten in time, never believed without bounds."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import pytest

from engine_adapters.base import EngineOptions
from engine_adapters.emulated import EmulatedEngine
from predictor.core.told_work import MOST_REQUESTS_PER_S, STALE_S, ToldWork
from predictor.node import NodeRuntime
from predictor.session import GatewaySession
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import ExpectedWork
from tests.helpers.simulated import STEP_TIME, cluster_nodes
from tests.unit.predictor.test_node_predictor import Rig


def work(requests_per_s: float, tokens: float = 100.0) -> ExpectedWork:
    """Prompts of one size."""
    return ExpectedWork(
        requests_per_s=requests_per_s,
        new_tokens_per_s=requests_per_s * tokens,
        new_tokens2_per_s=requests_per_s * tokens * tokens,
    )


def test_what_several_gateways_tell_is_added_and_who_falls_silent_is_left_out() -> None:
    told = ToldWork()
    assert told.at(0.0) is None
    told.hear("a", work(2.0), 0.0)
    told.hear("b", work(3.0), 4.0)
    told.hear("a", work(1.0), 5.0)
    assert told.at(5.0) == work(4.0)
    assert told.at(4.0 + STALE_S) is told.at(5.0), "nothing has changed"
    assert told.at(4.1 + STALE_S) == work(1.0)
    assert told.at(5.1 + STALE_S) is None


def test_a_gateway_that_has_gone_counts_no_more() -> None:
    told = ToldWork()
    told.hear("a", work(2.0), 0.0)
    told.hear("b", work(3.0), 0.0)
    told.forget("a", 1.0)
    told.forget("a", 1.0)
    assert told.at(1.0) == work(3.0)
    told.forget("b", 1.0)
    assert told.at(1.0) is None


@pytest.mark.parametrize("odd", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("field", ["requests_per_s", "new_tokens_per_s", "new_tokens2_per_s"])
def test_numbers_that_cannot_be_are_refused(odd: float, field: str) -> None:
    with pytest.raises(ValueError, match="negative or not finite"):
        ExpectedWork(**{"requests_per_s": 1.0, "new_tokens_per_s": 1.0, "new_tokens2_per_s": 1.0, field: odd})


@pytest.mark.parametrize(
    "said",
    [
        work(1e9, 1e9),
        work(1e-9, 1e9),
        ExpectedWork(requests_per_s=1e300, new_tokens_per_s=0.0, new_tokens2_per_s=1e300),
        ExpectedWork(requests_per_s=0.0, new_tokens_per_s=1e9, new_tokens2_per_s=1e-9),
    ],
)
def test_absurd_words_cost_neither_trust_nor_more_than_a_bounded_error(said: ExpectedWork) -> None:
    lied_to, left_alone = Rig(), Rig()
    for i in range(200):
        lied_to.predictor.told.hear("liar", said, lied_to.now_s)
        forecast, right = lied_to.one(f"r{i}"), left_alone.one(f"r{i}")
        for at, true in ((forecast.e2e_s, right.e2e_s), (forecast.tpot_s, right.tpot_s)):
            assert true.p50 <= at.p50 + 1e-9
            assert at.p50 <= at.p90 <= 20.0 * true.p90
        assert forecast.e2e_s.mean == pytest.approx(right.e2e_s.mean)
        lied_to.live(f"r{i}", 1.0)
        left_alone.live(f"r{i}", 1.0)
        assert lied_to.predictor.trusted
    assert forecast.e2e_s.p50 == pytest.approx(right.e2e_s.p50, rel=0.1), "experience counts for more"


def test_what_is_said_beyond_all_engines_is_cut_off() -> None:
    told = ToldWork()
    told.hear("a", work(1e9), 0.0)
    told.hear("b", work(1e9), 0.0)
    found = told.at(0.0)
    assert found is not None
    assert found.requests_per_s == MOST_REQUESTS_PER_S


async def test_a_session_hears_it_before_the_questions_of_its_frame_and_takes_it_back_at_its_end() -> None:
    (spec,) = cluster_nodes(1)
    engine = EmulatedEngine(EngineOptions(node_id="n", config=spec.config, step_time=STEP_TIME))
    node = NodeRuntime("n", engine, engine, profile=STEP_TIME, reservation_ttl_s=30.0, scenarios=4)
    await node.start()
    frames: asyncio.Queue[pb.GatewayFrame] = asyncio.Queue()
    answers: asyncio.Queue[pb.Answer] = asyncio.Queue()

    async def sent() -> AsyncIterator[pb.GatewayFrame]:
        while True:
            yield await frames.get()

    class Context:
        async def write(self, frame: pb.NodeFrame) -> None:
            for answer in frame.answers:
                answers.put_nowait(answer)

    async def asked(ask_id: int, *told: pb.ExpectedWork) -> types_pb.Forecast:
        frame = pb.GatewayFrame(expected_work=told[0]) if told else pb.GatewayFrame()
        ask = frame.asks.add(ask_id=ask_id)
        ask.candidate.request_id, ask.candidate.prompt_tokens, ask.candidate.max_output_tokens = "r", 50, 100
        frames.put_nowait(frame)
        answer = await asyncio.wait_for(answers.get(), 10.0)
        assert answer.ask_id == ask_id
        return answer.forecast

    now_s = asyncio.get_running_loop().time
    session = asyncio.create_task(GatewaySession(node, Context()).run(sent()))
    alone = await asked(1)
    odd = pb.ExpectedWork(requests_per_s=math.nan, new_tokens_per_s=1.0, new_tokens2_per_s=1.0)
    assert await asked(2, odd)
    assert node.predictor.told.at(now_s()) is None
    busy = await asked(3, pb.ExpectedWork(requests_per_s=5.0, new_tokens_per_s=2e3, new_tokens2_per_s=8e5))
    assert busy.e2e_s.p50 > 1.1 * alone.e2e_s.p50
    session.cancel()
    await asyncio.gather(session, return_exceptions=True)
    assert node.predictor.told.at(now_s()) is None
    await node.close()

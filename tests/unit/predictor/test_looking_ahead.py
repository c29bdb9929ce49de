"""On which thread a node looks ahead, and what that keeps waiting."""

from __future__ import annotations

import asyncio

from predictor.asking import Asking
from predictor.core.calibration import Calibration
from predictor.core.node_predictor import NodePredictor
from simcore.types import Forecast
from tests.unit.predictor.test_estimator import Rig, candidate


def full_node() -> NodePredictor:
    """One waits for four."""
    rig = Rig().connect()
    for i in range(5):
        rig.dispatch(candidate(f"r{i}"))
    rig.step(3)
    return NodePredictor(rig.traced, Calibration())


def test_a_short_look_is_done_at_once() -> None:
    async def look() -> None:
        predictor, seen = full_node(), []
        asking = Asking(predictor)
        asking.look_ahead(lambda: seen.append(predictor.lookout.looks))
        assert seen == [1]
        await asking.close()

    asyncio.run(look())


def test_a_long_look_is_done_by_the_thread_and_who_asks_meanwhile_is_answered_after_it() -> None:
    async def look() -> None:
        predictor = full_node()
        asking = Asking(predictor)
        asking._look_s = 1.0
        seen = asyncio.Event()
        asking.look_ahead(seen.set)
        assert asking.is_busy
        asking.look_ahead(seen.set)
        (answer,) = await asking.forecast([candidate("new")])
        assert isinstance(answer, Forecast)
        await seen.wait()
        assert predictor.lookout.looks == 1
        await asking.close()

    asyncio.run(look())

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from gateway.lengths import MAX_BATCH, LengthDesk
from length_model.baseline import ConstantModel
from length_model.belief import DEFAULT_PRIOR, truncated
from length_model.distribution import Floats
from length_model.online import OnlineLengths
from length_model.query import LengthQuery, make_query


class Gated(ConstantModel):
    """Answers when it is let go, and remembers its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.started = threading.Event()
        self.batches: list[int] = []

    def pmf(self, queries: Sequence[LengthQuery]) -> Floats:
        self.batches.append(len(queries))
        self.started.set()
        assert self.open.wait(20)
        return super().pmf(queries)


async def test_requests_that_come_while_the_model_is_busy_are_answered_together() -> None:
    model = Gated()
    desk = LengthDesk(OnlineLengths(model), deadline_s=20)
    first = asyncio.create_task(desk.forecast(make_query("first"), None))
    assert await asyncio.to_thread(model.started.wait, 20)
    others = [asyncio.create_task(desk.forecast(make_query(f"{i}"), 100)) for i in range(MAX_BATCH + 3)]
    await asyncio.sleep(0)
    model.open.set()
    found = await asyncio.gather(first, *others)
    assert model.batches == [1, MAX_BATCH, 3]
    assert all(f.cumulated is not None for f in found)
    assert all(f.belief.atoms_tokens[-1] <= 100 for f in found[1:])
    await desk.close()


async def test_late_beliefs_are_the_prior_and_counted_and_the_next_in_time_is_not() -> None:
    model = Gated()
    lengths = OnlineLengths(model)
    desk = LengthDesk(lengths, deadline_s=0.02)
    late = await asyncio.gather(*(desk.forecast(make_query("x"), 50) for _ in range(3)))
    assert [f.belief for f in late] == [truncated(DEFAULT_PRIOR, 50)] * 3
    assert lengths.counters.late == 3
    model.open.set()
    patient = LengthDesk(lengths, deadline_s=20)
    assert (await patient.forecast(make_query("x"), None)).cumulated is not None
    await desk.close()
    await patient.close()


async def test_who_gave_up_costs_no_call() -> None:
    model = Gated()
    desk = LengthDesk(OnlineLengths(model), deadline_s=20)
    first = asyncio.create_task(desk.forecast(make_query("a"), None))
    assert await asyncio.to_thread(model.started.wait, 20)
    gone = asyncio.create_task(desk.forecast(make_query("b"), None))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    model.open.set()
    await first
    assert model.batches == [1]
    await desk.close()


async def test_a_failing_model_gives_the_prior() -> None:
    class Broken(ConstantModel):
        def pmf(self, queries: Sequence[LengthQuery]) -> Floats:
            raise MemoryError

    lengths = OnlineLengths(Broken())
    desk = LengthDesk(lengths, deadline_s=20)
    forecast = await desk.forecast(make_query("a"), None)
    assert forecast.belief == DEFAULT_PRIOR
    desk.observe(forecast, 10, censored=False)
    assert lengths.counters.failed == 1
    assert lengths.counters.ignored == 1
    await desk.close()

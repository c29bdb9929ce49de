"""The holding queue's promises: nobody starves, bounds hold, and the lowest class goes first when room is short."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.core import events as ev
from gateway.core.queue.queue import GatewayQueue, HoldConfig, HoldOrder, due_s, queue_class, tokens_of
from gateway.core.request.live import LiveRequest
from simcore.types import CLASSES, LengthBelief
from tests.helpers.routing import shape

orders = st.sampled_from(["fcfs", "shortest_forecast", "deadline"])


def held(request_id: str, arrival_s: float, **changes: object) -> LiveRequest:
    request = shape(request_id, **changes)
    return LiveRequest.arrived(request, "least_requests", arrival_s, needs_forecasts=False)


@st.composite
def requests(draw: st.DrawFn) -> list[LiveRequest]:
    return [
        held(
            f"r{i}",
            draw(st.floats(0, 100)),
            priority=draw(st.integers(-100, 100)),
            prompt_tokens=draw(st.integers(1, 4000)),
            belief=LengthBelief((draw(st.integers(1, 2000)),)),
            model=draw(st.sampled_from(["a", "b"])),
            slo=ev.Slo(deadline_s=draw(st.sampled_from([None, 0.5, 5.0, 500.0]))),
        )
        for i in range(draw(st.integers(2, 30)))
    ]


@given(order=orders, aging_s=st.floats(0.1, 50.0), lives=requests())
def test_who_comes_later_than_the_bound_never_goes_first(
    order: HoldOrder, aging_s: float, lives: list[LiveRequest]
) -> None:
    """The bound on starvation: `aging_s * (difference of class + 1)`."""
    queue = GatewayQueue(HoldConfig(order=order, aging_s=aging_s, heads=len(lives) + 1))
    for live in lives:
        queue.join(live)
    place = {live.request_id: i for i, live in enumerate(queue.heads())}
    one_more = held("one more", 101.0, priority=lives[0].shape.priority)
    ahead = queue.ahead_of(one_more)
    queue.join(one_more)
    assert queue.heads()[ahead] is one_more
    queue.leave(one_more)
    for late in lives:
        for early in lives:
            patience_s = aging_s * (queue_class(early) - queue_class(late) + 1)
            if late.arrival_s > early.arrival_s + patience_s + 1e-6:
                assert place[early.request_id] < place[late.request_id]
    assert all(abs(queue_class(live)) <= CLASSES for live in lives)


@given(order=orders, lives=requests())
def test_of_two_that_come_together_the_higher_class_goes_first(order: HoldOrder, lives: list[LiveRequest]) -> None:
    config = HoldConfig(order=order)
    for one in lives:
        for other in lives:
            if queue_class(one) < queue_class(other):
                assert due_s(one, config) - one.arrival_s <= due_s(other, config) - other.arrival_s


@given(lives=requests(), data=st.data())
def test_counts_return_to_zero_in_whatever_order_requests_leave(lives: list[LiveRequest], data: st.DataObject) -> None:
    queue = GatewayQueue(HoldConfig(order="shortest_forecast", heads=3))
    for live in lives:
        queue.join(live)
    left = list(lives)
    for live in data.draw(st.permutations(lives)):
        heads = queue.heads()
        for model in ("a", "b"):
            mine = [head for head in heads if head.shape.model == model]
            there = [other for other in left if other.shape.model == model]
            assert len(mine) == min(3, len(there)), "each model has its own front"
            assert queue.holds_model(model) is bool(there)
        queue.leave(live)
        left.remove(live)
        assert len(queue) == len(left)
        assert queue.tokens == sum(tokens_of(other.shape) for other in left)
    assert queue.heads() == []
    assert queue.oldest_arrival_s() is None


@given(order=orders, lives=requests(), newcomer=st.integers(-3, 3))
def test_room_is_made_by_the_lowest_class_and_only_for_a_higher_one(
    order: HoldOrder, lives: list[LiveRequest], newcomer: int
) -> None:
    queue = GatewayQueue(HoldConfig(order=order, max_requests=len(lives), heads=len(lives)))
    for live in lives:
        queue.join(live)
    request = held("new", 200.0, priority=newcomer)
    assert queue.fill_with(request.shape) > 1.0
    lowest = max(queue_class(live) for live in lives)
    victim = queue.victim_for(request)
    if lowest <= newcomer:
        assert victim is None
    else:
        assert victim is not None
        assert queue_class(victim) == lowest
        rivals = [live for live in queue.heads() if queue_class(live) == lowest]
        assert victim is rivals[-1], "the last of them"


def shed_share(queue: GatewayQueue, priority: int) -> float:
    rng = random.Random(7)
    return sum(queue.turns_away(held("new", 0.0, priority=priority), rng) for _ in range(2000)) / 2000


def test_shedding_is_gradual_and_begins_with_the_lowest_class() -> None:
    shares: dict[int, list[float]] = {0: [], 1: []}
    queue = GatewayQueue(HoldConfig(max_requests=100, shed_from=0.5))
    for i in range(99):
        queue.join(held(f"r{i}", float(i), priority=i % 2))
        for priority, seen in shares.items():
            seen.append(shed_share(queue, priority))
    for seen in shares.values():
        assert seen[:48] == [0.0] * 48, "nobody is shed below the threshold"
        assert all(later >= earlier - 0.05 for earlier, later in itertools.pairwise(seen)), "no cliff"
    assert shares[1][60] > 0.1
    assert shares[0][60] == 0.0, "half of those held are of a lower class: its own shedding begins half way later"
    assert 0.0 < shares[0][85] < shares[1][85] < 1.0
    assert shares[1][98] > 0.95


@given(aging_s=st.floats(0.1, 50.0), gap_s=st.floats(0.01, 5.0), ours=st.integers(-2, 3), theirs=st.integers(-8, 2))
def test_a_stream_of_a_higher_class_passes_a_request_for_the_bound_and_no_longer(
    aging_s: float, gap_s: float, ours: int, theirs: int
) -> None:
    """One request of class `ours`, and others of `theirs` that come without end: served one at a time, whoever is first
    in line, ours is served as soon as `aging_s * (difference of class)` is over."""
    queue = GatewayQueue(HoldConfig(aging_s=aging_s))
    mine = held("mine", 0.0, priority=ours)
    queue.join(mine)
    bound_s = aging_s * max(0, ours - theirs)
    for i in range(int(bound_s / gap_s) + 3):
        queue.join(held(f"t{i}", i * gap_s, priority=theirs))
        first = queue.heads()[0]
        if first is mine:
            break
        queue.leave(first)
    assert first is mine
    assert i * gap_s <= bound_s + 2 * gap_s

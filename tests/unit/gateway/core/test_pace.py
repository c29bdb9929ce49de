"""What nodes tell of their pace, who is believed, and what is guessed from it."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import msgspec
import pytest

from gateway.core import events as ev
from gateway.core.decision.later_cost import LATER_WAITS_PER_WAIT, room_s
from gateway.core.decision.policies.estimated_latency import EstimatedLatency
from gateway.core.decision.policies.min_total_latency import MinTotalLatency
from gateway.core.nodes.pace import DESIGN_UTILISATION, Pace, later_waits
from gateway.core.nodes.view import NodeView
from simcore.types import LengthBelief, NodePace
from tests.helpers.routing import PACE, CheckedRouter, forecast, node_load, node_view, shape

SEATS = 48


def pace(factor: float = 1.0) -> NodePace:
    return NodePace(
        batches=PACE.batches,
        step_s=tuple(s * factor for s in PACE.step_s),
        kv_s_per_token=PACE.kv_s_per_token * factor,
        prefill_s_per_token=PACE.prefill_s_per_token * factor,
    )


def seen(node_id: str = "a", factor: float = 1.0, cached_tokens: int = 0, **load: Any) -> NodeView:
    return node_view(node_id, node_load(node_id, **load), pace=Pace(pace(factor), SEATS), cached_tokens=cached_tokens)


def estimate(view: NodeView, **request: Any) -> float:
    (cost,) = EstimatedLatency().costs(shape(**request), [view], {})
    assert cost is not None
    return cost


def busy(requests: int) -> dict[str, Any]:
    return {"running": requests, "unprocessed_tokens": 200 * requests, "free_blocks": 1052 - 15 * requests}


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_step_is_read_between_the_batches_told() -> None:
    table = Pace(NodePace(batches=(1, 3, 4), step_s=(1.0, 2.0, 4.0), kv_s_per_token=0, prefill_s_per_token=0), 6)
    assert table.step_s == [1.0, 1.0, 1.5, 2.0, 4.0, 4.0, 4.0]
    assert table.rise_s == [0.5, 0.6, 0.625, pytest.approx(2 / 3), 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"batches": ()},
        {"batches": (2, 48)},
        {"batches": (1, 1)},
        {"batches": (1,)},
        {"step_s": (0.0, 0.0)},
        {"step_s": (0.04, 0.02)},
        {"step_s": (-0.02, 0.04)},
        {"step_s": (0.02, float("nan"))},
        {"step_s": (0.02, float("inf"))},
        {"kv_s_per_token": -1e-9},
        {"prefill_s_per_token": float("nan")},
    ],
)
def test_a_pace_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    told: dict[str, Any] = {"batches": (1, 48), "step_s": (0.02, 0.04), "kv_s_per_token": 0.0}
    with pytest.raises(ValueError, match="pace"):
        NodePace(**{**told, "prefill_s_per_token": 1e-4, **changes})


# --- later ones -------------------------------------------------------------------------------------------------------


def test_what_later_ones_wait_grows_with_the_requests_there() -> None:
    for seats in (1, 24, 128, 256):
        waits = later_waits(seats)
        assert len(waits) == seats + 1
        assert all(a < b for a, b in itertools.pairwise(waits))


def test_with_one_seat_later_waits_are_those_of_the_textbook() -> None:
    """M/M/1: one more in an empty system makes those who come wait u / (1 - u) services in sum; the second, which waits
    itself, 1 / (1 - u)^2 less its own wait, which is one."""
    u = DESIGN_UTILISATION
    empty, full = later_waits(1)
    assert empty == pytest.approx(u / (1 - u))
    assert full == pytest.approx(empty + 1 / (1 - u))


def test_later_waits_are_those_of_a_simulated_queue() -> None:
    """One more request among 3 of 4 seats: how much longer later ones wait, by two runs with the same random numbers.

    The difference of the mean over many pairs lies within four standard errors of the value function's.
    """
    rng = random.Random(1)
    seats, pairs = 4, 4000
    grown = [_later_wait(rng, seats, 3) for _ in range(pairs)]
    mean = sum(grown) / pairs
    error = (sum((g - mean) ** 2 for g in grown) / pairs / pairs) ** 0.5
    assert abs(mean - later_waits(seats)[3]) < 4 * error, f"seed 1: {mean} +- {error}"


def _later_wait(rng: random.Random, seats: int, here: int) -> float:
    """Waiting of later ones beside one request more, until that has made no difference any more; M/M/`seats` with an
    end every unit of time when full."""
    few, many, waited = here, here + 1, 0.0
    while few != many:
        arrive, end = DESIGN_UTILISATION, min(many, seats) / seats
        step = rng.expovariate(arrive + end)
        waited += (max(0, many - seats) - max(0, few - seats)) * step
        if rng.random() * (arrive + end) < arrive:
            few, many = few + 1, many + 1
        else:
            # The same service ends in both, unless the request that one of them lacks has ended.
            if rng.random() * min(many, seats) < min(few, seats):
                few -= 1
            many -= 1
    return waited


def test_room_costs_more_the_fuller_a_node_is_by_seats_or_by_memory() -> None:
    few, many = seen(**busy(5)), seen(**busy(45))
    assert 0.0 < room_s(shape(), few) < room_s(shape(), many)
    full_memory = seen(running=5, unprocessed_tokens=1000, free_blocks=20)
    assert room_s(shape(), full_memory) > 10 * room_s(shape(), few)
    assert room_s(shape(), node_view("a")) == 0.0, "nothing is known of its pace"


# --- the estimate -----------------------------------------------------------------------------------------------------


def test_an_idle_node_costs_the_prompt_and_the_answer_at_its_pace() -> None:
    view = seen()
    prefill_s, answer_s = 32 * 1e-4, 100 * (0.02 + 1e-7 * (32 + 50))
    expected = (1 + LATER_WAITS_PER_WAIT) * prefill_s + answer_s + room_s(shape(), view)
    assert estimate(view) == pytest.approx(expected, rel=1e-9)


def test_a_slow_node_costs_more_and_a_cached_prompt_less() -> None:
    assert estimate(seen(factor=3.0)) > 2.5 * estimate(seen())
    long = {"prompt_tokens": 10_000, "max_output_tokens": 10, "belief": LengthBelief((10,))}
    whole, cached = estimate(seen(), **long), estimate(seen(cached_tokens=8_000), **long)
    assert cached < 0.5 * whole
    everything = estimate(seen(cached_tokens=10_000), **long)
    assert 0.0 < everything < cached


def test_requests_prompts_and_lacking_memory_ahead_cost() -> None:
    idle = estimate(seen())
    some = estimate(seen(**busy(10)))
    assert idle < some < estimate(seen(**busy(40)))
    prompts = busy(10) | {"unprocessed_tokens": 2000 + 5000, "prefill_tokens": 5000}
    wait_s = (1 + LATER_WAITS_PER_WAIT) * 5000 * 1e-4
    assert some + wait_s < estimate(seen(**prompts)) < some + 1.5 * wait_s
    assert estimate(seen(running=10, unprocessed_tokens=2000, free_blocks=0)) > 2 * some
    assert math.isfinite(estimate(seen(waiting=3, unprocessed_tokens=600, waiting_prompt_blocks=1052)))
    over: dict[str, Any] = {"running": SEATS, "unprocessed_tokens": 60 * 200, "free_blocks": 300}
    assert estimate(seen(**over, waiting=12)) > 2 * estimate(seen(**busy(40)))


def test_prompts_ahead_that_are_cached_do_not_count_until_their_first_token() -> None:
    policy, asked = EstimatedLatency(), shape()
    ahead = seen(running=1, waiting=1, unprocessed_tokens=10_300, prefill_tokens=10_000)
    alone = policy.costs(asked, [ahead], {})[0]
    long = shape("ahead", prompt_tokens=10_000)
    policy.placed(long, msgspec.structs.replace(ahead, cached_tokens=9_000))
    cached = policy.costs(asked, [ahead], {})[0]
    assert alone is not None
    assert cached is not None
    wait_s = (1 + LATER_WAITS_PER_WAIT) * 9_000 * 1e-4
    assert wait_s < alone - cached < 1.5 * wait_s, "and a little for the room that they would have kept"
    policy.began(long, "a")
    assert policy.costs(asked, [ahead], {})[0] == alone


def test_where_a_forecast_is_lower_than_the_estimate_the_estimate_counts() -> None:
    policy, views = MinTotalLatency(), [seen("a", **busy(40)), seen("b"), seen("c", factor=2.0)]
    estimates = EstimatedLatency().costs(shape(), views, {})
    costs = policy.costs(shape(), views, {"a": forecast("a", e2e_s=0.1), "b": forecast("b", e2e_s=50.0)})
    assert costs[0] == estimates[0]
    assert costs[1] == pytest.approx(50.0 + LATER_WAITS_PER_WAIT * 0.1 + room_s(shape(), views[1]))
    assert costs[2] == estimates[2], "there is no forecast to go by"


def test_nothing_known_is_no_price() -> None:
    bare = NodeView(node_id="a", config=node_view("a").config, load=None, in_flight=0, dispatches_60s=0)
    assert EstimatedLatency().costs(shape(), [bare, node_view("b")], {}) == [None, None]


def test_a_changed_load_or_pace_is_seen() -> None:
    policy = EstimatedLatency()
    costs = [policy.costs(shape(), [view], {})[0] for view in (seen(), seen(**busy(20)), seen(factor=2.0), seen())]
    assert costs[0] == costs[3]
    assert len(set(costs)) == 3


# --- who is believed --------------------------------------------------------------------------------------------------


def world(**factors: float) -> CheckedRouter:
    made = CheckedRouter("estimated_latency")
    made.join(*factors, pace=False)
    for node_id, factor in factors.items():
        made.tell(ev.PaceTold(node_id=node_id, pace=pace(factor)))
    return made


def cost_of(made: CheckedRouter, request_id: str, node_id: str) -> float | None:
    made.arrive(request_id)
    told = made.router.explain(request_id)
    assert told is not None
    made.end(request_id)
    return next(score.cost for score in told.decisions[0].scores if score.node_id == node_id)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_pace_far_from_all_others_is_not_believed_and_its_node_is_still_used(factor: float) -> None:
    made = world(a=1.0, b=1.0, c=1.0, odd=factor)
    assert cost_of(made, "r", "odd") == pytest.approx(cost_of(made, "s", "c"))
    (status,) = [s for s in made.router.nodes() if s.node_id == "odd"]
    assert "step times" in status.alarm
    made.tell(ev.PaceTold(node_id="odd", pace=pace(1.1)))
    assert not any(s.alarm for s in made.router.nodes())


def test_a_node_that_tells_no_pace_counts_as_the_one_in_the_middle() -> None:
    made = world(a=1.0, b=2.0, c=9.0)
    made.join("old", pace=False)
    assert cost_of(made, "r", "old") == pytest.approx(cost_of(made, "s", "b"))


def test_a_node_that_comes_again_has_no_pace_until_it_tells() -> None:
    made = world(a=1.0)
    made.tell(ev.NodeLost(node_id="a", detail="gone"))
    made.join("a", pace=False)
    made.arrive("r")
    told = made.router.explain("r")
    assert told is not None
    assert told.decisions[0].policy == "least_requests"

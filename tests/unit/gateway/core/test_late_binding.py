"""Late binding in the router: who is held, when a node gets them, and how every way out of the queue ends."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core import events as ev
from gateway.core.queue.queue import HoldConfig
from simcore.types import Outcome, Quantiles
from tests.helpers.routing import CheckedRouter, engine_config, every, forecast, only

SEATS = 48
FULL = {"running": SEATS, "free_blocks": 200, "unprocessed_tokens": 9000}
SOON = Quantiles(0.5, 0.5, 0.5)


def world(policy: str = "least_requests", nodes: tuple[str, ...] = ("a", "b"), **hold: Any) -> CheckedRouter:
    made = CheckedRouter(policy, hold=HoldConfig(**{"when": "always", **hold}))
    made.join(*nodes)
    return made


def fill(made: CheckedRouter, *node_ids: str) -> None:
    for node_id in node_ids:
        made.note(node_id, **FULL)


def wait(made: CheckedRouter, seconds: float) -> list[ev.AnyAction]:
    """Time passes, and every timer rings in its turn."""
    end_s, actions = made.now_s + seconds, []
    while due := [at_s for at_s in made.timers.values() if at_s <= end_s]:
        made.now_s = max(made.now_s, min(due))
        actions += made.fire_due()
    made.now_s = end_s
    return actions


def held(made: CheckedRouter) -> int:
    return made.router.queue_status().held


def test_a_request_waits_until_a_node_can_take_it() -> None:
    made = world()
    fill(made, "a", "b")
    assert not every(made.arrive("r"), ev.Dispatch)
    assert held(made) == 1
    assert not every(wait(made, 1.0), ev.Dispatch)
    made.note("b", running=SEATS - 1, free_blocks=300)
    assert only(wait(made, 0.25), ev.Dispatch).node_id == "b"
    assert held(made) == 0
    made.end("r")
    made.router.check_quiescent()


def test_an_end_of_our_own_frees_a_seat_at_once() -> None:
    made = world(nodes=("a",), recheck_s=0.01)
    for i in range(SEATS + 1):
        made.arrive(f"r{i}")
    assert held(made) == 1
    made.note("a", running=SEATS, free_blocks=500)
    wait(made, 0.05)
    made.note("a", running=SEATS - 1, free_blocks=500)
    made.end("r0")
    assert only(wait(made, 0.011), ev.Dispatch).request_id == f"r{SEATS}"


@pytest.mark.parametrize(
    ("load", "takes"),
    [
        ({}, True),
        ({"running": 10, "free_blocks": 1}, False),
        ({"running": 10, "waiting": 3}, False),
        ({"running": 10, "waiting": 3, "reserved": 2}, True),
        ({"running": 10, "waiting": 1, "waiting_prompt_blocks": 1052}, False),
        ({"free_blocks": 1}, True),
    ],
    ids=["idle", "no blocks", "engine queue", "under way", "blocks spoken for", "idle, whatever it says"],
)
def test_what_a_load_says_of_room(load: dict[str, Any], takes: bool) -> None:
    made = world(nodes=("a",))
    made.note("a", **load)
    assert bool(every(made.arrive("r"), ev.Dispatch)) is takes


def test_forecasts_decide_where_they_exist() -> None:
    made = world("min_total_latency")
    for node_id in ("a", "b"):
        made.note(node_id, running=10, free_blocks=500)
    asks = every(made.arrive("r"), ev.AskForecast)
    for ask in asks:
        said = forecast(ask.node_id, preemption_probability=0.9, clear_start_s=SOON)
        assert not every(
            made.tell(ev.ForecastArrived(ask_id=ask.ask_id, node_id=ask.node_id, forecast=said)), ev.Finish
        )
    assert held(made) == 1
    again = every(wait(made, 0.25), ev.AskForecast)
    assert {ask.node_id for ask in again} == {"a", "b"}, "asked anew"
    for ask in again:
        risk = 0.0 if ask.node_id == "b" else 0.9
        said = forecast(ask.node_id, 9.0 if risk == 0.0 else 1.0, preemption_probability=risk, clear_start_s=SOON)
        made.tell(ev.ForecastArrived(ask_id=ask.ask_id, node_id=ask.node_id, forecast=said))
    assert made.at["r"] == "b", "the dearer node, because nobody is preempted there"


def test_a_full_node_is_asked_as_long_as_another_could_start_the_request() -> None:
    made = world("min_total_latency")
    fill(made, "a", "b")
    assert not every(made.arrive("r"), ev.AskForecast)
    made.note("b", running=3, free_blocks=800)
    asked = {ask.node_id for ask in every(wait(made, 0.25), ev.AskForecast)}
    assert asked == {"a", "b"}, "its queue may still be worth the wait"


def test_who_is_better_off_in_the_queue_of_a_node_goes_there() -> None:
    made = world("min_total_latency")
    fill(made, "a")
    made.note("b", running=3, free_blocks=800)
    asks = every(made.arrive("r"), ev.AskForecast)
    for ask in asks:
        said = forecast("a", 3.0, ttft_s=SOON, clear_start_s=SOON) if ask.node_id == "a" else forecast("b", 90.0)
        made.tell(ev.ForecastArrived(ask_id=ask.ask_id, node_id=ask.node_id, forecast=said))
    assert made.at["r"] == "a"


def test_who_comes_later_stands_behind_and_asks_nobody() -> None:
    made = world("min_total_latency")
    fill(made, "a", "b")
    for i in range(20):
        assert not every(made.arrive(f"r{i}"), ev.AskForecast)
    made.note("a", running=3, free_blocks=800)
    asked = {ask.candidate.request_id for ask in every(wait(made, 0.25), ev.AskForecast)}
    assert asked <= {"r0", "r1", "r2", "r3"}, "only the head few are asked for"


def test_one_model_does_not_keep_another_waiting() -> None:
    made = CheckedRouter("least_requests", hold=HoldConfig(when="always"))
    made.join("a", config=engine_config("one"))
    made.join("b", config=engine_config("two"))
    fill(made, "a")
    for i in range(10):
        made.arrive(f"r{i}", model="one")
    assert only(made.arrive("other", model="two"), ev.Dispatch).node_id == "b"
    fill(made, "b")
    made.arrive("last", model="two")
    made.note("b")
    assert only(wait(made, 0.25), ev.Dispatch).request_id == "last"


def test_an_aged_request_is_passed_by_nobody() -> None:
    made = world(nodes=("a",), aging_s=1.0)
    made.note("a", running=40, free_blocks=60)
    made.arrive("big", prompt_tokens=1600)
    made.arrive("small-0")
    assert every(wait(made, 0.5), ev.Dispatch)[0].request_id == "small-0", "at first who fits may pass"
    wait(made, 1.0)
    made.arrive("small-1")
    assert not every(wait(made, 1.0), ev.Dispatch)
    made.note("a", running=30, free_blocks=400)
    first, second = every(wait(made, 0.3), ev.Dispatch)
    assert (first.request_id, second.request_id) == ("big", "small-1")


def test_after_the_longest_wait_a_request_is_placed_whatever_it_waits_for_there() -> None:
    made = world(max_s=2.0)
    fill(made, "a", "b")
    made.arrive("r")
    assert not every(wait(made, 1.9), ev.Dispatch)
    assert only(wait(made, 0.2), ev.Dispatch).request_id == "r"


def test_a_full_queue_turns_away_with_a_time_to_come_back() -> None:
    made = world(nodes=("a",), max_requests=4, shed_from=1.0)
    fill(made, "a")
    for i in range(4):
        made.arrive(f"r{i}")
    finish = only(made.arrive("late"), ev.Finish)
    assert finish.outcome is Outcome.OVERLOADED
    assert finish.retry_after_s is not None
    assert finish.retry_after_s > 0
    assert "try again in" in finish.detail
    assert only(made.arrive("urgent", priority=-1), ev.Finish).request_id == "r3", "the last of the lowest class goes"
    status = made.router.queue_status()
    assert (status.held, status.held_total, status.shed_total) == (4, 5, 2)


def test_the_predicted_wait_is_the_queue_over_its_pace() -> None:
    made = world(nodes=("a",), max_requests=20, shed_from=1.0)
    fill(made, "a")
    for i in range(20):
        made.arrive(f"r{i}")
    for i in range(10):
        made.note("a", running=SEATS - 1, free_blocks=500)
        assert len(every(wait(made, 1.0), ev.Dispatch)) == 1, i
    assert made.router.queue_status().predicted_wait_s == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize("way", ["left", "cancelled", "deadline", "drained", "nodes lost", "nodes removed"])
def test_every_way_out_of_the_queue_has_its_outcome(way: str) -> None:
    made = world()
    fill(made, "a", "b")
    made.arrive("r", slo=ev.Slo(deadline_s=3.0))
    assert held(made) == 1
    expected = Outcome.NO_NODE
    if way == "left":
        made.tell(ev.ClientGone(request_id="r"))
        expected = Outcome.CLIENT_LEFT
    elif way == "cancelled":
        made.tell(ev.ClientGone(request_id="r", outcome=Outcome.CANCELLED))
        expected = Outcome.CANCELLED
    elif way == "deadline":
        expected = Outcome.DEADLINE
        wait(made, 3.0)
    else:
        for node_id in ("a", "b"):
            made.tell(
                ev.DrainAsked(node_id=node_id)
                if way == "drained"
                else ev.NodeLost(node_id=node_id, detail="gone")
                if way == "nodes lost"
                else ev.NodeRemoved(node_id=node_id)
            )
        wait(made, 0.25)
    assert made.finished["r"].outcome is expected
    wait(made, 5.0)
    made.router.check_quiescent()
    assert held(made) == 0


def test_a_node_that_comes_back_takes_those_held() -> None:
    made = world()
    fill(made, "a", "b")
    made.arrive("r")
    made.tell(ev.NodeLost(node_id="a"))
    made.join("a")
    assert only(wait(made, 0.02), ev.Dispatch).node_id == "a"


def test_policies_that_ask_nobody_hold_only_when_told_to() -> None:
    made = world(when="forecast")
    fill(made, "a", "b")
    assert every(made.arrive("r"), ev.Dispatch)


def test_the_same_random_numbers_shed_the_same_requests() -> None:
    def course() -> list[str]:
        made = world(nodes=("a",), max_requests=50, shed_from=0.2)
        fill(made, "a")
        for i in range(100):
            made.arrive(f"r{i}", priority=i % 3)
        return sorted(made.finished)

    assert course() == course()
    assert course()

"""Placements that ask nodes first: answers, silence, failures, and what has changed since the question."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core import events as ev
from gateway.core.decision.later_cost import LATER_WAITS_PER_WAIT
from simcore.types import Decision, Outcome, Quantiles
from tests.helpers.routing import CheckedRouter, every, forecast, only

NODES = ("a", "b", "c")
LATER_S = LATER_WAITS_PER_WAIT * 0.1
"""What those who come later wait for the 0.1 s that each forecast here has to the first token."""


def asking(**config: Any) -> CheckedRouter:
    world = CheckedRouter("min_total_latency", **config)
    # Of a node that does not tell its pace nobody knows what room there costs later ones.
    world.join(*NODES, pace=False)
    return world


def costs_of(decision: Decision) -> list[float | None]:
    return [score.cost for score in decision.scores]


def test_every_node_is_asked_the_same_question_and_the_cheapest_gets_the_request() -> None:
    world = asking()
    actions = world.arrive("r")
    asks = every(actions, ev.AskForecast)
    assert [ask.node_id for ask in asks] == list(NODES)
    assert len({ask.candidate for ask in asks}) == 1
    assert only(actions, ev.StartTimer).at_s == pytest.approx(world.router.config.forecast_timeout_s)
    assert not world.answer(asks[:2], {"a": 3.0, "b": 2.0})
    world.now_s = 0.01
    decision = only(world.answer(asks[2:], {"c": 5.0}), ev.Dispatch).decision
    assert [s.node_id for s in decision.scores] == ["b", "a", "c"]
    assert costs_of(decision) == pytest.approx([2.0 + LATER_S, 3.0 + LATER_S, 5.0 + LATER_S])
    assert decision.policy == "min_total_latency"
    assert decision.cost_unit == "s"
    assert decision.decision_s == pytest.approx(0.01)
    assert "b is forecast to finish it in 2 s" in decision.reason
    assert "next is a with 3.4 s" in decision.reason


def test_harm_to_others_is_part_of_the_cost() -> None:
    world = asking()
    for ask in every(world.arrive("r"), ev.AskForecast):
        said = forecast(ask.node_id, e2e_s=2.0, harm_s={"a": 30.0, "b": 0.0, "c": 10.0}[ask.node_id])
        world.tell(ev.ForecastArrived(ask_id=ask.ask_id, node_id=ask.node_id, forecast=said))
    assert world.at["r"] == "b"


def test_the_new_requests_own_latency_alone_decides_where_that_is_asked_for() -> None:
    world = asking()
    for ask in every(world.arrive("r", policy="min_new_request_latency"), ev.AskForecast):
        said = forecast(
            ask.node_id, e2e_s={"a": 1.9, "b": 2.0, "c": 2.0}[ask.node_id], harm_s=50.0 if ask.node_id == "a" else 0.0
        )
        world.tell(ev.ForecastArrived(ask_id=ask.ask_id, node_id=ask.node_id, forecast=said))
    assert world.at["r"] == "a"


def test_a_sample_asks_that_many_nodes_only() -> None:
    world = asking(sample=2)
    for i in range(10):
        assert len({ask.node_id for ask in every(world.arrive(f"r{i}"), ev.AskForecast)}) == 2


def test_at_the_timeout_those_that_answered_are_compared() -> None:
    world = asking()
    asks = every(world.arrive("r"), ev.AskForecast)
    world.answer(asks, {"b": 9.0})
    world.now_s = 0.05
    decision = only(world.fire_due(), ev.Dispatch).decision
    assert decision.node_id == "b"
    counts = "; counts like a node with as many of our requests (0)"
    assert {s.node_id: s.note for s in decision.scores if s.forecast is None} == {
        "a": "no forecast within 0.05 s" + counts,
        "c": "no forecast within 0.05 s" + counts,
    }
    assert not world.answer(asks, {"a": 0.1, "c": 0.1}), "late answers come to nothing"
    world.end("r")
    world.router.check_quiescent()


def test_when_nobody_answers_in_time_the_fallback_decides_and_says_so() -> None:
    world = asking()
    world.arrive("other", policy="round_robin")
    world.arrive("r")
    world.now_s = 0.05
    decision = only(world.fire_due(), ev.Dispatch).decision
    assert decision.node_id != world.at["other"]
    assert decision.policy == "least_requests"
    assert decision.cost_unit == "requests"
    assert "min_total_latency could not price 3 nodes as no forecast came" in decision.reason
    assert "no forecast within 0.05 s" in decision.reason
    assert "least_requests stepped in" in decision.reason


def test_when_every_forecast_fails_the_fallback_decides_at_once_and_names_the_failure() -> None:
    world = asking()
    actions: list[ev.AnyAction] = []
    for ask in every(world.arrive("r"), ev.AskForecast):
        actions += world.tell(ev.ForecastArrived(ask_id=ask.ask_id, node_id=ask.node_id, error="trace lost"))
    decision = only(actions, ev.Dispatch).decision
    assert decision.policy == "least_requests"
    assert "trace lost" in decision.reason
    assert {s.note for s in decision.scores} == {"trace lost"}


def test_the_fallback_looks_beyond_a_silent_sample() -> None:
    world = asking(sample=1)
    silent = only(world.arrive("r"), ev.AskForecast).node_id
    world.now_s = 0.05
    assert {s.node_id for s in only(world.fire_due(), ev.Dispatch).decision.scores} == set(NODES)
    assert silent in NODES


def test_a_forecast_that_is_no_number_is_as_good_as_none() -> None:
    world = asking()
    asks = every(world.arrive("r"), ev.AskForecast)
    decision = only(world.answer(asks, {"a": float("nan"), "b": 4.0, "c": float("nan")}), ev.Dispatch).decision
    assert decision.node_id == "b"
    assert costs_of(decision) == pytest.approx([4.0 + LATER_S] * 3)
    assert ["counts like" in s.note for s in decision.scores] == [False, True, True]


def test_a_node_lost_while_it_is_asked_is_not_waited_for() -> None:
    world = asking()
    asks = every(world.arrive("r"), ev.AskForecast)
    world.answer(asks, {"a": 1.0, "b": 2.0})
    assert only(world.tell(ev.NodeLost(node_id="c", detail="reset")), ev.Dispatch).node_id == "a"


def test_the_best_forecast_of_a_node_that_has_gone_since_is_worth_nothing() -> None:
    world = asking()
    asks = every(world.arrive("r"), ev.AskForecast)
    world.answer(asks, {"a": 1.0, "b": 2.0})
    world.tell(ev.DrainAsked(node_id="a"))
    assert only(world.answer(asks, {"c": 3.0}), ev.Dispatch).node_id == "b"


def test_when_the_whole_shortlist_goes_the_placement_starts_again() -> None:
    world = asking(sample=1)
    ask = only(world.arrive("r"), ev.AskForecast)
    again = only(world.tell(ev.NodeLost(node_id=ask.node_id, detail="reset")), ev.AskForecast)
    assert again.node_id != ask.node_id
    dispatch = only(world.answer([again], {again.node_id: 1.0}), ev.Dispatch)
    assert dispatch.decision.attempt == 1, "no node has failed it"
    world.end("r")
    world.router.check_quiescent()


def test_what_was_dispatched_since_the_question_is_added_to_the_answer() -> None:
    """Two requests ask at once; both answers say that `a` is a little better. The second sees the first there."""
    world = asking()
    first = every(world.arrive("first"), ev.AskForecast)
    second = every(world.arrive("second"), ev.AskForecast)
    costs = {"a": 2.0, "b": 2.01, "c": 9.0}
    assert only(world.answer(first, costs), ev.Dispatch).node_id == "a"
    decision = only(world.answer(second, costs), ev.Dispatch).decision
    assert decision.node_id == "b"
    score = next(s for s in decision.scores if s.node_id == "a")
    assert score.note == "1 dispatched there since it was asked: added to its forecast"
    assert score.forecast is not None
    # Its prompt takes 0.1 s, once for each of the two; that is more than one of 48 places for 2 s.
    assert score.forecast.e2e_s.mean == pytest.approx(2.0 + 0.1)
    assert score.forecast.ttft_s.p90 == pytest.approx(0.1 + 0.1)
    assert score.forecast.harm_s.mean == pytest.approx(0.1)
    assert score.forecast.kv_headroom_blocks == 100 - 2


def test_a_dispatch_before_the_question_is_left_to_the_node_to_count() -> None:
    world = asking()
    world.answer(every(world.arrive("first"), ev.AskForecast), {"a": 1.0, "b": 2.0, "c": 2.0})
    asks = every(world.arrive("second"), ev.AskForecast)
    decision = only(world.answer(asks, {"a": 1.0, "b": 2.0, "c": 2.0}), ev.Dispatch).decision
    assert costs_of(decision)[0] == pytest.approx(1.0 + LATER_S)
    assert decision.scores[0].note == ""


def test_a_missed_dispatch_that_has_ended_is_not_added() -> None:
    world = asking()
    first = every(world.arrive("first"), ev.AskForecast)
    second = every(world.arrive("second"), ev.AskForecast)
    world.answer(first, {"a": 1.0, "b": 2.0, "c": 2.0})
    world.end("first")
    decision = only(world.answer(second, {"a": 1.0, "b": 2.0, "c": 2.0}), ev.Dispatch).decision
    assert costs_of(decision)[0] == pytest.approx(1.0 + LATER_S)


def test_an_old_state_behind_a_forecast_is_noted() -> None:
    world = asking()
    for ask in every(world.arrive("r"), ev.AskForecast):
        said = forecast(ask.node_id, state_age_s=9.0 if ask.node_id == "b" else 0.1)
        world.tell(ev.ForecastArrived(ask_id=ask.ask_id, node_id=ask.node_id, forecast=said))
    told = world.router.explain("r")
    assert told is not None
    notes = {s.node_id: s.note for s in told.decisions[0].scores}
    assert (notes["a"], notes["c"]) == ("", "")
    assert notes["b"].startswith("its state was 9 s old; counts like")


def test_a_retry_asks_the_others() -> None:
    world = asking()
    world.answer(every(world.arrive("r"), ev.AskForecast), {"a": 1.0, "b": 2.0, "c": 3.0})
    asks = every(world.end("r", Outcome.ENGINE_FAILED), ev.AskForecast)
    assert [ask.node_id for ask in asks] == ["b", "c"]
    decision = only(world.answer(asks, {"b": 5.0, "c": 3.0}), ev.Dispatch).decision
    assert (decision.node_id, decision.attempt) == ("c", 2)
    told = world.router.explain("r")
    assert told is not None
    assert [d.node_id for d in told.decisions] == ["a", "c"]


def test_answers_to_unknown_questions_are_ignored() -> None:
    world = asking()
    assert not world.tell(ev.ForecastArrived(ask_id=999, node_id="a", forecast=forecast("a")))
    assert not world.tell(ev.TimerFired(timer_id=999))


def test_each_dispatch_since_the_question_adds_what_it_alone_delays() -> None:
    """Many ask one node at once. What the earlier ones add is not added once more by each that follows."""
    world = CheckedRouter("min_total_latency")
    world.join("a")
    asked = [only(world.arrive(f"r{i}"), ev.AskForecast) for i in range(9)]
    decisions = [only(world.answer([ask], {"a": 2.0}), ev.Dispatch).decision for ask in asked]
    said = [decision.scores[0].forecast for decision in decisions]
    assert [f.e2e_s.mean for f in said if f is not None] == pytest.approx([2.0 + 0.1 * i for i in range(9)])


def test_a_prompt_is_not_taken_to_last_as_long_as_the_wait_before_it() -> None:
    """The only node that answers makes everybody wait 5 s for a start; the prompt itself takes 0.1 s."""
    world = CheckedRouter("min_total_latency")
    world.join("a")
    asked = [only(world.arrive(f"r{i}"), ev.AskForecast) for i in range(2)]
    late = forecast("a", 8.0, ttft_s=Quantiles(5.1, 5.1, 5.1), clear_start_s=Quantiles(5.0, 5.0, 5.0))
    for ask in asked:
        actions = world.tell(ev.ForecastArrived(ask_id=ask.ask_id, node_id="a", forecast=late))
    said = only(actions, ev.Dispatch).decision.scores[0].forecast
    assert said is not None
    assert said.e2e_s.mean == pytest.approx(8.0 + 8.0 / 48)

"""Names that nodes begin and cease to serve while requests run and wait."""

from __future__ import annotations

import pytest

from gateway.core import events as ev
from gateway.core.queue.queue import HoldConfig
from simcore.types import Outcome
from tests.helpers.routing import CheckedRouter, engine_config, every, forecast, only

FULL = {"running": 48, "free_blocks": 200, "unprocessed_tokens": 9000}
ADAPTED = engine_config("m", other_names=("adapter",))


def serves(made: CheckedRouter, node_id: str, *names: str) -> list[ev.AnyAction]:
    return made.tell(ev.NodeServes(node_id=node_id, names=names))


def look(made: CheckedRouter) -> list[ev.AnyAction]:
    """The queue's next look at the nodes."""
    made.now_s = min(at_s for at_s in made.timers.values())
    return made.fire_due()


def world(policy: str = "least_requests") -> CheckedRouter:
    """Two full nodes, the first with an adapter for which requests wait."""
    made = CheckedRouter(policy, hold=HoldConfig(when="always"))
    made.join("a", config=ADAPTED)
    made.join("b")
    made.note("a", **FULL)
    made.note("b", **FULL)
    return made


def test_a_name_that_comes_is_served_and_dispatches_are_numbered_on() -> None:
    made = CheckedRouter()
    made.join("a")
    made.arrive("r1")
    assert made.router.why_unknown("adapter")
    serves(made, "a", "m", "adapter")
    assert made.router.models() == ["adapter", "m"]
    assert not made.router.why_unknown("adapter")
    # The checked router wants the number after the first request's, and not 1 again.
    assert only(made.arrive("r2", model="adapter"), ev.Dispatch).dispatch_seq == 2
    assert made.router.nodes()[0].in_flight == 2
    assert made.router.nodes()[0].load is not None, "what is known of the node stays known"


def test_only_nodes_that_serve_the_name_get_it() -> None:
    made = CheckedRouter()
    made.join("a", "b", "c")
    serves(made, "b", "m", "adapter")
    for i in range(6):
        assert only(made.arrive(f"r{i}", model="adapter"), ev.Dispatch).node_id == "b"


def test_a_renamed_model_is_asked_by_its_new_name_alone() -> None:
    made = CheckedRouter()
    made.join("a")
    serves(made, "a", "new")
    refused = only(made.arrive("r1", model="m"), ev.Finish)
    assert (refused.outcome, "served are 'new'" in refused.detail) == (Outcome.INVALID, True)
    assert only(made.arrive("r2", model="new"), ev.Dispatch).node_id == "a"
    assert only(made.arrive("r3"), ev.Dispatch).node_id == "a"


def test_who_waits_for_a_name_that_nobody_has_any_more_is_refused_at_once() -> None:
    made = world()
    waiting = [f"r{i}" for i in range(9)]
    for name in waiting:
        assert not every(made.arrive(name, model="adapter"), ev.Finish)
    made.arrive("other", model="m")
    gone = every(serves(made, "a", "m"), ev.Finish)
    assert [(end.request_id, end.outcome) for end in gone] == [(name, Outcome.INVALID) for name in waiting]
    assert "no node serves model 'adapter'; served are 'm'" in gone[0].detail
    assert made.router.queue_status().held == 1
    made.note("b")
    assert only(look(made), ev.Dispatch).request_id == "other"
    made.end("other")
    made.router.check_quiescent()


def test_who_waits_for_a_name_that_another_node_has_waits_on() -> None:
    made = world()
    serves(made, "b", "m", "adapter")
    made.arrive("r", model="adapter")
    assert serves(made, "a", "m") == []
    made.note("a")
    assert not every(look(made), ev.Dispatch), "it has room, but no longer the adapter"
    made.note("b")
    assert only(look(made), ev.Dispatch).node_id == "b"


def test_who_waits_goes_to_the_first_node_that_begins_to_serve_the_name() -> None:
    made = world()
    made.note("b")
    made.arrive("r", model="adapter")
    assert not every(look(made), ev.Dispatch)
    serves(made, "b", "m", "adapter")
    assert only(look(made), ev.Dispatch).node_id == "b"


@pytest.mark.parametrize("a_is_cheap", [True, False])
def test_a_node_that_ceased_to_serve_the_name_while_it_was_asked_is_not_chosen(a_is_cheap: bool) -> None:
    made = CheckedRouter("min_new_request_latency")
    made.join("a", "b", config=ADAPTED)
    first, second = every(made.arrive("r", model="adapter"), ev.AskForecast)
    made.answer([first], {first.node_id: 1.0 if a_is_cheap else 9.0})
    serves(made, first.node_id, "m")
    made.answer([second], {second.node_id: 5.0})
    assert made.at["r"] == second.node_id


def test_when_all_that_were_asked_cease_to_serve_the_name_it_is_refused() -> None:
    made = CheckedRouter("min_new_request_latency")
    made.join("a", config=ADAPTED)
    ask = only(made.arrive("r", model="adapter"), ev.AskForecast)
    serves(made, "a", "m")
    said = made.tell(ev.ForecastArrived(ask_id=ask.ask_id, node_id="a", forecast=forecast("a")))
    assert only(said, ev.Finish).outcome is Outcome.INVALID
    made.router.check_quiescent()


def test_what_runs_under_a_name_that_goes_runs_to_its_end() -> None:
    made = CheckedRouter()
    made.join("a", config=ADAPTED)
    made.arrive("r", model="adapter")
    assert serves(made, "a", "m") == []
    made.tokens("r", 3)
    assert only(made.end("r"), ev.Finish).outcome is Outcome.STOP
    made.router.check_quiescent()


def test_words_of_a_node_that_is_gone_change_nothing() -> None:
    made = CheckedRouter()
    made.join("a")
    assert serves(made, "b", "x") == []
    assert made.router.models() == ["m"]

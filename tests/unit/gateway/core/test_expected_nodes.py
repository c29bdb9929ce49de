"""Requests for a model that nobody serves yet wait for a node that can be had, and are told how long."""

from __future__ import annotations

import msgspec
import pytest

from gateway.core import events as ev
from simcore.types import Outcome
from tests.helpers.routing import CheckedRouter, engine_config, every, only

READY_IN_S = 42.0


def expect(made: CheckedRouter, *models: str, ready_in_s: float = READY_IN_S) -> list[ev.AnyAction]:
    configs = [msgspec.structs.replace(engine_config(), model=model) for model in models]
    nodes = tuple(ev.ExpectedNode(config=config, ready_in_s=ready_in_s) for config in configs)
    return made.tell(ev.NodesExpected(nodes=nodes))


def wait(made: CheckedRouter, seconds: float) -> list[ev.AnyAction]:
    end_s, actions = made.now_s + seconds, []
    while due := [at_s for at_s in made.timers.values() if at_s <= end_s]:
        made.now_s = max(made.now_s, min(due))
        actions += made.fire_due()
    made.now_s = end_s
    return actions


@pytest.mark.parametrize("policy", ["round_robin", "least_requests", "min_total_latency"])
def test_a_request_waits_for_the_first_node_however_long_and_goes_there(policy: str) -> None:
    made = CheckedRouter(policy)
    model = engine_config().model
    expect(made, model)
    assert made.arrive("r")
    assert made.router.waiting_models() == ("",)
    assert made.router.awaited_in_s("", made.now_s) == pytest.approx(READY_IN_S)
    assert made.router.queue_status(made.now_s).predicted_wait_s == pytest.approx(READY_IN_S)
    # Longer than the queue's own bound, and longer than was said.
    assert not every(wait(made, 100.0), ev.Finish)
    assert made.router.awaited_in_s("", made.now_s) == 0.0
    made.join(f"{model}-0")
    assert made.router.awaited_in_s("", made.now_s) is None
    came = wait(made, 1.0)
    if asked := every(came, ev.AskForecast):
        came += made.tell(ev.ForecastArrived(ask_id=asked[0].ask_id, node_id=asked[0].node_id, error="none"))
    assert only(came, ev.Dispatch).request_id == "r"
    made.end("r")
    made.router.check_quiescent()


def test_who_waits_for_a_node_that_will_not_come_is_told_so() -> None:
    made = CheckedRouter("least_requests")
    expect(made, "m")
    made.arrive("r")
    expect(made)
    assert only(wait(made, 1.0), ev.Finish).outcome is Outcome.NO_NODE
    made.router.check_quiescent()


def test_nobody_waits_for_a_node_on_which_it_does_not_fit() -> None:
    made = CheckedRouter("least_requests")
    expect(made, "m")
    too_long = engine_config().longest_tokens
    assert only(made.arrive("long", prompt_tokens=too_long), ev.Finish).outcome is Outcome.INVALID
    assert only(made.arrive("other", model="another"), ev.Finish).outcome is Outcome.NO_NODE
    assert only(made.arrive("none", prompt_tokens=0), ev.Finish)
    made.router.check_quiescent()


def test_a_model_that_is_served_does_not_wait_for_more_nodes() -> None:
    made = CheckedRouter("least_requests")
    made.join("a")
    expect(made, engine_config().model)
    made.note("a")
    assert only(made.arrive("r"), ev.Dispatch).node_id == "a"
    made.end("r")


def test_the_last_node_drains_and_the_next_request_waits_for_another() -> None:
    made = CheckedRouter("least_requests")
    made.join("a")
    made.note("a")
    expect(made, engine_config().model)
    made.tell(ev.DrainAsked(node_id="a"))
    assert not every(made.arrive("r"), ev.Finish)
    made.tell(ev.DrainAsked(node_id="a", undo=True))
    assert only(wait(made, 0.5), ev.Dispatch).node_id == "a"
    made.end("r")
    made.router.check_quiescent()

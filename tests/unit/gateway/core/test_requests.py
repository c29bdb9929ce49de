"""One request through the router: placed, retried, given up, left, refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.core import events as ev
from gateway.core.decision.policies.registry import PolicyError
from gateway.core.request.explanation import Explanation, ExplanationLog
from gateway.core.router import Router, RouterConfig
from simcore.types import Outcome
from tests.helpers.routing import CheckedRouter, engine_config, every, only, shape


def two_nodes(**config: Any) -> CheckedRouter:
    world = CheckedRouter(**config)
    world.join("a", "b")
    return world


def test_an_answer_is_counted_from_dispatch_to_its_end() -> None:
    world = two_nodes()
    world.arrive("r")
    assert {node.node_id: node.in_flight for node in world.router.nodes()}[world.at["r"]] == 1
    world.now_s = 0.25
    world.tokens("r", 1)
    world.now_s = 1.25
    world.tokens("r", 9)
    assert only(world.end("r"), ev.Finish).outcome is Outcome.STOP
    world.router.check_quiescent()
    told = world.router.explain("r")
    assert told is not None
    assert (told.outcome, told.ttft_s, told.e2e_s, told.output_tokens) == (Outcome.STOP, 0.25, 1.25, 10)
    assert [d.node_id for d in told.decisions] == [world.at["r"]]


def test_a_live_request_can_be_explained_and_an_unknown_one_cannot() -> None:
    world = two_nodes()
    world.arrive("r")
    told = world.router.explain("r")
    assert told is not None
    assert told.outcome is None
    assert len(told.decisions) == 1
    assert world.router.explain("nobody") is None


@pytest.mark.parametrize("outcome", [Outcome.CLIENT_LEFT, Outcome.CANCELLED, Outcome.CLIENT_SLOW, Outcome.STOP])
@pytest.mark.parametrize("tokens", [0, 5])
def test_when_the_client_goes_the_engine_stops_and_the_account_is_released(outcome: Outcome, tokens: int) -> None:
    world = two_nodes()
    world.arrive("r")
    if tokens:
        world.tokens("r", tokens)
    actions = world.tell(ev.ClientGone(request_id="r", outcome=outcome, detail="why"))
    assert only(actions, ev.Abort).node_id == world.at["r"]
    assert only(actions, ev.Finish).outcome is outcome
    world.router.check_quiescent()


def test_a_client_that_goes_while_forecasts_are_out_costs_no_engine_anything() -> None:
    world = two_nodes(policy="min_total_latency")
    asks = every(world.arrive("r"), ev.AskForecast)
    actions = world.tell(ev.ClientGone(request_id="r"))
    assert [type(action) for action in actions] == [ev.Finish]
    assert not world.answer(asks, {"a": 1.0, "b": 2.0})
    world.now_s = 1.0
    assert not world.fire_due()
    world.router.check_quiescent()


def test_a_deadline_stops_the_engine() -> None:
    world = two_nodes()
    world.arrive("r", slo=ev.Slo(deadline_s=2.0))
    world.tokens("r", 3)
    world.now_s = 2.0
    actions = world.fire_due()
    assert only(actions, ev.Abort)
    assert only(actions, ev.Finish).outcome is Outcome.DEADLINE
    world.router.check_quiescent()


def test_a_deadline_holds_over_retries_and_while_forecasts_are_out() -> None:
    world = two_nodes(policy="min_total_latency", forecast_timeout_s=5.0)
    asks = every(world.arrive("r", slo=ev.Slo(deadline_s=2.0)), ev.AskForecast)
    world.answer(asks, {"a": 1.0, "b": 2.0})
    world.now_s = 1.0
    assert only(world.end("r", Outcome.ENGINE_FAILED), ev.AskForecast).node_id == "b"
    world.now_s = 2.0
    assert only(world.fire_due(), ev.Finish).outcome is Outcome.DEADLINE
    world.router.check_quiescent()


def test_the_deadline_of_an_ended_request_is_nobodys_business() -> None:
    world = two_nodes()
    world.arrive("r", slo=ev.Slo(deadline_s=2.0))
    world.end("r")
    world.router.check_quiescent()
    world.now_s = 2.0
    assert not world.fire_due()


def test_an_id_in_use_is_refused_without_touching_its_owner() -> None:
    world = two_nodes()
    world.arrive("r")
    assert world.router.is_live("r")
    with pytest.raises(ValueError, match="live already"):
        world.router.handle(ev.Arrived(request=shape("r")), 0.0)
    world.tokens("r", 1)
    assert only(world.end("r"), ev.Finish).outcome is Outcome.STOP
    assert not world.router.is_live("r")
    world.router.check_quiescent()


@pytest.mark.parametrize(
    ("changes", "outcome", "words"),
    [
        ({"model": "gpt"}, Outcome.INVALID, "no node serves model 'gpt'; served are 'm'"),
        ({"prompt_tokens": 4096}, Outcome.INVALID, "limit of 4096 tokens"),
        ({"prompt_tokens": 0}, Outcome.INVALID, "at least one token"),
        ({"max_output_tokens": 0}, Outcome.INVALID, "max_tokens is 0"),
        ({"max_output_tokens": -5}, Outcome.INVALID, "max_tokens is -5"),
        ({"policy": "round_robbin"}, Outcome.INVALID, "did you mean 'round_robin'"),
        ({"slo": ev.Slo(deadline_s=0.0)}, Outcome.INVALID, "deadline_s is 0.0"),
        ({"slo": ev.Slo(deadline_s=float("inf"))}, Outcome.INVALID, "deadline_s is inf"),
        ({"slo": ev.Slo(deadline_s=float("nan"))}, Outcome.INVALID, "deadline_s is nan"),
    ],
)
def test_a_request_that_cannot_be_served_is_told_what_is_wrong(
    changes: dict[str, object], outcome: Outcome, words: str
) -> None:
    world = two_nodes()
    finish = only(world.arrive("r", **changes), ev.Finish)
    assert finish.outcome is outcome
    assert words in finish.detail
    world.router.check_quiescent()


def test_the_longest_prompt_that_leaves_room_for_one_token_is_taken() -> None:
    world = two_nodes()
    only(world.arrive("r", prompt_tokens=4095), ev.Dispatch)


def test_without_any_node_the_request_is_told_so() -> None:
    world = CheckedRouter()
    finish = only(world.arrive("r"), ev.Finish)
    assert finish.outcome is Outcome.NO_NODE
    assert "no node has joined yet" in finish.detail


def test_with_all_nodes_down_or_draining_the_request_is_told_which() -> None:
    world = two_nodes()
    world.tell(ev.NodeLost(node_id="a", detail="connection refused"))
    world.tell(ev.DrainAsked(node_id="b"))
    finish = only(world.arrive("r"), ev.Finish)
    assert finish.outcome is Outcome.NO_NODE
    assert "a is down (connection refused), b is draining" in finish.detail


def test_models_are_kept_apart() -> None:
    world = CheckedRouter()
    world.join("a", config=engine_config("small"))
    world.join("b", config=engine_config("large"))
    for i in range(5):
        assert only(world.arrive(f"s{i}", model="small"), ev.Dispatch).node_id == "a"
        assert only(world.arrive(f"l{i}", model="large"), ev.Dispatch).node_id == "b"
    finish = only(world.arrive("which"), ev.Finish)
    assert finish.outcome is Outcome.INVALID
    assert "name one of 'large', 'small'" in finish.detail


def test_nodes_where_the_whole_answer_fits_come_first() -> None:
    world = CheckedRouter()
    world.join("short", config=engine_config(max_model_len_tokens=100))
    world.join("long")
    for i in range(5):
        assert only(world.arrive(f"r{i}", prompt_tokens=90, max_output_tokens=50), ev.Dispatch).node_id == "long"
    world.tell(ev.DrainAsked(node_id="long"))
    assert only(world.arrive("cut", prompt_tokens=90, max_output_tokens=50), ev.Dispatch).node_id == "short"
    finish = only(world.arrive("none", prompt_tokens=100), ev.Finish)
    assert finish.outcome is Outcome.NO_NODE


def test_a_draining_node_finishes_what_it_has_and_gets_nothing_new() -> None:
    world = two_nodes()
    world.arrive("r")
    drained = world.at["r"]
    world.tell(ev.DrainAsked(node_id=drained))
    for i in range(5):
        assert only(world.arrive(f"r{i}"), ev.Dispatch).node_id != drained
    assert only(world.end("r"), ev.Finish).outcome is Outcome.STOP
    world.tell(ev.DrainAsked(node_id=drained, undo=True))
    assert only(world.arrive("back"), ev.Dispatch).node_id == drained


def test_a_decision_that_somebody_else_carries_out_is_answered_and_over() -> None:
    world = two_nodes()
    placed = only(world.arrive("r", place_only=True), ev.Placed)
    assert placed.decision.node_id in {"a", "b"}
    world.router.check_quiescent()
    told = world.router.explain("r")
    assert told is not None
    assert told.decisions == (placed.decision,)


def test_another_policy_holds_from_the_next_request_on() -> None:
    world = two_nodes(policy="random")
    assert only(world.arrive("r0"), ev.Dispatch).decision.policy == "random"
    world.tell(ev.PolicySet(policy="min_lunmnix_load"))
    assert world.router.policy_name == "llumnix_freeness"
    assert only(world.arrive("r1"), ev.Dispatch).decision.policy == "llumnix_freeness"
    assert only(world.arrive("r2", policy="round_robin"), ev.Dispatch).decision.policy == "round_robin"


def test_a_config_that_cannot_work_is_refused_at_once() -> None:
    with pytest.raises(PolicyError, match="unknown policy 'best'"):
        Router(RouterConfig(policy="best"))
    with pytest.raises(PolicyError, match="needs forecasts itself"):
        Router(RouterConfig(fallback="min_total_latency"))
    for name, value in (("sample", -1), ("max_attempts", 0), ("forecast_timeout_s", 0.0), ("state_stale_s", -1.0)):
        with pytest.raises(ValueError, match=name):
            msgspec.structs.replace(RouterConfig(), **{name: value})


def test_only_the_last_ends_are_explained() -> None:
    world = two_nodes(explain_keep=2)
    for i in range(3):
        world.arrive(f"r{i}")
        world.end(f"r{i}")
    assert [world.router.explain(f"r{i}") is None for i in range(3)] == [True, False, False]


def test_explanations_are_bounded_in_memory_too() -> None:
    log = ExplanationLog(keep=1000, keep_bytes=2000)
    for i in range(200):
        log.add(Explanation(request_id=f"r{i}", decisions=(), prompt_tokens=i, detail="x" * 100))
    kept = [i for i in range(200) if log.get(f"r{i}") is not None]
    assert 5 < len(kept) < 20
    assert kept == list(range(kept[0], 200)), "the oldest go first"
    log.add(Explanation(request_id="huge", decisions=(), prompt_tokens=1, detail="x" * 3000))
    assert log.get("huge") is None
    log.add(Explanation(request_id="again", decisions=(), prompt_tokens=1))
    log.add(Explanation(request_id="again", decisions=(), prompt_tokens=2))
    again = log.get("again")
    assert again is not None
    assert again.prompt_tokens == 2


def test_a_quiescence_check_names_who_is_left() -> None:
    world = two_nodes()
    world.arrive("r-left-over")
    with pytest.raises(AssertionError, match="r-left-over"):
        world.router.check_quiescent()

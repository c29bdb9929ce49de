"""One request through the router: placed, retried, given up, left, refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.core import events as ev
from gateway.core.explanation import Explanation, ExplanationLog
from gateway.core.policies.registry import PolicyError
from gateway.core.router import Router, RouterConfig
from simcore.types import LengthBelief, Outcome
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


@pytest.mark.parametrize("outcome", [Outcome.ENGINE_FAILED, Outcome.NODE_LOST, Outcome.OVERLOADED])
def test_a_failure_before_the_first_token_is_tried_on_another_node(outcome: Outcome) -> None:
    world = two_nodes()
    world.arrive("r")
    first = world.at["r"]
    again = only(world.end("r", outcome), ev.Dispatch)
    assert again.node_id != first
    assert again.decision.attempt == 2
    assert not world.finished
    world.end("r")
    assert world.finished["r"].outcome is Outcome.STOP
    world.router.check_quiescent()


def test_the_node_that_failed_a_request_does_not_get_it_again() -> None:
    world = CheckedRouter(max_attempts=3)
    world.join("a")
    world.arrive("r")
    finish = only(world.end("r", Outcome.ENGINE_FAILED, "out of memory"), ev.Finish)
    assert finish.outcome is Outcome.ENGINE_FAILED
    assert finish.detail.startswith("out of memory; and ")
    world.router.check_quiescent()


def test_a_node_that_has_come_back_is_another_one() -> None:
    world = two_nodes()
    world.arrive("r")
    first = world.at["r"]
    again = only(world.tell(ev.NodeLost(node_id=first)), ev.Dispatch)
    world.join(first)
    assert only(world.tell(ev.NodeLost(node_id=again.node_id)), ev.Dispatch).node_id == first


def test_attempts_are_limited() -> None:
    world = CheckedRouter(max_attempts=3)
    world.join("a", "b", "c", "d")
    world.arrive("r")
    only(world.end("r", Outcome.ENGINE_FAILED), ev.Dispatch)
    only(world.end("r", Outcome.ENGINE_FAILED), ev.Dispatch)
    finish = only(world.end("r", Outcome.ENGINE_FAILED, "out of memory"), ev.Finish)
    assert (finish.outcome, finish.detail) == (Outcome.ENGINE_FAILED, "out of memory (3 of 3 attempts made)")
    world.router.check_quiescent()


def test_a_fleet_that_fails_everything_sees_the_share_of_retries_and_no_more() -> None:
    world = CheckedRouter(retry_share=0.5, retry_burst=2, max_attempts=3)
    world.join("a", "b", "c")
    attempts = 0
    for i in range(100):
        world.arrive(f"r{i}")
        while f"r{i}" not in world.finished:
            world.end(f"r{i}", Outcome.ENGINE_FAILED)
        attempts += world.attempt[f"r{i}"] - 1
    assert 50 <= attempts <= 52
    world.router.check_quiescent()


def test_a_refused_request_is_not_tried_elsewhere() -> None:
    world = two_nodes()
    world.arrive("r")
    assert only(world.end("r", Outcome.INVALID, "no such option"), ev.Finish).outcome is Outcome.INVALID


@pytest.mark.parametrize(
    ("resume", "continuation", "goes_on"),
    [
        ("exact", "exact", True),
        ("exact", "approximate", False),
        ("exact", "impossible", False),
        ("best_effort", "exact", True),
        ("best_effort", "approximate", True),
        ("best_effort", "impossible", False),
        ("off", "exact", False),
    ],
)
def test_a_begun_answer_goes_on_elsewhere_where_the_request_allows_it(
    resume: str, continuation: str, goes_on: bool
) -> None:
    world = two_nodes()
    world.arrive("r", resume=resume, continuation=continuation)
    first = world.at["r"]
    world.tokens("r", 7)
    actions = world.end("r", Outcome.ENGINE_FAILED, "device lost")
    if goes_on:
        again = only(actions, ev.Dispatch)
        assert again.node_id != first
        assert again.attempt == 2
        assert again.resumed is not None
        assert (again.resumed.prompt_tokens, again.resumed.max_output_tokens) == (32 + 7, 200 - 7)
        assert again.resumed.belief == LengthBelief((100 - 7,))
        world.tokens("r", 3)
        only(world.end("r"), ev.Finish)
    else:
        finish = only(actions, ev.Finish)
        assert finish.outcome is Outcome.ENGINE_FAILED
        assert finish.detail.startswith("device lost (after 7 tokens; not resumed: ")
    told = world.router.explain("r")
    assert told is not None
    assert (told.prompt_tokens, told.output_tokens) == (32, 10 if goes_on else 7)
    world.router.check_quiescent()


def test_an_answer_may_go_on_more_than_once() -> None:
    world = CheckedRouter()
    world.join("a", "b", "c")
    world.arrive("r")
    world.tokens("r", 7)
    world.end("r", Outcome.ENGINE_FAILED)
    world.tokens("r", 3)
    third = only(world.end("r", Outcome.NODE_LOST), ev.Dispatch)
    assert third.resumed is not None
    assert (third.resumed.prompt_tokens, third.resumed.max_output_tokens) == (42, 190)
    assert third.resumed.belief == LengthBelief((90,))
    only(world.end("r"), ev.Finish)
    world.router.check_quiescent()


def test_an_answer_of_which_only_the_end_is_missing_is_whole() -> None:
    world = two_nodes()
    world.arrive("r", max_output_tokens=7)
    world.tokens("r", 7)
    assert only(world.end("r", Outcome.NODE_LOST), ev.Finish).outcome is Outcome.LENGTH
    world.router.check_quiescent()


def test_a_resumed_answer_that_the_next_node_refuses_ends_with_the_failure_of_the_first() -> None:
    world = two_nodes()
    world.arrive("r")
    world.tokens("r", 7)
    world.end("r", Outcome.NODE_LOST, "gone")
    finish = only(world.end("r", Outcome.INVALID, "too long"), ev.Finish)
    assert finish.outcome is Outcome.NODE_LOST
    assert "gone" in finish.detail
    assert "too long" in finish.detail


@pytest.mark.parametrize("tokens", [0, 7])
@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.CLIENT_LEFT])
def test_a_request_that_its_engine_gives_up_unasked_is_not_called_cancelled(tokens: int, outcome: Outcome) -> None:
    world = CheckedRouter(max_attempts=1)
    world.join("a")
    world.arrive("r")
    world.tokens("r", tokens)
    assert only(world.end("r", outcome), ev.Finish).outcome is Outcome.ENGINE_FAILED


def test_a_lost_node_fails_all_it_had_each_in_its_own_way() -> None:
    world = two_nodes()
    for i in range(4):
        world.arrive(f"r{i}")
    lost = world.at["r0"]
    here = [r for r, node in world.at.items() if node == lost]
    world.tokens(here[0])
    actions = world.tell(ev.NodeLost(node_id=lost, detail="connection reset"))
    dispatches = every(actions, ev.Dispatch)
    assert [d.request_id for d in dispatches] == here
    assert [d.resumed is not None for d in dispatches] == [True, False]
    assert {d.node_id for d in dispatches} == {"a", "b"} - {lost}


def test_a_request_of_the_last_node_ends_when_that_is_lost() -> None:
    world = CheckedRouter()
    world.join("a")
    world.arrive("r")
    finish = only(world.tell(ev.NodeLost(node_id="a", detail="gone")), ev.Finish)
    assert finish.outcome is Outcome.NODE_LOST
    assert "a is down (gone)" in finish.detail
    world.router.check_quiescent()


def test_a_removed_node_gives_up_its_requests_and_is_forgotten() -> None:
    world = two_nodes()
    world.arrive("r")
    first = world.at["r"]
    again = only(world.tell(ev.NodeRemoved(node_id=first)), ev.Dispatch)
    assert again.node_id != first
    assert [node.node_id for node in world.router.nodes()] == [again.node_id]


def test_late_words_of_an_earlier_attempt_change_nothing() -> None:
    world = two_nodes()
    world.arrive("r")
    first = world.at["r"]
    world.end("r", Outcome.ENGINE_FAILED)
    second = world.at["r"]
    assert first != second
    assert not world.tell(ev.TokensSeen(request_id="r", node_id=first, tokens=3))
    assert not world.tell(ev.StreamEnded(request_id="r", node_id=first, outcome=Outcome.STOP))
    world.end("r")
    assert not world.tell(ev.StreamEnded(request_id="r", node_id=second, outcome=Outcome.STOP))
    assert not world.tell(ev.ClientGone(request_id="r"))
    world.router.check_quiescent()


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

"""A node fails what it has: another one begins, or goes on, within bounds; or the client is told in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core import events as ev
from simcore.types import LengthBelief, Outcome
from tests.helpers.routing import CheckedRouter, every, only


def two_nodes(**config: Any) -> CheckedRouter:
    world = CheckedRouter(**config)
    world.join("a", "b")
    return world


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

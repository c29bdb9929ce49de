"""Calls that are handed on as they are: placed as all others, among the nodes that can, once only."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.core import events as ev
from gateway.core.recording import entry_line, header_line, replay
from gateway.core.router_config import RouterConfig
from simcore.types import LengthBelief, Outcome
from tests.helpers.routing import CheckedRouter, engine_config, every, only

FORWARDS = engine_config(forwards=True)


def two_nodes(**config: Any) -> CheckedRouter:
    world = CheckedRouter(**config)
    world.join("a", "b", config=FORWARDS)
    return world


def call(world: CheckedRouter, request_id: str = "r", **changes: Any) -> list[ev.AnyAction]:
    return world.arrive(request_id, lane="pass_through", continuation="impossible", **changes)


def began(world: CheckedRouter, request_id: str = "r") -> None:
    world.tell(ev.AnswerBegan(request_id=request_id, node_id=world.at[request_id], attempt=world.attempt[request_id]))


def test_only_nodes_that_hand_calls_on_get_them() -> None:
    world = CheckedRouter()
    world.join("plain", "other")
    world.join("able", config=FORWARDS)
    for number in range(6):
        assert only(call(world, f"r{number}"), ev.Dispatch).node_id == "able"
    assert {only(world.arrive(f"t{n}"), ev.Dispatch).node_id for n in range(4)} == {"plain", "other"}


def test_logprobs_are_asked_of_nodes_that_tell_them() -> None:
    world = CheckedRouter()
    world.join("plain")
    assert only(world.arrive("r", logprobs=True), ev.Finish).outcome is Outcome.NO_NODE
    world.join("able", config=engine_config(tells_logprobs=True))
    assert {only(world.arrive(f"r{n}", logprobs=True), ev.Dispatch).node_id for n in range(4)} == {"able"}


def test_without_such_a_node_there_is_none_for_it() -> None:
    world = CheckedRouter()
    world.join("plain")
    finish = only(call(world), ev.Finish)
    assert finish.outcome is Outcome.NO_NODE
    assert "hands calls on" in finish.detail


def test_an_engine_that_gives_no_text_gets_calls_alone() -> None:
    world = CheckedRouter()
    world.join("pools", config=engine_config(forwards=True, pools=True))
    assert only(call(world, "embedding"), ev.Dispatch).node_id == "pools"
    finish = only(world.arrive("alone"), ev.Finish)
    assert (finish.outcome, "gives no text" in finish.detail) == (Outcome.INVALID, True)
    world.join("writes", config=FORWARDS)
    assert {only(world.arrive(f"t{n}"), ev.Dispatch).node_id for n in range(3)} == {"writes"}


def test_a_call_for_no_model_may_go_to_any_node() -> None:
    world = CheckedRouter()
    world.join("a", config=engine_config("m", forwards=True))
    world.join("b", config=engine_config("n", forwards=True))
    assert {only(call(world, f"r{n}", model=""), ev.Dispatch).node_id for n in range(2)} == {"a", "b"}
    assert only(world.arrive("t", model=""), ev.Finish).outcome is Outcome.INVALID


def test_a_call_for_one_node_goes_there_or_nowhere() -> None:
    world = two_nodes()
    for number in range(4):
        assert only(call(world, f"r{number}", node="b"), ev.Dispatch).node_id == "b"
    world.tell(ev.NodeLost(node_id="b"))
    finish = only(call(world, "late", node="b"), ev.Finish)
    assert (finish.outcome, "node b" in finish.detail) == (Outcome.NO_NODE, True)


def test_one_that_seems_too_long_is_for_the_engine_to_refuse() -> None:
    world = two_nodes()
    assert only(call(world, "r", prompt_tokens=10**7), ev.Dispatch)
    assert only(world.arrive("t", prompt_tokens=10**7), ev.Finish).outcome is Outcome.INVALID


@pytest.mark.parametrize("outcome", [Outcome.ENGINE_FAILED, Outcome.NODE_LOST, Outcome.OVERLOADED])
def test_before_the_first_byte_another_node_is_tried(outcome: Outcome) -> None:
    world = two_nodes()
    first = only(call(world), ev.Dispatch).node_id
    again = only(world.end("r", outcome), ev.Dispatch)
    assert (again.node_id != first, again.attempt, again.resumed) == (True, 2, None)


@pytest.mark.parametrize("tokens", [0, 3, 200])
def test_after_the_first_byte_none_is(tokens: int) -> None:
    world = two_nodes()
    call(world)
    began(world)
    if tokens:
        world.tell(ev.TokensSeen(request_id="r", node_id=world.at["r"], tokens=tokens, whole=True))
    finish = only(world.tell(ev.NodeLost(node_id=world.at["r"])), ev.Finish)
    # Also with all tokens that were asked for: what is not complete must not pass for it.
    assert finish.outcome is Outcome.NODE_LOST
    assert "not resumed: an engine's own answer" in finish.detail
    world.router.check_quiescent()


def begun_text(resume: str, tokens: int) -> CheckedRouter:
    world = two_nodes()
    world.arrive("r", lane="pass_through", continuation="approximate", resume=resume, max_output_tokens=50)
    began(world)
    if tokens:
        world.tell(ev.TokensSeen(request_id="r", node_id=world.at["r"], tokens=tokens))
    return world


@pytest.mark.parametrize("tokens", [0, 3, 49])
def test_a_begun_text_goes_on_elsewhere_for_who_wants_that(tokens: int) -> None:
    world = begun_text("best_effort", tokens)
    first = world.at["r"]
    again = only(world.tell(ev.NodeLost(node_id=first)), ev.Dispatch)
    assert (again.node_id != first, again.attempt) == (True, 2)
    if tokens:
        assert again.resumed is not None
        assert again.resumed.max_output_tokens == 50 - tokens
    assert only(world.end("r"), ev.Finish).outcome is Outcome.STOP
    world.router.check_quiescent()


@pytest.mark.parametrize(
    ("resume", "tokens", "tied", "why"),
    [
        ("exact", 3, False, "ask for resume = best_effort"),
        ("off", 3, False, "resume = off"),
        ("best_effort", 50, False, "only the word that it ended is missing"),
        ("best_effort", 3, True, "an engine's own answer cannot go on elsewhere"),
    ],
)
def test_a_begun_text_stays_where_it_is_otherwise(resume: str, tokens: int, tied: bool, why: str) -> None:
    world = begun_text(resume, tokens)
    if tied:
        world.tell(ev.AnswerTied(request_id="r", node_id=world.at["r"]))
    finish = only(world.end("r", Outcome.ENGINE_FAILED), ev.Finish)
    assert finish.outcome is Outcome.ENGINE_FAILED
    assert why in finish.detail
    world.router.check_quiescent()


def test_an_emptied_node_keeps_what_has_begun() -> None:
    world = two_nodes()
    for request_id in ("begun", "waiting"):
        call(world, request_id, node="a")
    for number in range(2):
        call(world, f"r{number}")
    world.tell(ev.DrainAsked(node_id="b"))
    began(world, "begun")
    at_a = [request_id for request_id, node_id in world.at.items() if node_id == "a" and request_id.startswith("r")]
    world.tell(ev.DrainAsked(node_id="b", undo=True))
    actions = world.tell(ev.DrainAsked(node_id="a"))
    # The two that must be on node a have nowhere to go; the others have not begun and move.
    assert [abort.request_id for abort in every(actions, ev.Abort)] == at_a
    assert [dispatch.node_id for dispatch in every(actions, ev.Dispatch)] == ["b"] * len(at_a)


def test_an_answer_without_countable_tokens_is_a_sign_of_health() -> None:
    world = two_nodes()
    world.tell(ev.NodeLost(node_id="a"))
    world.join("a", config=FORWARDS)
    call(world, "t", node="b")
    world.tell(ev.TokensSeen(request_id="t", node_id="b", tokens=1))
    for number in range(6):
        call(world, f"r{number}", node="a")
        began(world, f"r{number}")
        assert only(world.end(f"r{number}"), ev.Finish).outcome is Outcome.STOP
    assert not [node.alarm for node in world.router.nodes() if node.alarm]


def test_an_answer_that_came_whole_says_nothing_of_its_first_token() -> None:
    world = two_nodes()
    call(world)
    began(world)
    world.now_s += 5.0
    world.tell(ev.TokensSeen(request_id="r", node_id=world.at["r"], tokens=40, whole=True))
    world.end("r")
    explained = world.router.explain("r")
    assert explained is not None
    assert (explained.ttft_s, explained.output_tokens, explained.lane) == (None, 40, "pass_through")


def test_recordings_hold_the_lane_and_older_ones_are_read() -> None:
    config = RouterConfig(policy="least_requests")
    world = CheckedRouter()
    lines = [header_line(config)]
    shape = ev.RequestShape(
        request_id="r",
        prompt_tokens=3,
        max_output_tokens=4,
        belief=LengthBelief((2,)),
        lane="pass_through",
        prompt_counted_by="length",
        answers=2,
    )
    events: list[ev.AnyEvent] = [
        ev.NodeJoined(node_id="a", config=FORWARDS),
        ev.Arrived(request=shape),
        ev.AnswerBegan(request_id="r", node_id="a"),
        ev.TokensSeen(request_id="r", node_id="a", tokens=2, whole=True),
        ev.StreamEnded(request_id="r", node_id="a", outcome=Outcome.STOP),
    ]
    lines += [entry_line(0.0, event, world.router.handle(event, 0.0)) for event in events]
    assert b'"pass_through"' in lines[2]
    assert replay(lines) == []
    old = msgspec.json.decode(msgspec.json.encode(ev.Arrived(request=shape)))
    for name in ("lane", "prompt_counted_by", "answers", "node"):
        del old["request"][name]
    assert msgspec.convert(old, ev.Arrived).request.lane == "tokens"

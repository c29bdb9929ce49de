"""A running request goes on at another node: stages, the cut, and what may go wrong on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.core import events as ev
from gateway.core.moves.config import MovesConfig, TransferConfig
from gateway.core.moves.rule import MovesError
from gateway.core.nodes.node import Node
from gateway.core.request.explanation import MoveTold
from simcore.types import Outcome
from tests.helpers.routing import CheckedRouter, engine_config, every, forecast, only


def streaming(prompt_tokens: int = 100, output_tokens: int = 10, **changes: object) -> CheckedRouter:
    """`r` streams from `a`, and `b` is idle."""
    world = CheckedRouter()
    world.join("a")
    world.arrive("r", prompt_tokens=prompt_tokens, **changes)
    if output_tokens:
        world.tokens("r", output_tokens)
    world.join("b")
    return world


def move(world: CheckedRouter, node_id: str = "b") -> list[ev.AnyAction]:
    assert world.router.why_not_moved("r", node_id) == ""
    return world.tell(ev.MoveAsked(request_id="r", node_id=node_id))


def in_flight(world: CheckedRouter) -> dict[str, int]:
    return {node.node_id: node.in_flight for node in world.router.nodes()}


def test_stages_then_the_cut_at_the_next_token() -> None:
    world = streaming()
    stage = only(move(world), ev.Dispatch)
    assert (stage.stage, stage.node_id, stage.attempt) == (True, "b", 2)
    assert stage.resumed is not None
    assert stage.resumed.prompt_tokens == 110
    assert in_flight(world) == {"a": 1, "b": 1}
    world.tokens("r", 50)
    # 112 of 160 are there: the rest is more than two blocks.
    second = only(world.stage_done("r"), ev.Dispatch)
    assert second.resumed is not None
    assert second.resumed.prompt_tokens == 160
    world.tokens("r", 5)
    actions = world.stage_done("r")
    assert only(actions, ev.WatchToken) == ev.WatchToken(request_id="r", node_id="a", attempt=1)
    assert not every(actions, ev.Dispatch)
    actions = world.tokens("r", 1)
    assert only(actions, ev.Abort) == ev.Abort(request_id="r", node_id="a", attempt=1)
    rest = only(actions, ev.Dispatch)
    assert (rest.stage, rest.node_id, rest.attempt) == (False, "b", 4)
    assert rest.resumed is not None
    assert rest.resumed.prompt_tokens == 100 + 66
    assert rest.resumed.max_output_tokens == 200 - 66
    assert rest.decision.reason.startswith("moved from a, as an operator wants it there")
    assert in_flight(world) == {"a": 0, "b": 1}
    # What the source still says is not part of the answer.
    world.tell(ev.TokensSeen(request_id="r", node_id="a", tokens=3, attempt=1))
    world.tokens("r", 34)
    world.end("r")
    assert world.finished["r"].outcome is Outcome.STOP
    told = world.router.explain("r")
    assert told is not None
    assert told.output_tokens == 100
    assert [decision.node_id for decision in told.decisions] == ["a", "b"]
    assert world.router.moves_status().done_total == 1
    world.router.check_quiescent()


def test_one_that_stands_still_is_cut_after_a_while() -> None:
    world = streaming()
    move(world)
    world.stage_done("r")
    world.now_s += 1.0
    assert only(world.fire_due(), ev.Dispatch).node_id == "b"


def test_an_answer_that_ends_at_the_cut_has_ended() -> None:
    world = streaming()
    move(world)
    world.stage_done("r")
    assert world.tell(ev.TokensSeen(request_id="r", node_id="a", tokens=1, attempt=1, last=True)) == []
    world.end("r")
    assert world.finished["r"].outcome is Outcome.STOP
    world.router.check_quiescent()


def test_an_answer_that_is_whole_at_the_cut_stays() -> None:
    world = streaming()
    move(world)
    world.stage_done("r")
    assert world.tokens("r", 190) == []
    world.now_s += 1.0
    assert not every(world.fire_due(), ev.Dispatch)
    world.end("r")
    world.router.check_quiescent()


def test_one_without_a_token_goes_at_once() -> None:
    world = streaming(output_tokens=0)
    actions = move(world)
    assert only(actions, ev.Abort).node_id == "a"
    sent = only(actions, ev.Dispatch)
    assert (sent.stage, sent.resumed) == (False, None)
    assert in_flight(world) == {"a": 0, "b": 1}


def test_without_a_prefix_cache_there_is_nothing_to_make_ready() -> None:
    world = streaming()
    world.join("b", config=engine_config(enable_prefix_caching=False))
    assert not only(move(world), ev.Dispatch).stage


@pytest.mark.parametrize("outcome", [Outcome.ENGINE_FAILED, Outcome.OVERLOADED, Outcome.NODE_LOST])
def test_a_stage_that_fails_leaves_the_request_where_it_is(outcome: Outcome) -> None:
    world = streaming()
    move(world)
    assert not world.stage_done("r", outcome)
    assert in_flight(world) == {"a": 1, "b": 0}
    assert not world.router.moving
    world.end("r")
    assert world.finished["r"].outcome is Outcome.STOP
    world.router.check_quiescent()


@pytest.mark.parametrize("stages_done", [0, 1])
def test_a_destination_that_is_lost_leaves_the_request_where_it_is(stages_done: int) -> None:
    world = streaming()
    move(world)
    for _ in range(stages_done):
        world.stage_done("r")
    assert not every(world.tell(ev.NodeLost(node_id="b")), ev.Dispatch)
    world.tokens("r")
    world.now_s += 1.0
    assert not every(world.fire_due(), ev.Dispatch)
    assert not world.router.moving
    world.end("r")
    world.router.check_quiescent()


def test_a_source_that_is_lost_is_the_resume_that_there_is() -> None:
    world = streaming()
    move(world)
    stage = world.stages["r"]
    actions = world.tell(ev.NodeLost(node_id="a"))
    assert only(actions, ev.Abort).attempt == stage.attempt
    rest = only(actions, ev.Dispatch)
    assert (rest.stage, rest.node_id) == (False, "b")
    assert not world.router.moving
    world.end("r")
    world.router.check_quiescent()


@pytest.mark.parametrize("ends", ["answer", "client", "deadline"])
@pytest.mark.parametrize("stages_done", [0, 1])
def test_a_request_that_ends_on_the_way_leaves_nothing_behind(ends: str, stages_done: int) -> None:
    world = streaming(slo=ev.Slo(deadline_s=5.0))
    move(world)
    stage = world.stages["r"]
    for _ in range(stages_done):
        world.stage_done("r")
    if ends == "answer":
        actions = world.end("r")
    elif ends == "client":
        actions = world.tell(ev.ClientGone(request_id="r"))
    else:
        world.timers = {timer: at_s for timer, at_s in world.timers.items() if at_s == 5.0}
        world.now_s = 5.0
        actions = world.fire_due()
    aborted = [abort.attempt for abort in every(actions, ev.Abort)]
    assert (stage.attempt in aborted) is not bool(stages_done)
    assert in_flight(world) == {"a": 0, "b": 0}
    world.now_s += 10.0
    assert not every(world.fire_due(), ev.Dispatch)
    world.router.check_quiescent()


def test_who_must_not_move_hears_why() -> None:
    world = streaming()
    world.join("other", config=engine_config("another"))
    world.join("small", config=engine_config(max_model_len_tokens=120))
    world.join("gone")
    world.tell(ev.NodeLost(node_id="gone"))
    why = world.router.why_not_moved
    assert why("nobody", "b") == "no request 'nobody' is under way here"
    assert why("r", "nowhere") == "there is no node 'nowhere'; known are a, b, other, small, gone"
    assert why("r", "a") == "it is at a already"
    assert why("r", "other") == "other serves another, not m"
    assert why("r", "small") == "small would cut it short: it may have 300 tokens, and small holds 120"
    assert why("r", "gone") == "gone takes nothing new: it is down"
    move(world)
    assert why("r", "b") == "it is on its way to b already"
    assert world.tell(ev.MoveAsked(request_id="r", node_id="b")) == []


def test_what_another_node_would_end_differently_does_not_move() -> None:
    world = streaming(continuation="approximate")
    assert "best_effort" in world.router.why_not_moved("r", "b")
    assert world.tell(ev.MoveAsked(request_id="r", node_id="b")) == []


def test_a_node_that_leaves_is_emptied_and_one_that_may_stay_is_not() -> None:
    for asked, moves in ((ev.DrainAsked(node_id="a"), True), (ev.DrainAsked(node_id="a", stay=True), False)):
        world = streaming()
        assert bool(every(world.tell(asked), ev.Dispatch)) is moves
    world = streaming()
    assert every(world.tell(ev.RetirementTold(node_id="a", retiring=True)), ev.Dispatch)


def test_what_finds_no_room_is_tried_again() -> None:
    world = streaming()
    world.note("b", running=48, free_blocks=0)
    assert not every(world.tell(ev.DrainAsked(node_id="a")), ev.Dispatch)
    world.note("b")
    world.now_s += 0.5
    assert only(world.fire_due(), ev.Dispatch).stage


def test_stages_of_a_move_that_can_wait_are_spread_over_time() -> None:
    config = MovesConfig(share=0.1)
    world = CheckedRouter(moves=config)
    world.join("a")
    world.arrive("r", prompt_tokens=2000)
    world.tokens("r", 10)
    world.join("b")
    world.tell(ev.MoveAsked(request_id="r", node_id="b", gently=True))
    began_s, stages = world.now_s, 0
    computed: list[int] = []
    while "r" in world.stages:
        stage = world.stages["r"].resumed
        assert stage is not None
        computed.append(stage.prompt_tokens)
        stages += 1
        took_s = (computed[-1] - (computed[-2] if len(computed) > 1 else 0)) * 1e-4
        world.now_s += took_s
        world.stage_done("r")
        if world.timers:
            world.now_s = max(world.now_s, min(world.timers.values()))
            world.fire_due()
    # A step of one sequence takes 20 ms and a token of a prompt 0.1 ms: 192 tokens a stage.
    assert computed[:3] == [192, 384, 576]
    assert world.now_s - began_s == pytest.approx(2010 * 1e-4 / 0.1, rel=0.15)
    assert world.at["r"] == "b"


def test_a_slice_is_a_block_where_the_pace_is_not_known() -> None:
    node = Node("b", engine_config(), "", 0.0)
    from gateway.core.request.migration import _slice_tokens

    assert _slice_tokens(node) == 16


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"share": 0.0}, "share"),
        ({"every_s": 0.0}, "every_s"),
        ({"at_once": 0}, "at_once"),
        ({"rest_s": float("nan")}, "rest_s"),
    ],
)
def test_numbers_that_make_no_sense(changes: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MovesConfig(**changes)  # type: ignore[arg-type]


def test_an_unknown_rule() -> None:
    with pytest.raises(MovesError, match="unknown rule of moving 'lumnix'"):
        CheckedRouter(moves=MovesConfig(rule="lumnix"))


def told_moves(world: CheckedRouter) -> list[MoveTold]:
    told = world.router.explain("r")
    assert told is not None
    return list(told.moves)


def test_people_are_told_of_a_move_from_its_beginning_to_its_end() -> None:
    world = streaming()
    world.now_s = 2.0
    move(world)
    (told,) = told_moves(world)
    assert (told.source, told.destination, told.cause, told.outcome) == ("a", "b", "operator", "under_way")
    assert (told.after_s, told.took_s, told.stages, told.stage_tokens) == (2.0, None, 1, 110)
    status = world.router.moves_status()
    assert (status.out, status.into) == ({"a": 1}, {"b": 1})
    world.now_s = 2.5
    world.stage_done("r")
    world.tokens("r")
    (told,) = told_moves(world)
    assert (told.outcome, told.took_s, told.tokens, told.gap_s) == ("moved", 0.5, 111, None)
    assert world.router.take_moves() == []
    world.now_s = 2.75
    world.tokens("r")
    world.tokens("r")
    (told,) = told_moves(world)
    assert told.gap_s == 0.25
    world.tell(ev.StreamEnded(request_id="r", node_id="b", outcome=Outcome.STOP, attempt=3, found_tokens=96))
    (told,) = told_moves(world)
    assert told.found_tokens == 96
    assert world.router.take_moves() == [told]
    assert world.router.take_moves() == []
    assert world.router.moves_status().out == {}


@pytest.mark.parametrize(
    ("happens", "outcome", "detail"),
    [
        (lambda world: world.stage_done("r", Outcome.ENGINE_FAILED), "node_failed", "b: engine_failed"),
        (lambda world: world.tell(ev.NodeLost(node_id="b")), "node_failed", "b: node b was lost"),
        (lambda world: world.tell(ev.NodeLost(node_id="a")), "ended", "its node failed it first"),
        (lambda world: world.tell(ev.ClientGone(request_id="r")), "ended", "it ended first"),
    ],
)
def test_people_are_told_why_a_move_was_given_up(
    happens: Callable[[CheckedRouter], object], outcome: str, detail: str
) -> None:
    world = streaming()
    move(world)
    happens(world)
    (told,) = told_moves(world)
    assert (told.outcome, told.detail, told.took_s) == (outcome, detail, 0.0)
    assert world.router.take_moves() == [told]


def test_one_that_does_not_catch_up_is_given_up() -> None:
    world = streaming()
    move(world)
    world.tokens("r", 60)
    give_up_s = world.router.config.moves.give_up_s
    world.now_s = give_up_s + 1.0
    world.stage_done("r")
    (told,) = told_moves(world)
    detail = f"{give_up_s:g} s were not enough: its stages do not catch up with the answer"
    assert (told.outcome, told.detail) == ("too_slow", detail)


def test_an_operator_hears_that_there_is_no_room() -> None:
    world = streaming()
    world.note("b", running=48, free_blocks=0)
    move(world)
    told = world.router.last_move("r")
    assert told is not None
    assert (told.outcome, told.detail) == ("no_room", "no other node can start it now at nobody's expense")
    assert not world.router.moving


def test_a_client_that_leaves_before_the_next_token_ends_the_account_of_the_move() -> None:
    world = streaming()
    move(world)
    world.stage_done("r")
    world.tokens("r")
    world.tell(ev.ClientGone(request_id="r"))
    (told,) = told_moves(world)
    assert (told.outcome, told.gap_s) == ("moved", None)
    assert world.router.take_moves() == [told]


def test_one_that_moves_on_before_its_next_token_has_both_waits_told() -> None:
    world = streaming()
    move(world)
    world.stage_done("r")
    world.tokens("r")
    move(world, "a")
    world.now_s = 0.25
    world.tokens("r")
    assert [told.gap_s for told in told_moves(world)] == [0.25, None]
    assert [told.gap_s for told in world.router.take_moves()] == [0.25]


def test_moves_to_one_node_share_what_it_may_spend_on_them() -> None:
    def stage_tokens(moving: int) -> int:
        world = CheckedRouter(moves=MovesConfig(share=0.1))
        world.join("a")
        for i in range(moving):
            world.arrive(f"r{i}", prompt_tokens=3000)
            world.tokens(f"r{i}", 10)
        world.join("b")
        for i in range(moving):
            world.tell(ev.MoveAsked(request_id=f"r{i}", node_id="b", gently=True))
        while world.now_s < 2.0:
            for name in list(world.stages):
                world.stage_done(name)
            world.now_s = min(world.timers.values())
            world.fire_due()
        return world.router.moves_status().stage_tokens_total

    assert stage_tokens(2) == pytest.approx(stage_tokens(1), abs=192)


def test_a_stage_that_took_longer_than_its_tokens_should_is_paid_for_as_it_was() -> None:
    def until_the_next_stage_s(took_s: float) -> float:
        world = CheckedRouter(moves=MovesConfig(share=0.1))
        world.join("a")
        world.arrive("r", prompt_tokens=2000)
        world.tokens("r", 10)
        world.join("b")
        world.tell(ev.MoveAsked(request_id="r", node_id="b", gently=True))
        world.now_s = took_s
        (timer,) = every(world.stage_done("r"), ev.StartTimer)
        return timer.at_s

    # 192 tokens of 0.1 ms, within a step and a half of 20 ms or not.
    assert until_the_next_stage_s(0.04) == pytest.approx(0.192, rel=0.01)
    assert until_the_next_stage_s(0.06) == pytest.approx(0.3, rel=0.01)


def test_when_stages_do_not_get_shorter_what_takes_a_step_is_left_for_after_the_cut() -> None:
    world = streaming(prompt_tokens=1000, max_output_tokens=2000)
    move(world)
    world.tokens("r", 100)
    # 1,008 are there, the other 102 are fewer than the stage before computed.
    assert only(world.stage_done("r"), ev.Dispatch).stage
    world.tokens("r", 110)
    # Now 1,104: 116 are left, and a step takes 192.
    assert only(world.stage_done("r"), ev.WatchToken)
    assert not only(world.tokens("r", 1), ev.Dispatch).stage
    world = streaming(prompt_tokens=1000, max_output_tokens=2000)
    move(world)
    world.tokens("r", 300)
    assert only(world.stage_done("r"), ev.Dispatch).stage
    world.tokens("r", 310)
    # More than a step takes: one more stage.
    assert only(world.stage_done("r"), ev.Dispatch).stage


def test_a_move_is_told_once_though_its_destination_fails_before_a_token() -> None:
    world = streaming(output_tokens=0)
    world.join("c")
    move(world)
    world.end("r", Outcome.ENGINE_FAILED)
    world.tokens("r")
    world.end("r")
    told = world.router.take_moves()
    assert [(one.outcome, one.destination, one.gap_s) for one in told] == [("moved", "b", None)]


@pytest.mark.parametrize(
    ("own", "there", "moves"),
    [(0, 0, True), (0, -1, False), (-1, -1, True), (1, 0, False), (1, 1, True)],
)
def test_the_price_of_a_move_counts_seconds_by_their_classes(own: int, there: int, moves: bool) -> None:
    world = streaming(priority=own)
    classes = {there: 4} if there else {}
    world.note("b", running=4, classes=classes)
    world.note("a", running=1, classes={own: 1} if own else {})
    mover = world.router._mover
    live = world.router._ledger.live["r"]
    assert mover.begin(live, "it may be worth it", world.now_s) == ""
    asks = every(world.router._ledger.actions, ev.AskForecast)
    assert {ask.node_id for ask in asks} == {"a", "b"}
    # It would save 5 s of its own and cost the four there 2 s; 1 s is the least that a move must save.
    for ask in list(asks):
        world.asks[ask.ask_id] = ask
        said = forecast(ask.node_id, *((10.0, 0.0) if ask.node_id == "a" else (5.0, 2.0)))
        world.tell(ev.ForecastArrived(ask_id=ask.ask_id, node_id=ask.node_id, forecast=said))
    assert bool(mover.moves) is moves


@pytest.mark.parametrize("tells", ["ab", "a", "b", ""])
@pytest.mark.parametrize("prices", [TransferConfig(), None])
def test_kv_is_fetched_where_both_nodes_can_and_the_gateway_wants_it(tells: str, prices: TransferConfig | None) -> None:
    world = CheckedRouter(moves=MovesConfig(transfer=prices, share=0.1))
    sources = {name: f"10.0.0.{i}:5710" if name in tells else "" for i, name in enumerate("ab")}
    world.join("a", config=engine_config(kv_source=sources["a"]))
    world.arrive("r", prompt_tokens=2000)
    world.tokens("r", 10)
    world.join("b", config=engine_config(kv_source=sources["b"]))
    stage = only(world.tell(ev.MoveAsked(request_id="r", node_id="b", gently=True)), ev.Dispatch)
    assert stage.resumed is not None
    # What is fetched takes nobody's steps and comes whole; what is computed comes in pieces.
    fetched = tells == "ab" and prices is not None
    assert (stage.kv_source, stage.resumed.prompt_tokens) == ((sources["a"], 2010) if fetched else ("", 192))

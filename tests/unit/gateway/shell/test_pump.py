from __future__ import annotations

import msgspec
import pytest

from gateway.core.events import (
    Abort,
    AnyAction,
    AnyEvent,
    Arrived,
    AskForecast,
    ClientGone,
    Dispatch,
    DrainAsked,
    Finish,
    ForecastArrived,
    NodeJoined,
    NodeLost,
    Placed,
    Slo,
    StartTimer,
    StreamEnded,
    TimerFired,
    TokensSeen,
)
from gateway.core.router import Router, RouterConfig
from gateway.intake.client_stream import ClientStream, Usage
from gateway.pump import LONGEST_TIMER_S
from simcore.types import Candidate, EngineConfig, LengthBelief, Outcome
from tests.unit.gateway.shell.world import RecordingPort, World, decision, shape

CANDIDATE = Candidate(request_id="r", prompt_tokens=3, max_output_tokens=10, belief=LengthBelief((5,)))


@pytest.fixture
def world() -> World:
    return World()


def dispatch(request_id: str = "r", node_id: str = "n", seq: int = 1) -> Dispatch:
    return Dispatch(request_id=request_id, node_id=node_id, dispatch_seq=seq, decision=decision(request_id, node_id))


def running(world: World) -> None:
    """Request r runs on node n."""
    world.node_up()
    world.script.on(Arrived, dispatch())
    world.stream = world.submit()  # type: ignore[attr-defined]


def test_a_request_runs_from_arrival_to_its_end(world: World) -> None:
    world.node_up()
    world.script.on(Arrived, dispatch())
    world.script.on(StreamEnded, Finish(request_id="r", outcome=Outcome.STOP))
    stream = world.submit()
    assert world.port.sent == [("dispatch", 1, "r")]
    world.now_s += 0.5
    world.pump.part("n", "r", [1, 2])
    world.now_s += 0.5
    usage = Usage(prompt_tokens=3, output_tokens=3, cached_tokens=2)
    world.pump.part("n", "r", [3], outcome=Outcome.STOP, cached_tokens=2)
    assert stream.take() == [1, 2, 3]
    assert (stream.outcome, stream.usage()) == (Outcome.STOP, usage)
    assert stream.first_token_s == stream.arrived_s + 0.5
    assert stream.finished_s == stream.arrived_s + 1.0
    assert [type(e) for e in world.script.heard] == [NodeJoined, Arrived, TokensSeen, TokensSeen, StreamEnded]
    assert world.finished == [stream]
    assert not world.pump.streams


def test_a_question_to_a_node_that_is_gone_is_answered_at_once(world: World) -> None:
    world.script.on(Arrived, AskForecast(ask_id=4, node_id="n", candidate=CANDIDATE))
    world.submit()
    (answer,) = world.heard(ForecastArrived)
    assert isinstance(answer, ForecastArrived)
    assert (answer.ask_id, answer.node_id, answer.forecast) == (4, "n", None)
    assert answer.error


def test_a_dispatch_to_a_node_that_is_gone_is_reported_not_lost(world: World) -> None:
    world.script.on(Arrived, dispatch())
    world.submit()
    (ended,) = world.heard(StreamEnded)
    assert isinstance(ended, StreamEnded)
    assert ended.outcome is Outcome.NODE_LOST


def test_events_that_come_up_during_actions_wait_for_the_rest_of_them(world: World) -> None:
    ask = AskForecast(ask_id=1, node_id="gone", candidate=CANDIDATE)
    world.node_up()
    world.script.on(Arrived, ask, dispatch())
    world.submit()
    # The failed ask is an event, but the dispatch of the same reply is carried out before it is heard.
    assert [type(e) for e in world.script.heard] == [NodeJoined, Arrived, ForecastArrived]
    assert world.port.sent == [("dispatch", 1, "r")]


def test_a_client_that_leaves_is_an_event_and_the_abort_reaches_the_node(world: World) -> None:
    running(world)
    world.script.on(ClientGone, Abort(request_id="r", node_id="n"), Finish(request_id="r", outcome=Outcome.CLIENT_LEFT))
    world.pump.client_left("r")
    assert world.port.sent[-1] == ("abort", "r")
    world.pump.client_left("r")
    assert len(world.heard(ClientGone)) == 1


def test_cancel_finds_live_requests_only(world: World) -> None:
    running(world)
    world.script.on(ClientGone, Finish(request_id="r", outcome=Outcome.CANCELLED))
    assert not world.pump.cancel("other")
    assert world.pump.cancel("r")
    assert not world.pump.cancel("r")


def test_a_slow_reader_is_ended_with_an_outcome_of_its_own(world: World) -> None:
    running(world)

    def let_go(gone: AnyEvent) -> list[AnyAction]:
        assert isinstance(gone, ClientGone)
        ended = Finish(request_id="r", outcome=gone.outcome, detail=gone.detail)
        return [Abort(request_id="r", node_id="n"), ended]

    world.script.replies[ClientGone] = let_go
    for _ in range(5):
        world.pump.part("n", "r", list(range(30)))
    (stream,) = world.finished
    assert stream.outcome is Outcome.CLIENT_SLOW
    assert "too slowly" in stream.detail
    assert len(stream.pending) <= 130
    assert world.port.sent[-1] == ("abort", "r")


def test_a_reader_that_keeps_up_is_never_ended(world: World) -> None:
    running(world)
    stream = world.pump.streams["r"]
    for _ in range(50):
        world.pump.part("n", "r", list(range(30)))
        stream.take()
    assert not world.heard(ClientGone)
    assert stream.output_tokens == 1500


def test_tokens_of_another_attempt_do_not_reach_the_client(world: World) -> None:
    running(world)
    stream = world.pump.streams["r"]
    world.pump.part("elsewhere", "r", [9, 9])
    world.pump.part("n", "unknown", [9])
    assert stream.take() == []
    assert not world.heard(TokensSeen)


def test_what_a_stopped_attempt_still_says_is_not_part_of_the_answer(world: World) -> None:
    """Found by a rolling restart: tokens that came between the abort and the next node's were told twice."""
    running(world)
    stream = world.pump.streams["r"]
    world.pump.part("n", "r", [1, 2])
    world.script.on(DrainAsked, Abort(request_id="r", node_id="n"))
    world.pump.post(DrainAsked(node_id="n"))
    world.pump.part("n", "r", [3, 4])
    assert stream.take() == [1, 2]
    assert stream.output_tokens == 2
    assert len(world.heard(TokensSeen)) == 1


def test_a_lost_session_takes_its_port_away_before_the_router_hears(world: World) -> None:
    running(world)
    world.script.on(NodeLost, Abort(request_id="r", node_id="n"), dispatch(node_id="n", seq=2))
    world.pump.node_down("n", "crashed")
    assert world.port.sent == [("dispatch", 1, "r")]
    (ended,) = world.heard(StreamEnded)
    assert isinstance(ended, StreamEnded)
    assert ended.outcome is Outcome.NODE_LOST


def test_a_node_that_comes_back_is_served_through_its_new_session(world: World) -> None:
    world.node_up()
    world.pump.node_down("n", "crashed")
    port = RecordingPort()
    world.node_up(port=port)
    world.script.on(Arrived, dispatch())
    world.submit()
    assert port.sent == [("dispatch", 1, "r")]
    assert world.port.sent == []


def test_a_placement_is_answered_and_reserved_on_the_node(world: World) -> None:
    world.node_up()
    world.script.on(Arrived, Placed(request_id="r", decision=decision()))
    stream = world.submit(place_only=True)
    assert world.port.sent == [("reserve", "r")]
    assert stream.decision == decision()
    assert stream.outcome is Outcome.STOP
    assert not world.pump.streams


@pytest.mark.parametrize("early_s", [0.0, 0.0007])
def test_a_timer_never_fires_before_its_time(world: World, early_s: float) -> None:
    world.script.on(Arrived, StartTimer(timer_id=3, at_s=world.now_s + 0.05))
    start_s = world.now_s
    world.submit()
    world.run_timers(start_s + 1.0, early_s=early_s)
    fired = [(now_s, e) for now_s, e, _ in world.recorded if isinstance(e, TimerFired)]
    ((fired_s, event),) = fired
    assert event == TimerFired(timer_id=3)
    assert start_s + 0.05 <= fired_s < start_s + 0.051


def test_a_deadline_far_off_is_forgotten_soon_after_its_request_has_ended() -> None:
    world = World(router=Router(RouterConfig(policy="least_requests")))
    world.node_up()
    ended, running = (
        ClientStream(msgspec.structs.replace(shape(i), slo=Slo(deadline_s=86_400.0)), prompt_token_ids=(1, 2, 3))
        for i in ("ended", "running")
    )
    for stream in (ended, running):
        world.pump.submit(stream)
    world.pump.client_left("ended")
    assert world.timers == 2
    world.run_timers(world.now_s + 2 * LONGEST_TIMER_S)
    assert world.timers == 1
    world.run_timers(world.now_s + 86_400.0)
    assert running.outcome is Outcome.DEADLINE
    assert not world.timers


def test_a_defect_ends_its_own_request_and_nothing_else(world: World) -> None:
    running(world)

    def broken(event: object) -> list[object]:
        raise RuntimeError("boom")

    world.script.replies[TokensSeen] = broken  # type: ignore[assignment]
    other = world.pump.streams["r"]
    world.script.on(Arrived, dispatch("s", "n", 2))
    world.submit("s")
    world.pump.part("n", "s", [1])
    (ended,) = world.finished
    assert (ended.shape.request_id, ended.outcome) == ("s", Outcome.INTERNAL)
    assert [str(d) for d in world.defects] == ["boom"]
    assert other.outcome is None
    world.script.replies.clear()
    world.pump.part("n", "r", [1, 2])
    assert other.take() == [1, 2]


def test_a_defect_leaves_nothing_in_the_routers_books(world: World) -> None:
    running(world)
    gone: list[ClientGone] = []

    def broken(event: object) -> list[object]:
        raise RuntimeError("boom")

    world.script.replies[TokensSeen] = broken  # type: ignore[assignment]

    def closes(event: AnyEvent) -> list[AnyAction]:
        assert isinstance(event, ClientGone)
        gone.append(event)
        return [Abort(request_id="r", node_id="n"), Finish(request_id="r", outcome=event.outcome)]

    world.script.replies[ClientGone] = closes
    world.pump.part("n", "r", [1])
    assert [(event.request_id, event.outcome) for event in gone] == [("r", Outcome.INTERNAL)]
    (ended,) = world.finished
    assert (ended.outcome, world.pump.streams) == (Outcome.INTERNAL, {})


def test_everything_is_recorded_in_order_with_its_time(world: World) -> None:
    running(world)
    world.now_s += 1
    world.pump.part("n", "r", [1])
    assert [(now_s, type(e)) for now_s, e, _ in world.recorded] == [
        (100.0, NodeJoined),
        (100.0, Arrived),
        (101.0, TokensSeen),
    ]
    assert world.recorded[1][2] == [dispatch()]


def staged(seq: int = 1) -> Dispatch:
    asked = msgspec.structs.replace(shape(), prompt_tokens=40, max_output_tokens=1)
    return msgspec.structs.replace(dispatch(node_id="m", seq=seq), attempt=2, resumed=asked, stage=True)


def test_a_stage_of_a_move_gives_its_client_nothing_and_only_its_end_is_told(world: World) -> None:
    running(world)
    stream = world.pump.streams["r"]
    port = RecordingPort()
    world.pump.node_up("m", port, EngineConfig(model="m"), "")
    world.script.on(DrainAsked, staged())
    world.pump.post(DrainAsked(node_id="n"))
    assert port.sent == [("stage", 1, "r~2", 40)]
    world.pump.part("n", "r", [1, 2])
    world.pump.part("m", "r~2", [9], outcome=Outcome.LENGTH)
    assert stream.take() == [1, 2]
    assert stream.node_id == "n"
    (ended,) = world.heard(StreamEnded)
    assert isinstance(ended, StreamEnded)
    assert (ended.node_id, ended.attempt, ended.outcome) == ("m", 2, Outcome.LENGTH)
    world.pump.part("m", "r~2", [9], outcome=Outcome.LENGTH)
    assert len(world.heard(StreamEnded)) == 1, "it has ended once"


def test_a_stage_for_a_node_that_is_gone_ends_at_once(world: World) -> None:
    running(world)
    world.script.on(DrainAsked, staged())
    world.pump.post(DrainAsked(node_id="n"))
    (ended,) = world.heard(StreamEnded)
    assert isinstance(ended, StreamEnded)
    assert (ended.node_id, ended.outcome) == ("m", Outcome.NODE_LOST)

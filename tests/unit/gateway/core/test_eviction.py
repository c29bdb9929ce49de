"""An operator empties a node: what may go on elsewhere does, at nobody's expense."""

from __future__ import annotations

from gateway.core import events as ev
from simcore.types import Outcome
from tests.helpers.routing import CheckedRouter, every, only, shape


def evict(world: CheckedRouter, node_id: str) -> list[ev.AnyAction]:
    return world.tell(ev.DrainAsked(node_id=node_id))


def test_waiting_and_begun_requests_move_and_the_old_node_is_told() -> None:
    world = CheckedRouter(policy="round_robin")
    world.join("a")
    world.arrive("waits")
    world.arrive("begun")
    world.tokens("begun", 3)
    world.join("b")
    actions = evict(world, "a")
    assert only(actions, ev.Abort).request_id == "waits"
    sent = {dispatch.request_id: dispatch for dispatch in every(actions, ev.Dispatch)}
    assert {dispatch.node_id for dispatch in sent.values()} == {"b"}
    assert sent["waits"].resumed is None
    assert sent["begun"].stage, "its KV is computed there before it goes"
    world.stage_done("begun")
    actions = world.tokens("begun")
    assert only(actions, ev.Abort).request_id == "begun"
    sent["begun"] = only(actions, ev.Dispatch)
    resumed = sent["begun"].resumed
    assert resumed is not None
    assert resumed.prompt_tokens == shape("begun").prompt_tokens + 4
    world.end("waits")
    world.end("begun")
    assert all(finish.outcome is Outcome.STOP for finish in world.finished.values())
    world.router.check_quiescent()


def test_without_another_node_everything_stays_to_its_end() -> None:
    world = CheckedRouter()
    world.join("a")
    world.arrive("r")
    world.tokens("r", 2)
    assert not every(evict(world, "a"), ev.Dispatch)
    world.end("r")
    assert world.finished["r"].outcome is Outcome.STOP
    world.router.check_quiescent()


def test_what_must_not_be_resumed_stays() -> None:
    world = CheckedRouter(policy="round_robin")
    world.join("a")
    world.arrive("r", resume="off")
    world.tokens("r", 2)
    world.join("b")
    assert every(evict(world, "a"), ev.Dispatch) == []
    world.end("r")
    world.router.check_quiescent()


def test_moves_are_neither_attempts_nor_failures() -> None:
    world = CheckedRouter(max_attempts=2, retry_share=0.0, retry_burst=1)
    world.join("a", "b")
    world.arrive("r")
    for _ in range(6):
        here = world.at["r"]
        only(evict(world, here), ev.Dispatch)
        world.tell(ev.DrainAsked(node_id=here, undo=True))
        assert world.at["r"] != here
    only(world.end("r", Outcome.ENGINE_FAILED), ev.Dispatch)
    finish = only(world.end("r", Outcome.ENGINE_FAILED, "broken"), ev.Finish)
    assert finish.outcome is Outcome.ENGINE_FAILED
    assert all(node.alarm == "" for node in world.router.nodes() if node.node_id == here)
    world.router.check_quiescent()

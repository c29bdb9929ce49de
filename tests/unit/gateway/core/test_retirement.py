"""A node that says it is to leave gets nothing new, what it refuses goes elsewhere at once, operators' drains stay."""

from __future__ import annotations

from gateway.core import events as ev
from gateway.core.moves.config import MovesConfig
from simcore.types import Outcome
from tests.helpers.routing import CheckedRouter, every, only


def told(world: CheckedRouter, node_id: str, retiring: bool = True) -> list[ev.AnyAction]:
    return world.tell(ev.RetirementTold(node_id=node_id, retiring=retiring))


def status(world: CheckedRouter, node_id: str) -> tuple[str, bool, bool]:
    (node,) = [node for node in world.router.nodes() if node.node_id == node_id]
    return node.status, node.drained, node.retiring


def test_it_gets_nothing_new_until_it_says_that_it_stays() -> None:
    world = CheckedRouter(policy="round_robin")
    world.join("a", "b")
    told(world, "a")
    for i in range(4):
        world.arrive(f"r{i}")
    assert set(world.at.values()) == {"b"}
    assert status(world, "a") == ("draining", False, True)
    told(world, "a", False)
    for i in range(4, 8):
        world.arrive(f"r{i}")
    assert set(world.at.values()) == {"a", "b"}


def test_what_an_operator_drains_and_what_leaves_are_kept_apart() -> None:
    world = CheckedRouter()
    world.join("a", "b")
    world.tell(ev.DrainAsked(node_id="a"))
    told(world, "a")
    told(world, "a", False)
    assert status(world, "a") == ("draining", True, False)
    told(world, "a")
    world.tell(ev.DrainAsked(node_id="a", undo=True))
    assert status(world, "a") == ("draining", False, True)


def test_a_node_that_has_begun_anew_does_not_leave() -> None:
    world = CheckedRouter()
    world.join("a")
    told(world, "a")
    world.tell(ev.NodeLost(node_id="a", detail="restarts"))
    assert status(world, "a") == ("down", False, False)
    told(world, "a")
    world.join("a")
    assert status(world, "a") == ("up", False, False)


def test_what_crosses_the_retirement_is_nobodys_failure() -> None:
    """Neither an attempt nor a retry of the budget: a whole burst may meet it."""
    stays = MovesConfig(empty_leaving=False)
    world = CheckedRouter(policy="round_robin", max_attempts=1, retry_share=0.0, retry_burst=1, moves=stays)
    world.join("a")
    for i in range(10):
        world.arrive(f"r{i}")
    world.join("b")
    told(world, "a")
    for i in range(10):
        dispatch = only(world.end(f"r{i}", Outcome.NO_NODE, "a is to leave"), ev.Dispatch)
        assert dispatch.node_id == "b"
    for i in range(10):
        world.end(f"r{i}")
    assert {finish.outcome for finish in world.finished.values()} == {Outcome.STOP}
    world.router.check_quiescent()


def test_nodes_that_all_refuse_are_asked_once_each() -> None:
    world = CheckedRouter(policy="round_robin")
    world.join("a", "b", "c")
    world.arrive("r")
    for _ in range(3):
        world.end("r", Outcome.NO_NODE, "it is to leave")
    assert world.finished["r"].outcome is Outcome.NO_NODE
    assert world.attempt["r"] == 3


def test_one_that_stays_takes_who_waits() -> None:
    world = CheckedRouter(policy="least_requests")
    world.join("a")
    told(world, "a")
    actions = world.arrive("r")
    assert only(actions, ev.Finish).outcome is Outcome.NO_NODE
    told(world, "a", False)
    assert every(world.arrive("s"), ev.Dispatch)

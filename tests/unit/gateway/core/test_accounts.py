"""What the router believes of a node: its last note, plus what we sent there that the note does not count."""

from __future__ import annotations

from gateway.core import events as ev
from gateway.core.nodes.node import PROMISE_S, InFlight, Node
from simcore.types import NodeLoad, Outcome
from tests.helpers.routing import CheckedRouter, engine_config, node_load, only


def held(seq: int, request_id: str = "", blocks: int = 2, tokens: int = 132) -> InFlight:
    return InFlight(
        request_id=request_id or f"r{seq}",
        dispatch_seq=seq,
        prompt_blocks=blocks,
        tokens=tokens,
        prompt_tokens=blocks * 16,
        delay_s=None,
    )


def node_with(load: NodeLoad | None = None, dispatch_seq: int = 0) -> Node:
    node = Node("a", engine_config(), "", 0.0)
    if load is not None:
        node.hear(load, dispatch_seq, 0.0)
    return node


def seen(node: Node, now_s: float = 0.0) -> NodeLoad:
    load = node.view(now_s, 5.0).load
    assert load is not None
    return load


def test_a_node_that_has_not_spoken_is_unknown_and_not_idle() -> None:
    assert node_with().view(0.0, 5.0).load is None


def test_dispatches_after_the_note_are_added_as_waiting() -> None:
    node = node_with(node_load("a", running=3, waiting=1, waiting_prompt_blocks=4, unprocessed_tokens=500, reserved=1))
    node.take(held(1), 0.0)
    node.take(held(2, blocks=5, tokens=200), 0.0)
    load = seen(node)
    assert (load.running, load.waiting, load.reserved) == (3, 3, 3)
    assert (load.waiting_prompt_blocks, load.unprocessed_tokens) == (11, 832)
    assert node.view(0.0, 5.0).in_flight == 2


def test_a_note_that_counts_them_takes_their_place() -> None:
    node = node_with(node_load("a"))
    for seq in (1, 2, 3):
        node.take(held(seq), 0.0)
    node.hear(node_load("a", running=2), 2, 0.0)
    load = seen(node)
    assert (load.running, load.waiting, load.waiting_prompt_blocks) == (2, 1, 2)
    node.hear(node_load("a", running=3), 3, 0.0)
    assert seen(node) == node_load("a", running=3)


def test_a_request_that_ends_before_any_note_counts_it_leaves_no_trace() -> None:
    node = node_with(node_load("a"))
    node.take(held(1), 0.0)
    node.take(held(2), 0.0)
    node.release("r1")
    assert seen(node).waiting == 1
    node.release("r2")
    assert seen(node) == node_load("a")
    node.hear(node_load("a", running=1), 2, 0.0)
    assert seen(node) == node_load("a", running=1)


def test_a_new_session_numbers_from_one_and_knows_nothing_of_the_old_notes() -> None:
    node = node_with(node_load("a"))
    for seq in (1, 2, 3):
        node.take(held(seq), 0.0)
    node.rejoin(engine_config(), "", 0.0)
    assert node.view(0.0, 5.0).load is None
    assert node.dispatch_seq == 0
    node.take(held(1, "new"), 0.0)
    node.hear(node_load("a", waiting=3), 0, 0.0)
    assert seen(node).waiting == 4
    node.release("r1")
    assert seen(node).waiting == 4, "the note speaks of the old ones, not the account"
    assert [h.request_id for h in node.sent_since(0)] == ["new"]


def test_a_promise_counts_until_the_node_has_had_time_to_count_it() -> None:
    node = node_with(node_load("a"))
    node.promise(held(1), 1.0)
    assert seen(node, 1.0).waiting == 1
    assert seen(node, 1.0 + PROMISE_S).waiting == 0
    assert node.view(1.0, 5.0).in_flight == 0


def test_age_is_the_notes_own_age_and_the_time_since() -> None:
    node = node_with()
    node.hear(node_load("a", state_age_s=0.25), 0, 10.0)
    assert node.view(11.0, 5.0).state_age_s == 1.25
    assert node.status().state_age_s(11.0) == 1.25


def test_a_busy_node_that_falls_silent_becomes_unknown_and_an_idle_one_does_not() -> None:
    node = node_with(node_load("a", running=1))
    assert node.view(5.0, 5.0).load is not None
    assert node.view(5.1, 5.0).load is None
    idle = node_with(node_load("a"))
    assert idle.view(500.0, 5.0).load is not None
    idle.take(held(1), 500.0)
    assert idle.view(500.0, 5.0).load is None, "it should have said by now that it got something"


def test_dispatches_of_the_last_minute_are_counted_and_forgotten() -> None:
    node = node_with(node_load("a"))
    for i in range(3):
        node.take(held(i + 1), 10.0 * i)
    assert [node.view(t, 5.0).dispatches_60s for t in (20.0, 59.9, 60.0, 70.0, 80.0)] == [3, 3, 2, 1, 0]


def test_an_unknown_node_is_neither_idle_nor_out_of_service() -> None:
    """It gets what a known one gets that has as many requests of ours; the known one goes first."""
    world = CheckedRouter("llumnix_freeness")
    world.join("new", load=False)
    world.join("busy")
    world.note("busy", running=40, free_blocks=5)
    first = only(world.arrive("first"), ev.Dispatch).decision
    assert first.node_id == "busy"
    assert first.scores[1].note.startswith("its load is not known; counts like")
    for i in range(20):
        world.arrive(f"r{i}")
    in_flight = {node.node_id: node.in_flight for node in world.router.nodes()}
    assert 5 <= in_flight["new"] <= in_flight["busy"]


def test_where_no_load_is_known_the_fallback_steps_in() -> None:
    world = CheckedRouter("llumnix_freeness")
    world.join("new", load=False)
    decision = only(world.arrive("last"), ev.Dispatch).decision
    assert (decision.node_id, decision.policy) == ("new", "least_requests")
    assert "llumnix_freeness could not price 1 nodes as no load is known" in decision.reason


def test_a_node_whose_notes_stopped_is_not_preferred_for_what_it_last_said() -> None:
    world = CheckedRouter("llumnix_freeness")
    world.join("stale", "fresh")
    world.note("stale", running=1)
    world.now_s = 6.0
    world.note("fresh", running=40, free_blocks=5)
    assert only(world.arrive("r"), ev.Dispatch).node_id == "fresh"


def test_operators_see_every_node_as_it_is() -> None:
    world = CheckedRouter()
    world.join("a", "b", "c")
    world.arrive("r")
    world.tell(ev.DrainAsked(node_id="b"))
    world.tell(ev.NodeLost(node_id="c", detail="reset"))
    status = {s.node_id: s for s in world.router.nodes()}
    assert [status[n].status for n in "abc"] == ["up", "draining", "down"]
    assert status["c"].detail == "reset"
    assert sum(s.in_flight for s in status.values()) == 1
    world.join("c")
    assert {s.node_id: s.status for s in world.router.nodes()}["c"] == "up"


def test_a_node_that_comes_back_takes_the_retries_of_others() -> None:
    world = CheckedRouter()
    world.join("a", "b")
    world.tell(ev.NodeLost(node_id="b"))
    world.arrive("r")
    world.join("b")
    assert only(world.end("r", Outcome.ENGINE_FAILED), ev.Dispatch).node_id == "b"


def test_words_of_unknown_nodes_are_ignored() -> None:
    world = CheckedRouter()
    world.join("a")
    for event in (
        ev.LoadNoted(load=node_load("x"), dispatch_seq=0),
        ev.NodeLost(node_id="x"),
        ev.NodeRemoved(node_id="x"),
        ev.DrainAsked(node_id="x"),
    ):
        assert not world.router.handle(event, 0.0)
    assert [s.node_id for s in world.router.nodes()] == ["a"]

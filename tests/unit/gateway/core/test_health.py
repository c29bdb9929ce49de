"""Ejection, half-open recovery, slow start, pushback, suspicion, stalls: who gets requests, and that somebody does."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gateway.core import events as ev
from gateway.core.nodes.health import FAILURES, FIRST_PAUSE_S, PUSHBACK_S
from simcore.types import Outcome
from tests.helpers.routing import CheckedRouter, every, only


def fleet(*names: str, **config: Any) -> CheckedRouter:
    world = CheckedRouter(max_attempts=1, **config)
    world.join(*names)
    return world


def placed(world: CheckedRouter, count: int, *, end: bool = True) -> Counter[str]:
    """Where so many requests go, one after the other."""
    nodes: Counter[str] = Counter()
    for _ in range(count):
        name = f"r{len(world.arrived)}"
        world.arrive(name)
        if name not in world.at:
            continue
        nodes[world.at[name]] += 1
        if end:
            world.tokens(name)
            world.end(name)
    return nodes


def fail(world: CheckedRouter, node_id: str, count: int, outcome: Outcome = Outcome.ENGINE_FAILED) -> None:
    """So many failures of one node, whoever else gets requests meanwhile."""
    while count:
        name = f"r{len(world.arrived)}"
        world.arrive(name)
        if world.at[name] == node_id:
            world.end(name, outcome, "device lost")
            count -= 1
        else:
            world.end(name)


def alarm(world: CheckedRouter, node_id: str) -> str:
    return next(node.alarm for node in world.router.nodes() if node.node_id == node_id)


def test_failures_in_a_row_eject_a_node_until_one_request_has_tried_it() -> None:
    world = fleet("a", "b")
    fail(world, "a", FAILURES)
    assert "device lost" in alarm(world, "a")
    assert placed(world, 20) == {"b": 20}
    world.now_s += FIRST_PAUSE_S
    # Half open: one at a time, until it has shown that it works.
    assert placed(world, 10, end=False)["a"] == 1
    probe = next(name for name, node in world.at.items() if node == "a" and name not in world.finished)
    world.tokens(probe)
    assert placed(world, 10, end=False)["a"] == 1
    for name in [n for n in world.at if n not in world.finished]:
        world.tokens(name)
        world.end(name)
    assert placed(world, 200)["a"] > 60
    assert alarm(world, "a") == ""


def test_a_probe_that_fails_ejects_again_for_longer() -> None:
    world = fleet("a", "b")
    fail(world, "a", FAILURES)
    world.now_s += FIRST_PAUSE_S
    fail(world, "a", 1)
    world.now_s += FIRST_PAUSE_S
    assert placed(world, 10) == {"b": 10}
    world.now_s += FIRST_PAUSE_S
    assert placed(world, 10)["a"] > 0


def test_full_is_no_failure_but_advice_for_a_moment() -> None:
    world = fleet("a", "b")
    for _ in range(2 * FAILURES):
        fail(world, "a", 1, Outcome.OVERLOADED)
        assert placed(world, 5) == {"b": 5}
        world.now_s += PUSHBACK_S
    assert alarm(world, "a") == ""
    assert placed(world, 40)["a"] > 5


def test_the_last_node_is_never_blocked() -> None:
    world = fleet("a")
    fail(world, "a", 3 * FAILURES)
    world.tell(ev.NodeSuspected(node_id="a", detail="no word for 1 s"))
    assert placed(world, 5) == {"a": 5}


def test_a_suspected_node_gets_nothing_until_it_speaks() -> None:
    world = fleet("a", "b")
    world.tell(ev.NodeSuspected(node_id="a", detail="no word for 1 s"))
    assert alarm(world, "a") == "no word for 1 s"
    assert placed(world, 20) == {"b": 20}
    world.tell(ev.NodeSuspected(node_id="a", detail=""))
    assert placed(world, 40)["a"] > 5


def test_a_node_that_comes_back_starts_slowly_and_as_fast_as_it_delivers() -> None:
    world = fleet("a", "b")
    placed(world, 10)
    world.tell(ev.NodeLost(node_id="a"))
    placed(world, 30, end=False)
    world.join("a")
    held = []
    for _ in range(4):
        taken = placed(world, 40, end=False)["a"]
        held.append(taken)
        for name in [n for n, node in world.at.items() if node == "a" and n not in world.finished]:
            world.tokens(name)
            world.end(name)
    assert held[0] == 1
    assert held[1] > held[0]
    assert held[2] > held[1]


def test_at_the_start_of_a_fleet_nobody_is_held_back() -> None:
    world = fleet("a", "b", "c")
    assert placed(world, 30, end=False) == {"a": 10, "b": 10, "c": 10}


def test_a_stalled_engine_loses_what_it_has_and_gets_nothing_new() -> None:
    world = CheckedRouter(stall_s=5.0)
    world.join("a", "b")
    world.arrive("r")
    first = world.at["r"]
    world.tokens("r", 3)
    world.now_s += 4.0
    world.note(first)
    assert world.at["r"] == first
    world.now_s += 2.0
    world.note(first)
    assert world.at["r"] != first
    assert "no sign of life" in alarm(world, first)
    assert placed(world, 10).keys() == {world.at["r"]}
    world.note(first, trace_seq=2)
    assert placed(world, 40, end=False)[first] > 0
    world.end("r")


def test_what_a_stalled_engine_had_is_stopped_there() -> None:
    world = CheckedRouter(stall_s=5.0)
    world.join("a", "b")
    world.arrive("r")
    first = world.at["r"]
    world.now_s += 6.0
    actions = world.tell(
        ev.LoadNoted(load=next(n.load for n in world.router.nodes() if n.node_id == first and n.load), dispatch_seq=1)
    )
    assert [type(a) for a in actions if isinstance(a, (ev.Abort, ev.Dispatch))] == [ev.Abort, ev.Dispatch]


def test_a_frozen_trace_is_seen_within_a_second_and_the_node_is_still_used() -> None:
    world = fleet("a", "b", policy="llumnix_freeness")
    for i in range(4):
        world.arrive(f"r{i}")
    for step in range(10):
        world.now_s += 0.1
        for name, node_id in world.at.items():
            world.tokens(name)
            if node_id == "b":
                world.note("b", trace_seq=step + 2, running=2)
    assert "frozen" in alarm(world, "a")
    assert alarm(world, "b") == ""
    more = placed(world, 20, end=False)
    assert 5 <= more["a"] <= 15
    world.note("a", trace_seq=99, running=12)
    assert alarm(world, "a") == ""


def test_questions_to_a_silent_predictor_stop_but_for_a_probe_now_and_then() -> None:
    world = CheckedRouter("min_total_latency", max_attempts=1)
    world.join("a", "b")

    def ask(name: str) -> set[str]:
        actions = world.arrive(name)
        asks = every(actions, ev.AskForecast)
        world.answer(asks, {"b": 1.0})
        world.now_s += 0.05
        world.fire_due()
        assert name in world.at
        world.end(name)
        return {a.node_id for a in asks}

    asked = [ask(f"r{i}") for i in range(30)]
    assert asked[:3] == [{"a", "b"}] * 3
    assert asked[3:10] == [{"b"}] * 7
    assert 2 <= sum("a" in to for to in asked[3:]) <= 3
    assert "does not answer" in alarm(world, "a")
    world.now_s += 0.6
    actions = world.arrive("last")
    world.answer(every(actions, ev.AskForecast), {"a": 1.0, "b": 1.0})
    assert alarm(world, "a") == ""
    only([a for a in world.arrive("next") if isinstance(a, ev.AskForecast) and a.node_id == "a"], ev.AskForecast)

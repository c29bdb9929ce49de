"""Requests that a proxy takes to their engine: placed where proxies get to, and never anywhere else afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core import events as ev
from simcore.types import Outcome
from tests.helpers.routing import CheckedRouter, engine_config, only

ADDRESSES = {"a": "10.0.0.1:8000", "b": "10.0.0.2:8000"}


def world_of(*node_ids: str) -> CheckedRouter:
    world = CheckedRouter()
    for node_id in node_ids:
        world.join(node_id, config=engine_config(address=ADDRESSES.get(node_id, "")))
    return world


def by_proxy(world: CheckedRouter, request_id: str = "r", **changes: Any) -> list[ev.AnyAction]:
    return world.arrive(request_id, lane="by_proxy", resume="off", **changes)


def test_only_engines_that_proxies_reach_get_them() -> None:
    world = world_of("plain", "a")
    assert {only(by_proxy(world, f"r{n}"), ev.Dispatch).node_id for n in range(4)} == {"a"}


def test_without_such_an_engine_there_is_none() -> None:
    finish = only(by_proxy(world_of("plain")), ev.Finish)
    assert finish.outcome is Outcome.NO_NODE
    assert "engine-address" in finish.detail


@pytest.mark.parametrize(("endpoints", "nodes"), [(("10.0.0.2:8000",), {"b"}), (tuple(ADDRESSES.values()), {"a", "b"})])
def test_a_subset_is_kept_to(endpoints: tuple[str, ...], nodes: set[str]) -> None:
    world = world_of("a", "b")
    assert {only(by_proxy(world, f"r{n}", endpoints=endpoints), ev.Dispatch).node_id for n in range(6)} == nodes


@pytest.mark.parametrize("endpoints", [(), ("10.9.9.9:8000",)])
def test_a_subset_without_a_node_is_no_node(endpoints: tuple[str, ...]) -> None:
    assert only(by_proxy(world_of("a"), endpoints=endpoints), ev.Finish).outcome is Outcome.NO_NODE


def test_its_place_is_held_until_its_end_is_told() -> None:
    world = world_of("a", "b")
    by_proxy(world)
    assert world.router.nodes()[0].in_flight + world.router.nodes()[1].in_flight == 1
    world.tokens("r", 3)
    assert only(world.end("r"), ev.Finish).outcome is Outcome.STOP
    world.router.check_quiescent()


@pytest.mark.parametrize("outcome", [Outcome.ENGINE_FAILED, Outcome.OVERLOADED, Outcome.NODE_LOST])
def test_a_failure_is_its_end(outcome: Outcome) -> None:
    world = world_of("a", "b")
    by_proxy(world)
    finish = only(world.end("r", outcome), ev.Finish)
    assert (finish.outcome, "a proxy has taken it" in finish.detail) == (outcome, True)
    world.router.check_quiescent()


def test_it_ends_with_its_node() -> None:
    world = world_of("a", "b")
    node_id = only(by_proxy(world), ev.Dispatch).node_id
    assert only(world.tell(ev.NodeLost(node_id=node_id)), ev.Finish).outcome is Outcome.NODE_LOST
    world.router.check_quiescent()


def test_it_stays_at_a_node_that_is_drained() -> None:
    world = world_of("a", "b")
    node_id = only(by_proxy(world), ev.Dispatch).node_id
    assert not [a for a in world.tell(ev.DrainAsked(node_id=node_id)) if isinstance(a, ev.Dispatch | ev.Abort)]
    assert "proxy" in world.router.why_not_moved("r", "b" if node_id == "a" else "a")
    assert only(by_proxy(world, "s"), ev.Dispatch).node_id != node_id


def test_a_client_that_leaves_frees_its_place_and_the_node_hears_of_it() -> None:
    world = world_of("a")
    by_proxy(world)
    actions = world.tell(ev.ClientGone(request_id="r"))
    assert only(actions, ev.Abort).node_id == "a"
    world.router.check_quiescent()

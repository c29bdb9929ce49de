"""What every policy owes its users, run over the registry: a new name is held to it at once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest

from gateway.core import events as ev
from gateway.core.decision.policies.base import NodeView
from gateway.core.decision.policies.registry import make_policy, needs_forecasts, policy_names
from gateway.core.queue.queue import HoldConfig
from simcore.types import Forecast
from tests.helpers.routing import CheckedRouter, every, forecast, node_load, node_view, shape

NODES = [f"n{i}" for i in range(6)]
AT_ONCE = HoldConfig(when="never")
"""For tests that fill all nodes."""

pytestmark = pytest.mark.parametrize("policy", policy_names())


def place(world: CheckedRouter, request_id: str, said: dict[str, Forecast] | None = None, session: str = "") -> str:
    """One request placed, every question answered alike unless `said` knows better; returns its node."""
    for ask in every(world.arrive(request_id, session=session), ev.AskForecast):
        answer = (said or {}).get(ask.node_id, forecast(ask.node_id))
        world.tell(ev.ForecastArrived(ask_id=ask.ask_id, node_id=ask.node_id, forecast=answer))
    return world.at[request_id]


def uneven_views(order: Sequence[str]) -> list[NodeView]:
    """The same six nodes, some loaded, one unknown, in any order."""
    views = []
    for node_id in order:
        i = NODES.index(node_id)
        load = node_load(
            node_id, running=5 * i, free_blocks=1000 - 150 * i, waiting=i // 3, waiting_prompt_blocks=10 * (i // 3),
            unprocessed_tokens=2000 * i,
        )  # fmt: skip
        view = node_view(node_id, load, in_flight=5 * i, dispatches_60s=3 * i)
        views.append(msgspec.structs.replace(view, load=None) if i == 5 else view)
    return views


def test_down_and_draining_nodes_are_never_chosen(policy: str) -> None:
    world = CheckedRouter(policy, hold=AT_ONCE)
    world.join(*NODES)
    world.tell(ev.NodeLost(node_id="n1"))
    world.tell(ev.DrainAsked(node_id="n4"))
    chosen = {place(world, f"r{i}", session=f"s{i}") for i in range(200)}
    assert chosen == set(NODES) - {"n1", "n4"}, "and everyone else is"


def test_whoever_is_left_is_chosen(policy: str) -> None:
    world = CheckedRouter(policy)
    world.join(*NODES, load=False)
    for node_id in NODES[1:]:
        world.tell(ev.NodeLost(node_id=node_id))
    assert place(world, "r") == "n0", "even if nothing is known of it"


def test_with_all_loads_equal_everyone_gets_a_fair_share(policy: str) -> None:
    """Llumnix' comparator starves the node that was registered first when all are equal (its issue 303)."""
    shares: Counter[str] = Counter()
    for seed in range(300):
        world = CheckedRouter(policy, seed=seed)
        world.join(*NODES)
        shares[place(world, "r", session=f"s{seed}")] += 1
    expected = 300 / len(NODES)
    assert all(expected - 25 < shares[node_id] < expected + 25 for node_id in NODES), dict(shares)


def test_in_the_long_run_equal_nodes_share_equally(policy: str) -> None:
    world = CheckedRouter(policy, hold=AT_ONCE)
    world.join(*NODES)
    shares = Counter(place(world, f"r{i}", session=f"s{i}") for i in range(600))
    assert all(60 < shares[node_id] < 140 for node_id in NODES), dict(shares)


def test_the_same_seed_makes_the_same_choices(policy: str) -> None:
    def course(seed: int) -> list[str]:
        world = CheckedRouter(policy, seed=seed)
        world.join(*NODES)
        return [place(world, f"r{i}", session=f"s{i}") for i in range(60)]

    assert course(3) == course(3)
    if policy != "session":
        assert any(course(3) != course(seed) for seed in range(4, 8))


def test_the_order_of_the_nodes_does_not_matter(policy: str) -> None:
    said = {node_id: forecast(node_id, e2e_s=1.0 + i, harm_s=i) for i, node_id in enumerate(NODES)}
    priced: list[dict[str, float | None]] = []
    for seed in range(20):
        rng = random.Random(seed)
        order = rng.sample(NODES, len(NODES))
        plugin = make_policy(policy, random.Random(0))
        # Turns are drawn for newcomers: the same turns whatever the order is what is asked of those, see below.
        costs = plugin.costs(shape(session="s"), uneven_views(order), said)
        priced.append(dict(zip(order, costs, strict=True)))
    if policy == "round_robin":
        firsts = Counter(min(p, key=lambda node_id: p[node_id] or 0.0) for p in priced)
        assert len(firsts) > 1, "the first turn is drawn, not given to the first in the list"
    else:
        assert all(p == priced[0] for p in priced)


def test_a_policy_changes_nothing_it_is_shown(policy: str) -> None:
    views = uneven_views(NODES)
    before = msgspec.json.encode(views)
    said = {node_id: forecast(node_id) for node_id in NODES}
    request = shape(session="s")
    plugin = make_policy(policy, random.Random(0))
    plugin.costs(request, tuple(views), said)
    assert msgspec.json.encode(views) == before
    assert set(said) == set(NODES)


def test_every_node_has_a_cost_or_none(policy: str) -> None:
    plugin = make_policy(policy, random.Random(0))
    for count in range(1, len(NODES) + 1):
        assert len(plugin.costs(shape(session="s"), uneven_views(NODES)[:count], {})) == count


def test_what_is_asked_for_is_declared(policy: str) -> None:
    plugin = make_policy(policy, random.Random(0))
    assert plugin.name == policy
    assert plugin.cost_unit
    assert needs_forecasts(policy) is plugin.needs_forecasts
    world = CheckedRouter(policy)
    world.join(*NODES)
    assert bool(every(world.arrive("r"), ev.AskForecast)) is plugin.needs_forecasts


def test_costs_of_forecast_policies_are_seconds(policy: str) -> None:
    plugin = make_policy(policy, random.Random(0))
    assert plugin.cost_unit == "s" or not plugin.needs_forecasts


def test_every_decision_explains_itself(policy: str) -> None:
    world = CheckedRouter(policy)
    world.join(*NODES)
    for i in range(8):
        place(world, f"r{i}", session=f"s{i}")
        told = world.router.explain(f"r{i}")
        assert told is not None
        (decision,) = told.decisions
        known = [score.cost for score in decision.scores if score.cost is not None]
        assert known
        assert known == sorted(known), "best first"
        assert decision.node_id in decision.reason
        assert decision.policy == policy

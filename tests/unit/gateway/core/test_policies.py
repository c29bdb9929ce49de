"""The formula of every policy, on loads made by hand, and the defects of the originals that are not there."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from gateway.core import events as ev
from gateway.core.decision.later_cost import LATER_WAITS_PER_WAIT
from gateway.core.decision.policies.base import NodeView
from gateway.core.decision.policies.registry import ALIASES, PolicyError, canonical_name, make_policy, policy_names
from simcore.types import LengthBelief
from tests.helpers.routing import CheckedRouter, forecast, node_load, node_view, only, shape


def view(node_id: str, *, in_flight: int = 0, **load: int) -> NodeView:
    return node_view(node_id, node_load(node_id, **load), in_flight=in_flight)


def costs(policy: str, *views: NodeView, **request: Any) -> list[float | None]:
    return list(make_policy(policy, random.Random(0)).costs(shape(**request), views, {}))


def test_freeness_is_free_blocks_less_the_queues_prompts_per_running_request() -> None:
    assert costs(
        "llumnix_freeness",
        view("idle", free_blocks=1052),
        view("busy", free_blocks=100, running=10),
        view("queueing", free_blocks=100, running=10, waiting=2, waiting_prompt_blocks=40),
        view("overfull", free_blocks=10, running=10, waiting=3, waiting_prompt_blocks=60),
    ) == [-1052.0, -10.0, -6.0, 5.0]


def test_freeness_counts_requests_on_their_way_as_running() -> None:
    assert costs(
        "llumnix_freeness",
        view("a", free_blocks=100, running=3, waiting=2, reserved=2, waiting_prompt_blocks=10),
    ) == [-18.0]


def test_infaas_looks_at_memory_and_not_at_the_queue() -> None:
    assert costs(
        "infaas",
        view("busy", free_blocks=100, running=10),
        view("queueing", free_blocks=100, running=10, waiting=2, waiting_prompt_blocks=40),
        view("under way", free_blocks=100, running=10, waiting=2, reserved=2, waiting_prompt_blocks=40),
    ) == [-10.0, -10.0, -5.0]


def test_unprocessed_tokens_take_the_new_request_in() -> None:
    assert costs(
        "min_total_unprocessed_tokens",
        view("a"),
        view("b", unprocessed_tokens=700),
        prompt_tokens=50,
        belief=LengthBelief((100, 200)),
        max_output_tokens=1000,
    ) == [200.0, 900.0]


@pytest.mark.parametrize("policy", ["least_requests", "power_of_two"])
def test_requests_are_our_own_account_whatever_the_node_says(policy: str) -> None:
    assert costs(policy, view("a", in_flight=2, running=40), view("b", in_flight=3)) == [2.0, 3.0]


@pytest.mark.parametrize("policy", ["llumnix_freeness", "infaas", "min_total_unprocessed_tokens"])
def test_a_node_of_unknown_load_has_no_cost(policy: str) -> None:
    unknown = NodeView(node_id="x", config=view("x").config, load=None, in_flight=0, dispatches_60s=0)
    assert costs(policy, unknown, view("a"))[0] is None
    assert costs(policy, unknown, view("a"))[1] is not None


def test_forecast_policies_price_in_seconds_and_only_where_there_is_a_forecast() -> None:
    forecasts = {"a": forecast("a", e2e_s=2.0, harm_s=5.0)}
    views = [view("a"), view("b")]
    assert make_policy("min_new_request_latency", random.Random(0)).costs(shape(), views, forecasts) == [2.0, None]
    assert make_policy("min_total_latency", random.Random(0)).costs(shape(), views, forecasts) == [
        pytest.approx(2.0 + 5.0 + 0.1 * LATER_WAITS_PER_WAIT),
        None,
    ]


def test_round_robin_gives_everyone_a_turn_before_anyone_a_second() -> None:
    world = CheckedRouter("round_robin")
    nodes = [f"n{i}" for i in range(5)]
    world.join(*nodes)
    rounds = [[only(world.arrive(f"{turn}-{i}"), ev.Dispatch).node_id for i in range(5)] for turn in range(4)]
    assert sorted(rounds[0]) == nodes
    assert rounds == [rounds[0]] * 4


def test_round_robin_stays_fair_while_nodes_come_and_go() -> None:
    world = CheckedRouter("round_robin")
    world.join("a", "b", "c")
    for i in range(6):
        world.arrive(f"first-{i}")
    world.tell(ev.DrainAsked(node_id="b"))
    assert Counter(only(world.arrive(f"two-{i}"), ev.Dispatch).node_id for i in range(6)) == {"a": 3, "c": 3}
    world.tell(ev.DrainAsked(node_id="b", undo=True))
    world.join("d")
    given = [only(world.arrive(f"four-{i}"), ev.Dispatch).node_id for i in range(8)]
    assert sorted(given[:4]) == ["a", "b", "c", "d"]
    assert Counter(given) == {"a": 2, "b": 2, "c": 2, "d": 2}


def test_a_session_stays_on_its_node_and_moves_only_if_that_goes() -> None:
    world = CheckedRouter("session")
    nodes = [f"n{i}" for i in range(6)]
    world.join(*nodes)
    home = {s: only(world.arrive(f"{s}-0", session=s), ev.Dispatch).node_id for s in map(str, range(60))}
    assert set(home.values()) == set(nodes), "sixty sessions leave no node out"
    world.tell(ev.DrainAsked(node_id="n2"))
    for s, node in home.items():
        now = only(world.arrive(f"{s}-1", session=s), ev.Dispatch).node_id
        assert now == node or node == "n2"
        assert now != "n2"


def test_without_a_session_the_least_loaded_is_taken() -> None:
    assert costs("session", view("a", in_flight=2), view("b", in_flight=0), view("c", in_flight=2)) == [1.0, 0.0, 1.0]


def test_min_qpm_really_counts_and_forgets_after_a_minute() -> None:
    """Block compares stamps of two clocks, so that every count is 0 and the policy is a second random."""
    world = CheckedRouter("min_qpm")
    world.join("a", "b")
    for i in range(10):
        world.arrive(f"r{i}")
        world.end(f"r{i}")
    assert Counter(world.at.values()) == {"a": 5, "b": 5}
    world.tell(ev.DrainAsked(node_id="b"))
    for i in range(3):
        world.arrive(f"a{i}")
    world.tell(ev.DrainAsked(node_id="b", undo=True))
    given = [only(world.arrive(f"after-{i}"), ev.Dispatch).node_id for i in range(3)]
    assert given == ["b", "b", "b"], "b has three dispatches fewer in the last minute"
    world.now_s = 59.0
    only(world.arrive("late", policy="random"), ev.Dispatch)
    world.now_s = 60.0
    assert {s.cost for s in only(world.arrive("minute"), ev.Dispatch).decision.scores} == {0.0, 1.0}


def test_power_of_two_compares_two_nodes_and_more_if_asked() -> None:
    for sample, compared in ((0, 2), (3, 3)):
        world = CheckedRouter("power_of_two", sample=sample)
        world.join(*(f"n{i}" for i in range(6)))
        drawn: Counter[str] = Counter()
        for i in range(200):
            scores = only(world.arrive(f"r{i}"), ev.Dispatch).decision.scores
            assert len({s.node_id for s in scores}) == compared
            drawn.update(s.node_id for s in scores)
        assert min(drawn.values()) > 0.6 * 200 * compared / 6, "the sample is uniform"


def test_names_of_the_seed_systems_are_understood() -> None:
    for alias, name in ALIASES.items():
        assert canonical_name(alias) == name
        assert make_policy(alias, random.Random(0)).name == name
    assert set(ALIASES) >= {"min_lunmnix_load", "min_infass_load", "request_per_seconds"}
    assert not set(ALIASES) & set(policy_names())


def test_an_unknown_name_is_answered_with_the_closest_and_all() -> None:
    with pytest.raises(PolicyError, match=r"unknown policy 'min_total_latencies': did you mean 'min_total_latency'\?"):
        make_policy("min_total_latencies", random.Random(0))
    with pytest.raises(PolicyError, match="known are round_robin, random, least_requests"):
        make_policy("zzz", random.Random(0))

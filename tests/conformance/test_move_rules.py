"""What every rule of moving owes its users, run over the registry: a new name is held to it at once."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from gateway.core.moves.config import MovesConfig
from gateway.core.moves.rule import MoveRule, MovesError, MoveWish, NodeSeen, RequestSeen
from gateway.core.moves.rules.registry import make_move_rule, move_rule_names
from gateway.core.nodes.pace import Pace
from simcore.types import NodePace
from tests.helpers.routing import TOTAL_BLOCKS, node_load, node_view

SEEDS = range(40)
each = pytest.mark.parametrize("rule", move_rule_names())


def make(rule: str, seed: int = 0, **options: Any) -> MoveRule:
    made = make_move_rule(MovesConfig(rule=rule, options=options), random.Random(seed))
    assert made is not None
    return made


def pace(step_s: float = 0.02) -> Pace:
    told = NodePace(batches=(1, 48), step_s=(step_s, 3 * step_s), kv_s_per_token=1e-7, prefill_s_per_token=step_s / 200)
    return Pace(told, 48)


def request(request_id: str, **changes: Any) -> RequestSeen:
    fields: dict[str, Any] = {
        "prompt_tokens": 200,
        "output_tokens": 50,
        "expected_left_tokens": 200.0,
        "priority": 0,
        "dispatched_s": 0.0,
        "movable": True,
    }
    return RequestSeen(request_id=request_id, **{**fields, **changes})


def node(node_id: str, requests: int = 0, *, step_s: float = 0.02, free: int = TOTAL_BLOCKS, **load: Any) -> NodeSeen:
    told = node_load(node_id, running=requests, free_blocks=free, **load)
    return NodeSeen(
        view=node_view(node_id, told, in_flight=requests, pace=pace(step_s)),
        leaving=False,
        slow=False,
        requests=tuple(request(f"{node_id}-{i}") for i in range(requests)),
    )


def any_fleet(rng: random.Random) -> list[NodeSeen]:
    """Nodes in all sorts of states, some of which say nothing."""
    nodes = []
    for n in range(rng.randint(0, 6)):
        running = rng.randint(0, 48)
        seen = node(
            f"n{n}",
            running,
            step_s=rng.choice([0.01, 0.03, 0.1]),
            free=rng.randint(0, TOTAL_BLOCKS),
            waiting=rng.choice([0, 0, 5, 40]),
        )
        requests = tuple(
            msgspec.structs.replace(
                one,
                output_tokens=rng.choice([0, 1, 500]),
                expected_left_tokens=rng.choice([0.0, 1.0, 700.0]),
                priority=rng.randint(-1, 1),
                movable=rng.random() < 0.8,
            )
            for one in seen.requests
        )
        view = seen.view
        if rng.random() < 0.2:
            view = msgspec.structs.replace(view, load=None)
        if rng.random() < 0.2:
            view = msgspec.structs.replace(view, pace=None)
        nodes.append(NodeSeen(view=view, leaving=rng.random() < 0.2, slow=rng.random() < 0.2, requests=requests))
    return nodes


def course(rule: str, seed: int) -> list[list[MoveWish]]:
    rng, made = random.Random(seed), make(rule, seed)
    return [list(made.tick(any_fleet(rng), tick * 0.5)) for tick in range(20)]


@each
@pytest.mark.parametrize("seed", SEEDS)
def test_wishes_are_of_those_that_may_go_to_where_they_may_go(rule: str, seed: int) -> None:
    rng, made = random.Random(seed), make(rule, seed)
    for tick in range(20):
        nodes = any_fleet(rng)
        wishes = made.tick(nodes, tick * 0.5)
        at = {one.request_id: (one, seen) for seen in nodes for one in seen.requests}
        open_ids = {seen.view.node_id for seen in nodes if not seen.leaving}
        assert len({wish.request_id for wish in wishes}) == len(wishes), "nobody is named twice"
        assert len(wishes) <= 64
        for wish in wishes:
            one, here = at[wish.request_id]
            assert one.movable
            assert wish.why
            assert not here.leaving, "those are emptied in any case"
            assert wish.node_id in {"", *open_ids} - {here.view.node_id}


@each
@pytest.mark.parametrize("seed", SEEDS[:5])
def test_the_same_is_said_of_the_same(rule: str, seed: int) -> None:
    assert course(rule, seed) == course(rule, seed)


@each
def test_nobody_moves_in_a_quiet_fleet(rule: str) -> None:
    made = make(rule)
    for nodes in ([], [node("a")], [node("a", 3)], [node("a", 3), node("b", 3), node("c", 2)], [node("a"), node("b")]):
        assert not made.tick(nodes, 10.0)


@each
def test_who_is_alone_stays(rule: str) -> None:
    assert not make(rule).tick([node("a", 48, free=0, waiting=20)], 10.0)


@each
def test_a_full_node_gives_to_an_empty_one(rule: str) -> None:
    wishes = make(rule).tick([node("a", 40, free=20), node("b")], 10.0)
    assert wishes
    assert all(wish.request_id.startswith("a-") for wish in wishes)


@each
def test_unknown_options_are_refused(rule: str) -> None:
    with pytest.raises(MovesError, match=f"options of '{rule}'.*`nonsense`"):
        make(rule, nonsense=1)


@pytest.mark.parametrize(
    ("rule", "options"),
    [("llumnix", {"out_below": 5.0, "in_above": 3.0}), ("llumnix", {"pairs": 0}), ("forecast", {"propose": 0})],
)
def test_options_that_make_no_sense(rule: str, options: Mapping[str, Any]) -> None:
    with pytest.raises(MovesError, match="moves: options of"):
        make(rule, **options)


# --- worked by hand ---------------------------------------------------------------------------------------------------


def test_llumnix_pairs_the_lowest_with_the_highest_and_takes_low_priority_then_short_ones() -> None:
    # Freeness: a 10/10 = 1, b 40/20 = 2, c 500/10 = 50, d 1000/5 = 200.
    nodes = [node("a", 10, free=10), node("b", 20, free=40), node("c", 10, free=500), node("d", 5, free=1000)]
    nodes[0] = msgspec.structs.replace(
        nodes[0],
        requests=(
            request("long", output_tokens=900),
            request("short", output_tokens=20),
            request("waits", output_tokens=0),
            request("high", output_tokens=1, priority=-1),
        ),
    )
    nodes[1] = msgspec.structs.replace(
        nodes[1], requests=(request("low", output_tokens=900, priority=1), request("tiny", output_tokens=1))
    )
    wishes = make("llumnix").tick(nodes, 0.0)
    assert [(wish.request_id, wish.node_id, wish.priced) for wish in wishes] == [
        ("short", "d", False),
        ("low", "c", False),
    ]


def test_llumnix_leaves_alone_what_lies_between() -> None:
    nodes = [node("a", 10, free=40), node("b", 10, free=80)]
    assert not make("llumnix").tick(nodes, 0.0)
    assert make("llumnix", out_below=5.0, in_above=7.0).tick(nodes, 0.0)


def test_forecast_takes_who_saves_most() -> None:
    slow, fast = node("slow", 30, step_s=0.1, free=400), node("fast", 2, step_s=0.01)
    requests = (request("soon", expected_left_tokens=3.0), request("late", expected_left_tokens=900.0))
    slow = msgspec.structs.replace(slow, requests=requests)
    wishes = make("forecast").tick([slow, fast], 0.0)
    assert [(wish.request_id, wish.node_id, wish.priced) for wish in wishes] == [("late", "", True)]


def test_forecast_takes_who_waits_for_long() -> None:
    full = node("full", 40, free=2, waiting=20, prefill_tokens=50_000)
    full = msgspec.structs.replace(
        full,
        requests=(
            request("waits", output_tokens=0, dispatched_s=0.0),
            request("new", output_tokens=0, dispatched_s=9.9),
        ),
    )
    wishes = make("forecast").tick([full, node("idle")], 10.0)
    assert [wish.request_id for wish in wishes] == ["waits"]


def test_forecast_makes_room_for_who_fits_nowhere_else() -> None:
    full = node("full", 3, free=2, waiting=1, head_waits_s=8.0)
    full = msgspec.structs.replace(
        full,
        requests=(
            request("long", prompt_tokens=900, output_tokens=300),
            request("short", prompt_tokens=100, output_tokens=20),
            request("waits", prompt_tokens=3000, output_tokens=0, dispatched_s=0.0),
        ),
    )
    wishes = make("forecast").tick([full, node("small", free=40)], 10.0)
    assert [(wish.request_id, wish.priced) for wish in wishes] == [("short", True)]


def test_forecast_takes_the_last_to_come_of_a_node_that_foresees_a_preemption() -> None:
    def named(preemption_ahead_s: float) -> list[str]:
        full = node("full", 4, free=10, preemption_ahead_s=preemption_ahead_s)
        requests = tuple(request(f"r{i}", prompt_tokens=3000) for i in range(4))
        full = msgspec.structs.replace(full, requests=requests)
        return [wish.request_id for wish in make("forecast").tick([full, node("idle")], 10.0)]

    assert named(2.0) == ["r3"]
    assert named(20.0) == []

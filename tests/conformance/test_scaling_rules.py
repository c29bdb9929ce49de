"""What every scaling rule owes its users, run over the registry: a new name is held to it at once."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from gateway.core.scale.config import ScaleError
from gateway.core.scale.events import RequestCame, RequestDone, RequestPlaced
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import ScalingRule, Wish
from gateway.core.scale.rules.registry import make_rule, rule_class
from simcore.types import NodeLoad
from tests.helpers.routing import node_load
from tests.helpers.scaling_rules import SHIPPED, RuleWorld, idle, overloaded, scale_config, seen_node, silent

MORE: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "inferline": ({"preset": "paper"},),
    "concurrency": ({"preset": "kserve"}, {"preset": "aibrix_kpa"}),
    "kv_utilisation": ({"preset": "wva"},),
    "dynamo": ({"optimization_target": "latency"}, {"optimization_target": "sla"}),
    "preemptive": ({"down": False},),
    "reactive": ({"down": False},),
}
"""Options with which a rule is another."""
CASES = [(rule, options) for rule in SHIPPED for options in ({}, *MORE.get(rule, ()))]
NEVER_DOWN = ("static {}", "preemptive {'down': False}", "reactive {'down': False}")
"""Published without scaling down."""
ALWAYS_MOST = ("static {}",)
"""Those that want their maximum whatever they see."""


def label(rule: str, options: Mapping[str, Any]) -> str:
    return f"{rule} {dict(options)}"


each = pytest.mark.parametrize(("rule", "options"), CASES, ids=[label(*case) for case in CASES])


def total(wish: Wish | None, otherwise: int) -> int:
    return otherwise if wish is None else wish.wanted.get("n", otherwise)


def came(rule: ScalingRule, now_s: float, tokens: int = 300) -> None:
    rule.came(RequestCame(prompt_tokens=tokens, expected_tokens=100.0), now_s)


def placed(rule: ScalingRule, now_s: float, e2e_s: float | None, node_id: str = "n-0") -> None:
    request = RequestPlaced(node_id=node_id, waited_s=0.0)
    if e2e_s is not None:
        request = msgspec.structs.replace(request, ttft_s=0.3 * e2e_s, e2e_s=e2e_s, tpot_s=0.007 * e2e_s)
    rule.placed(request, now_s)


def done(rule: ScalingRule, now_s: float, e2e_s: float, node_id: str = "n-0") -> None:
    rule.done(
        RequestDone(
            node_id=node_id, prompt_tokens=300, output_tokens=100, waited_s=0.0, ttft_s=0.3 * e2e_s, e2e_s=e2e_s
        ),
        now_s,
    )


def course(rule: str, options: Mapping[str, Any], seed: int) -> RuleWorld:
    """A fleet in all sorts of states: bursts, silence, nodes that say nothing, vanish and appear, requests that are
    held and given up."""
    rng = random.Random(seed)
    world = RuleWorld(scale_config(rule, options, min=rng.randint(0, 2)), nodes=rng.randint(0, 4))
    loads: list[Callable[[str], NodeLoad | None]] = [idle, silent, overloaded, lambda node_id: some_load(node_id, rng)]
    for _ in range(60):
        if rng.random() < 0.3:
            world.load = rng.choice(loads)
        if rng.random() < 0.1 and world.serving:
            world.serving.remove(rng.choice(world.serving))
        if rng.random() < 0.1:
            world.serving.append(f"n-{rng.randint(100, 999)}-{len(world.log)}")
        world.held = rng.choice((0, 0, 0, 5, 200))
        heard(world.rule, rng, world.now_s)
        world.tick(rng.choice((5.0, 5.0, 5.0, 0.0, 61.0)))
    return world


def some_load(node_id: str, rng: random.Random) -> NodeLoad | None:
    running = rng.randint(0, 64)
    return node_load(node_id, running=running, free_blocks=1000 - 15 * running, prefill_tokens=rng.randint(0, 3000))


def heard(rule: ScalingRule, rng: random.Random, from_s: float) -> None:
    rate = rng.choice((0, 0, 1, 20))
    for number in range(rate * 5):
        now_s = from_s + number / max(rate, 1)
        came(rule, now_s, rng.randint(1, 4000))
        node_id = f"n-{rng.randint(0, 5)}"
        if rng.random() < 0.9:
            placed(rule, now_s, rng.choice((None, 0.5, 50.0)), node_id)
        if rng.random() < 0.8:
            done(rule, now_s, rng.choice((0.0, 0.4, 3.0, 80.0)), node_id)


@each
def test_it_says_what_it_is(rule: str, options: Mapping[str, Any]) -> None:
    made = rule_class(rule)
    assert made.name == rule
    assert made.source
    assert made.__doc__
    defaults = made.options_type()
    assert msgspec.convert(msgspec.to_builtins(defaults), made.options_type) == defaults


@each
@pytest.mark.parametrize("seed", range(4))
def test_it_is_pure_and_says_nothing_that_cannot_be(rule: str, options: Mapping[str, Any], seed: int) -> None:
    """Fed the same again a fresh one says the same; wishes are whole numbers of groups that are there, and their
    reasons are finite numbers."""
    first, second = course(rule, options, seed), course(rule, options, seed)
    assert [entry[2] for entry in first.log] == [entry[2] for entry in second.log], f"seed {seed}"
    for _, now_s, wish in first.log:
        if wish is None:
            continue
        at = f"seed {seed}, {now_s} s: {wish}"
        assert set(wish.wanted) <= {"n"}, at
        assert all(type(nodes) is int and nodes >= 0 for nodes in wish.wanted.values()), at
        assert all(math.isfinite(value) for value in wish.seen.values()), at
        assert wish.why, at
        assert msgspec.json.decode(msgspec.json.encode(wish), type=Wish) == wish, at


@each
def test_it_holds_while_it_knows_nothing(rule: str, options: Mapping[str, Any]) -> None:
    world = RuleWorld(scale_config(rule, options), nodes=5, load=silent)
    for _ in range(3):
        assert total(world.tick(), world.count) >= 5


@each
def test_nobody_leaves_nodes_that_say_nothing_while_requests_come(rule: str, options: Mapping[str, Any]) -> None:
    """All is stuck: requests come, none is placed, none ends, and no node says a word."""
    world = RuleWorld(scale_config(rule, options), nodes=5, load=silent)
    for _ in range(400):
        for number in range(5):
            came(world.rule, world.now_s + number)
        assert total(world.tick(), world.count) >= 5


@each
def test_that_nothing_comes_is_data(rule: str, options: Mapping[str, Any]) -> None:
    world = RuleWorld(scale_config(rule, options), nodes=6)
    for _ in range(1440):
        world.tick()
    expected = 16 if label(rule, options) in ALWAYS_MOST else 6 if label(rule, options) in NEVER_DOWN else 1
    assert world.count == expected


@pytest.mark.parametrize(("rule", "options"), [case for case in CASES if label(*case) not in NEVER_DOWN])
def test_requests_that_were_given_up_leave_no_demand(rule: str, options: Mapping[str, Any]) -> None:
    world = RuleWorld(scale_config(rule, options), nodes=4, load=overloaded)
    for _ in range(30):
        for number in range(50):
            came(world.rule, world.now_s + number / 10)
            placed(world.rule, world.now_s + number / 10, 60.0)
        world.tick()
    world.load = idle
    for _ in range(1440):
        world.tick()
    assert world.count == 1


@each
def test_nodes_that_start_are_not_asked_for_again(rule: str, options: Mapping[str, Any]) -> None:
    """Too much to do for what is there, always as much, and nobody comes up: it asks once, and waits."""
    world = RuleWorld(scale_config(rule, options, max=200), nodes=2, load=overloaded, start_s=math.inf)
    asked = []
    for _ in range(100):
        for number in range(200):
            now_s, node_id = world.now_s + number / 40, f"n-{number % 2}"
            came(world.rule, now_s)
            placed(world.rule, now_s, 60.0, node_id)
            if number % 4 < 2:
                done(world.rule, now_s, 60.0, node_id)
        world.tick()
        asked.append(world.count)
    assert max(asked) > 2, "it was not too much, and the test says nothing"
    first = next(i for i, nodes in enumerate(asked) if nodes > 2)
    assert max(asked) == max(asked[: first + 30]), asked
    assert max(asked) < 200 or label(rule, options) in ALWAYS_MOST, "only the bound has stopped it"


@each
def test_a_clock_that_jumps_does_no_harm(rule: str, options: Mapping[str, Any]) -> None:
    world = RuleWorld(scale_config(rule, options), nodes=3)
    for jump_s in (0.0, 0.0, 3600.0, 86_400.0, 0.0, 5.0):
        came(world.rule, world.now_s)
        wish = world.tick(jump_s)
        assert wish is None or all(math.isfinite(value) for value in wish.seen.values())


@each
def test_fixed_nodes_and_several_groups_are_one_fleet(rule: str, options: Mapping[str, Any]) -> None:
    """Nodes that nobody may stop serve too; whatever is wanted is within what the groups can be, or its one-node step
    beyond."""
    config = scale_config(rule, options, name="dear", price_per_hour=9.0)
    cheap = msgspec.structs.replace(config.groups[0], name="cheap", price_per_hour=1.0)
    made = make_rule(msgspec.structs.replace(config, groups=(config.groups[0], cheap)))
    template = RuleWorld(scale_config(rule, options), nodes=2).fleet().groups[0]
    for tick in range(100):
        now_s = 1000.0 + 5.0 * tick
        came(made, now_s)
        done(made, now_s, 1.0, "cheap-0")
        groups = [
            msgspec.structs.replace(
                template, group=group, serving=tuple(seen_node(f"{group.name}-{i}", node_load("x")) for i in range(2))
            )
            for group in (config.groups[0], cheap)
        ]
        fixed = (seen_node("fixed", node_load("fixed")), seen_node("lost", None, state="down"))
        wish = made.tick(FleetState(now_s=now_s, groups=tuple(groups), fixed=fixed), now_s)
        if wish is not None:
            assert set(wish.wanted) <= {"dear", "cheap"}
            assert all(0 <= nodes <= 16 for nodes in wish.wanted.values())


@each
def test_an_option_that_it_does_not_have_is_one_clear_error(rule: str, options: Mapping[str, Any]) -> None:
    with pytest.raises(ScaleError, match=rf"options of '{rule}'.*no_such_option"):
        make_rule(scale_config(rule, {**options, "no_such_option": 1}))


SIGNED = {"freeness": {"scale_up_threshold"}}
"""Options that may be negative."""


@pytest.mark.parametrize("rule", SHIPPED)
def test_a_number_that_cannot_be_is_one_clear_error(rule: str) -> None:
    numbers = [
        field.name
        for field in msgspec.inspect.type_info(rule_class(rule).options_type).fields  # type: ignore[attr-defined]
        if isinstance(field.default, float | int) and not isinstance(field.default, bool)
    ]
    for name in sorted(set(numbers) - SIGNED.get(rule, set())):
        with pytest.raises(ScaleError, match=rf"options of '{rule}'.*{name}"):
            make_rule(scale_config(rule, {name: -1.0 if name != "paths" else -1}))


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("freeness", {"scale_up_threshold": 60.0}),
        ("llmd_slo", {"scale_down_at": 0.6}),
        ("kv_utilisation", {"scale_down_at": 0.9}),
        ("service_level", {"windows_s": [10.0, 5.0]}),
    ],
)
def test_a_band_that_is_upside_down_is_one_clear_error(rule: str, options: Mapping[str, Any]) -> None:
    with pytest.raises(ScaleError, match=next(iter(options))):
        make_rule(scale_config(rule, options))

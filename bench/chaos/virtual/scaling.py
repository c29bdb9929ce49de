"""Faults of a fleet that grows and shrinks, and what must hold of its nodes in all of them. Pure."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import msgspec

from bench.chaos.virtual.scenario import STEP_TIME, WHOLE, ChaosRun, Dice, Scenario, World
from bench.measure.scaling import ScalingResult
from bench.simcluster import NodeSpec
from bench.simcluster.scaling import ConnectorFails, ScaledFleet, ScaledGroup
from bench.simcluster.start_time import StartTime
from bench.simcluster.world import ClockJumps, GatewayRestarts
from bench.workload.item import WorkloadItem
from gateway.core.scale.config import ScaleConfig, ScaleGroup
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import Deaf, Wish
from gateway.core.scale.rules.registry import register_rule
from gateway.core.scale.scaler import LATE
from simcore.types import EngineConfig, Outcome

TICK_S = 0.5
GROUP = "g"
MODEL = "m"


class RestlessOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `restless`."""

    changes: float = 0.15
    """Probability of another wish at a tick."""


class Restless(Deaf):
    """Wants any number of nodes, now this, now that: no rule may bring the scaler to harm anybody."""

    name: ClassVar[str] = "restless"
    source: ClassVar[str] = "chaos"
    options_type: ClassVar[type[msgspec.Struct]] = RestlessOptions

    def __init__(self, config: ScaleConfig, options: RestlessOptions, rng: random.Random) -> None:
        self._rng, self._changes = rng, options.changes
        self._wanted: dict[str, int] = {}

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        if not self._wanted or self._rng.random() < self._changes:
            self._wanted = {
                state.group.name: self._rng.randint(-1, state.group.max + 2) if self._rng.random() < 0.9 else 0
                for state in fleet.groups
            }
        return None if self._rng.random() < 0.1 else Wish(wanted=self._wanted)


RESTLESS = register_rule(Restless, origin="bench chaos")


def _scaled(
    dice: Dice, *, first: int = 2, least: int = 1, leaves: Literal["any", "last"] | None = None, **world: Any
) -> ScaledFleet:
    engine = EngineConfig(
        model=MODEL,
        max_num_seqs=dice.rng.choice((4, 16, 48)),
        max_num_batched_tokens=512,
        num_blocks=dice.rng.choice((200, 1052)),
        enable_prefix_caching=False,
    )
    low_s = dice.rng.uniform(0.3, 3.0)
    start_time = StartTime(kind="uniform", low_s=low_s, high_s=low_s * dice.rng.uniform(1.0, 2.5))
    order: Literal["any", "last"] = leaves or ("last" if dice.rng.random() < 0.3 else "any")
    rule = dice.rng.choice((RESTLESS, RESTLESS, RESTLESS, "concurrency", "inferline"))
    group = ScaleGroup(
        name=GROUP,
        model=MODEL,
        min=least,
        max=dice.rng.randint(max(2, first), 6),
        cold_start_s=start_time.median_s,
        leaves=order,
    )
    return ScaledFleet(
        config=ScaleConfig(rule=rule, groups=(group,), tick_s=TICK_S, seed=dice.rng.randrange(1 << 30)),
        groups={
            GROUP: ScaledGroup(
                node=NodeSpec(node_id="x", config=engine, step_time=STEP_TIME),
                start_time=start_time,
                nodes=first,
                **world,
            )
        },
        seed=dice.rng.randrange(1 << 30),
    )


def _requests(dice: Dice) -> list[WorkloadItem]:
    items = dice.requests(140, dice.rng.choice((2.0, 4.0, 8.0)))
    return [msgspec.structs.replace(item, model=MODEL) for item in items]


def _for_a_while(dice: Dice, items: list[WorkloadItem], *how: Any) -> World:
    from_s = dice.moment(items) * 0.7
    until_s = from_s + dice.rng.uniform(1.0, 15.0)
    return [(from_s, ConnectorFails(how=how)), (until_s, ConnectorFails())]


def scaled_restlessly(dice: Dice) -> Scenario:
    """Nodes come and go without pause: nobody is cut off, and none is paid for longer than it is there."""
    return Scenario(nodes=[], items=_requests(dice), scaled=_scaled(dice))


def start_never_comes(dice: Dice) -> Scenario:
    """Some starts never end and nobody says so: each is given up in time, and another one tried."""
    # Where only the last can be stopped, one that never comes may have to wait for those after it.
    scaled = _scaled(dice, leaves="any", failed_starts=dice.rng.uniform(0.2, 1.0), failures=("never",))
    longest_s = longest_wait_s(scaled)

    def check(run: ChaosRun) -> str:
        assert run.scaling is not None
        waited_s = [bill.gone_s - bill.asked_s for bill in run.scaling.bills if bill.ready_s is None]
        late = [waited for waited in waited_s if waited > longest_s]
        return f"paid for {late[:3]} s of a start that never came; {longest_s} s at most" if late else ""

    return Scenario(nodes=[], items=_requests(dice), scaled=scaled, check=check)


def starts_fail(dice: Dice) -> Scenario:
    """Some starts are refused or break: none is paid for any more once it is seen, and those that work are not
    hindered."""
    scaled = _scaled(dice, failed_starts=dice.rng.uniform(0.2, 1.0), failures=("refused", "breaks"))
    return Scenario(nodes=[], items=_requests(dice), scaled=scaled)


def half_started_node(dice: Dice) -> Scenario:
    """A connector says that starts failed which are carried out all the same: the next list finds them."""
    items = _requests(dice)
    scaled = _scaled(dice, failed_starts=0.3, failures=("breaks", "never"))
    return Scenario(nodes=[], items=items, world=_for_a_while(dice, items, "forgets"), scaled=scaled)


def spot_vanishes(dice: Dice) -> Scenario:
    """Nodes are taken away without a word, serving, starting or leaving: what ran there goes on elsewhere, if there is
    an elsewhere, and none is paid for after that."""
    scaled = _scaled(dice, first=3, vanish_s=dice.rng.uniform(8.0, 60.0))
    # Who is hit too often is given up, and a fleet that is gone may have room again only after everybody's patience.
    may_end = WHOLE | {Outcome.NODE_LOST, Outcome.NO_NODE, Outcome.OVERLOADED}
    return Scenario(nodes=[], items=_requests(dice), scaled=scaled, may_end=may_end)


def connector_silent(dice: Dice) -> Scenario:
    """A connector does not say what runs for a while: nothing is started or stopped until it does."""
    items = _requests(dice)
    world = _for_a_while(dice, items, "list")
    from_s, until_s = world[0][0], world[1][0]

    def check(run: ChaosRun) -> str:
        assert run.scaling is not None
        acted = [decision.now_s for decision in run.scaling.decisions if from_s < decision.now_s < until_s]
        return f"it acted blindly at {acted[:3]}" if acted else ""

    return Scenario(nodes=[], items=items, world=world, scaled=_scaled(dice), check=check)


def connector_lies(dice: Dice) -> Scenario:
    """A connector leaves nodes out of its list, or names some that are not there: no request suffers from it."""
    items = _requests(dice)
    world = _for_a_while(dice, items, *dice.rng.choice((("hides",), ("invents",), ("hides", "invents"))))
    return Scenario(nodes=[], items=items, world=world, scaled=_scaled(dice))


def connector_refuses(dice: Dice) -> Scenario:
    """Every start, every stop, or both fail for a while; they are tried again, and nothing is started meanwhile in
    their place beyond what may be paid for."""
    items = _requests(dice)
    world = _for_a_while(dice, items, *dice.rng.choice((("start",), ("stop",), ("start", "stop"))))
    return Scenario(nodes=[], items=items, world=world, scaled=_scaled(dice))


def clock_jumps_while_scaling(dice: Dice) -> Scenario:
    """The machine sleeps while nodes start and leave: no start is given up for that alone."""
    items = _requests(dice)
    jump = ClockJumps(by_s=dice.rng.choice((2.0, 30.0, 3600.0)))
    return Scenario(nodes=[], items=items, world=[(dice.moment(items), jump)], scaled=_scaled(dice))


def node_of_another_model(dice: Dice) -> Scenario:
    """Some nodes come up with another model than was asked for: they are sent away, and no request goes there."""
    scaled = _scaled(dice, failed_starts=dice.rng.uniform(0.2, 0.8), failures=("stranger",))
    return Scenario(nodes=[], items=_requests(dice), scaled=scaled)


def gateway_killed_while_scaling(dice: Dice) -> Scenario:
    """The gateway dies with all that its scaler knew; the next one takes over what runs, starts and leaves."""
    items = _requests(dice)
    at_s = dice.moment(items)
    must_end = {item.request_id: WHOLE for item in items if item.arrival_s > at_s}
    return Scenario(
        nodes=[],
        items=items,
        world=[(at_s, GatewayRestarts())],
        scaled=_scaled(dice, failed_starts=dice.rng.choice((0.0, 0.3))),
        may_end=WHOLE | {Outcome.INTERNAL},
        must_end=must_end,
    )


def scaled_to_nothing(dice: Dice) -> Scenario:
    """Nobody need serve: a fleet that is empty now and then; who comes then waits for the node that is started."""
    scaled = _scaled(dice, first=dice.rng.randint(0, 2), least=0, failed_starts=dice.rng.choice((0.0, 0.3)))
    return Scenario(nodes=[], items=_requests(dice), scaled=scaled)


def everything_while_scaling(dice: Dice) -> Scenario:
    """Failed starts, vanishing nodes, a connector that lies and refuses, a clock that jumps and a gateway that dies."""
    items = _requests(dice)
    world: World = []
    for how in ("list", "start", "stop", "forgets", "hides"):
        world += _for_a_while(dice, items, how)
    world += [(dice.moment(items), ClockJumps(by_s=30.0)), (dice.moment(items), GatewayRestarts())]
    failures = {Outcome.NODE_LOST, Outcome.NO_NODE, Outcome.OVERLOADED, Outcome.INTERNAL}
    scaled = _scaled(
        dice, first=3, failed_starts=0.3, failures=("refused", "breaks", "never", "stranger"), vanish_s=40.0
    )
    return Scenario(nodes=[], items=items, world=world, scaled=scaled, may_end=WHOLE | failures)


def complaints_of(scaled: ScaledFleet, result: ScalingResult, followed: int) -> list[str]:
    """What a run's nodes broke. That none is stopped with requests on it, the cluster itself sees to.

    `followed`: requests that the scaler thinks to be under way when all have ended.
    """
    found = [f"{followed} requests are still followed by the scaler"] if followed else []
    by_node: dict[str, list[tuple[float, float]]] = {}
    for bill in result.bills:
        by_node.setdefault(bill.node_id, []).append((bill.asked_s, bill.gone_s))
        if not result.began_s <= bill.asked_s <= bill.gone_s <= result.ended_s:
            found.append(f"{bill.node_id} is paid for from {bill.asked_s} to {bill.gone_s}")
    for node_id, spans in by_node.items():
        spans.sort()
        if any(later[0] < earlier[1] for earlier, later in itertools.pairwise(spans)):
            found.append(f"{node_id} is paid for twice at once: {spans}")
    for group in scaled.config.groups:
        most = _most_at_once([(b.asked_s, b.gone_s) for b in result.bills if b.group == group.name])
        # In the place of one that is being stopped another may be started, and then the stop fails; and nobody can
        # count what is kept from him.
        if most > group.max + result.stops_refused + result.nodes_hidden:
            found.append(f"{most} nodes of {group.name} were paid for at once; {group.max} may be")
    return found


def _most_at_once(spans: list[tuple[float, float]]) -> int:
    changes = sorted([(asked_s, 1) for asked_s, _ in spans] + [(gone_s, -1) for _, gone_s in spans])
    there = most = 0
    for _, change in changes:
        there += change
        most = max(most, there)
    return most


def longest_wait_s(scaled: ScaledFleet) -> float:
    """For how long a start that never comes is paid for at most, with a connector that works."""
    group, world = scaled.config.groups[0], scaled.groups[GROUP]
    return LATE * max(group.cold_start_s, world.start_time.latest_s) + 4 * TICK_S


SCALING_FAULTS: tuple[Callable[[Dice], Scenario], ...] = (
    scaled_restlessly,
    start_never_comes,
    starts_fail,
    half_started_node,
    spot_vanishes,
    connector_silent,
    connector_lies,
    connector_refuses,
    clock_jumps_while_scaling,
    node_of_another_model,
    gateway_killed_while_scaling,
    scaled_to_nothing,
    everything_while_scaling,
)

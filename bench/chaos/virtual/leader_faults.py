"""What can befall several gateways that scale one fleet: the catalogue by name, and a run of one. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from bench.chaos.virtual.leaders import COLD_S, NODES, TTL_S, ScalingGateway, ScalingWorld

FAULTS_S = 600.0
"""For which faults come."""


class ScalingVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one run broke; nothing, if all is well."""

    fault: str
    seed: int
    broken: tuple[str, ...]
    starts: int
    stops: int
    changes: int
    """How often a gateway began to lead."""
    woken: int
    """Requests that came to a model of which no rule wants a node, and got one."""
    leaderless_s: float
    """The longest time without a leader in which there could have been one."""


def _often(world: ScalingWorld, every_s: tuple[float, float], do: Callable[[], None]) -> None:
    at_s = 60.0
    while at_s < FAULTS_S:
        world.at(at_s, do)
        at_s += world.rng.uniform(*every_s)


def _victim(world: ScalingWorld) -> ScalingGateway:
    """The leader, mostly."""
    leader = world.leader()
    if leader is not None and world.rng.random() < 0.8:
        return leader
    return world.rng.choice(list(world.gateways.values()))


def leader_killed(world: ScalingWorld) -> None:
    """The leader dies, at any moment between an order and the list that shows it, and comes back later."""

    def kill() -> None:
        victim = _victim(world)
        if not victim.alive:
            return
        world.kill_gateway(victim)
        world.later(
            (1.0, 60.0), lambda: None if world.gateways[victim.name].alive else world.start_gateway(victim.name)
        )

    _often(world, (15.0, 60.0), kill)


def leader_cut_off(world: ScalingWorld) -> None:
    """The leader reaches no node any more, but its connector; later it does again."""

    def cut() -> None:
        victim = _victim(world)
        pairs = {(victim.name, node) for node in NODES}
        world.cut |= pairs
        world.later((2.0, 150.0), lambda: world.cut.difference_update(pairs))

    _often(world, (30.0, 120.0), cut)


def leader_pauses(world: ScalingWorld) -> None:
    """The leader stands still and goes on where it was."""
    _often(world, (15.0, 60.0), lambda: world.pause(_victim(world), world.rng.uniform(0.5, 6 * TTL_S)))


def links_cut(world: ScalingWorld) -> None:
    """Each gateway loses some of the nodes, each others."""

    def cut() -> None:
        pairs = {(name, node) for name in world.gateways for node in NODES if world.rng.random() < 0.4}
        world.cut |= pairs
        world.later((2.0, 200.0), lambda: world.cut.difference_update(pairs))

    _often(world, (30.0, 120.0), cut)


def split_in_two(world: ScalingWorld) -> None:
    """Nodes and gateways fall into two parts; both reach the connector."""

    def cut() -> None:
        here = {name for name in world.gateways if world.rng.random() < 0.5}
        nodes = {node for node in NODES if world.rng.random() < 0.5}
        pairs = {(g, n) for g in world.gateways for n in NODES if (g in here) != (n in nodes)}
        world.cut |= pairs
        world.later((5.0, 300.0), lambda: world.cut.difference_update(pairs))

    _often(world, (60.0, 200.0), cut)


def connector_fails(world: ScalingWorld) -> None:
    """Starts and stops are slow, fail, or seem to; so do lists."""
    world.fail, world.order_s, world.list_s = 0.3, (0.1, 20.0), (0.01, 12.0)


def orders_doubled(world: ScalingWorld) -> None:
    """Orders and messages come twice, the second time late."""
    world.double, world.order_s = 0.4, (0.1, 30.0)


def messages_lost(world: ScalingWorld) -> None:
    """Many messages are lost, doubled, or late by seconds, though sessions live."""
    world.lose, world.double, world.delay_s = 0.2, 0.1, (0.001, 3.0)


def daemons_restart(world: ScalingWorld) -> None:
    """Daemons begin anew and know neither what they granted nor that they retire."""

    def restart() -> None:
        up = [instance for instance in world.instances.values() if instance.up]
        for instance in up if world.rng.random() < 0.2 else up[:1]:
            world.restart_daemon(instance)

    _often(world, (4.0, 30.0), restart)


def nodes_vanish(world: ScalingWorld) -> None:
    """Spot nodes are taken away, and of new ones some never come up."""
    world.never = 0.2
    world.start_s = (5.0, 2 * COLD_S)

    def vanish() -> None:
        if world.instances:
            world.vanish(world.rng.choice(list(world.instances.values())))

    _often(world, (20.0, 80.0), vanish)


def everything(world: ScalingWorld) -> None:
    """Some of all of it at once."""
    many = [fault for name, fault in LEADER_FAULTS.items() if name != "everything"]
    for fault in world.rng.sample(many, 4):
        fault(world)


LEADER_FAULTS: dict[str, Callable[[ScalingWorld], None]] = {
    fault.__name__: fault
    for fault in (
        leader_killed,
        leader_cut_off,
        leader_pauses,
        links_cut,
        split_in_two,
        connector_fails,
        orders_doubled,
        messages_lost,
        daemons_restart,
        nodes_vanish,
        everything,
    )
}


def run_scaling(fault: str, seed: int) -> ScalingVerdict:
    """Runs one fault with one seed. Raises KeyError for a name that is not in the catalogue."""
    world = ScalingWorld(seed, gateways=2 + seed % 2)
    LEADER_FAULTS[fault](world)
    world.run(FAULTS_S)
    return ScalingVerdict(
        fault=fault,
        seed=seed,
        broken=tuple(world.broken),
        starts=world.starts,
        stops=world.stops,
        changes=world.changes,
        woken=world.woken,
        leaderless_s=world.leaderless_s,
    )

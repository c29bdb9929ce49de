"""Moves, and everything that may go wrong while requests are on their way from one node to another. Pure."""

from __future__ import annotations

from collections.abc import Callable

from bench.chaos.virtual.scenario import CUT_OFF_S, SUSPECT_S, WHOLE, ChaosRun, Dice, Scenario, World, joined
from bench.simcluster import Delays, NodeSpec
from bench.simcluster.world import (
    Evicts,
    Fills,
    GatewayRestarts,
    OrphansDropped,
    PredictorDies,
    PredictorReturns,
    RequestsFail,
    Vanishes,
)
from bench.workload.item import WorkloadItem
from gateway.core import events as ev
from gateway.core.moves.config import MovesConfig, TransferConfig
from simcore.types import Outcome

ASKED = 6
"""Moves asked for per request."""
DRAINS = 5
AWAY_S = 3.0
"""How long a node is away at most."""


def _moving(dice: Dice) -> Scenario:
    """Requests that are asked to move again and again, by operators, by nodes that are emptied, and by the rule."""
    rng = dice.rng
    nodes = dice.equal(
        least=3,
        most=4,
        enable_prefix_caching=rng.random() < 0.9,
        max_num_seqs=rng.choice((16, 48)),
        num_blocks=rng.choice((400, 1052)),
        async_scheduling=rng.random() < 0.3,
    )
    items = dice.requests(60, 12.0, output_tokens=(150, 600))
    world: World = []
    for item in items:
        for _ in range(rng.randint(0, 2 * ASKED)):
            at_s = item.arrival_s + rng.expovariate(1 / 4.0)
            asked = ev.MoveAsked(request_id=item.request_id, node_id=rng.choice(nodes).node_id)
            # One in ten is asked for twice.
            world += [(at_s, asked)] * (2 if rng.random() < 0.1 else 1)
    for turn in range(DRAINS):
        # One after the other: with all of them drained nobody could be answered.
        at_s, node_id = items[0].arrival_s + turn + rng.uniform(0.0, 0.5), rng.choice(nodes).node_id
        world += [
            (at_s, ev.DrainAsked(node_id=node_id)),
            (at_s + rng.uniform(0.05, 0.5), ev.DrainAsked(node_id=node_id, undo=True)),
        ]
    transfer = rng.choice((None, None, TransferConfig(), TransferConfig(fixed_s=0.5, s_per_1000_tokens=0.3)))
    return Scenario(
        nodes=nodes,
        items=items,
        world=world,
        moves=MovesConfig(
            rule=rng.choice(("off", "llumnix")),
            options={},
            every_s=rng.choice((0.1, 0.5)),
            rest_s=rng.choice((0.0, 5.0)),
            give_up_s=rng.choice((0.2, 60.0)),
            transfer=transfer,
        ),
        # The link to a node across the world, now and then: what each side hears is old.
        delays=Delays(network_one_way_s=rng.choice((0.0, 0.0002, 0.0002, 0.03, 0.1))),
        policy="least_requests" if rng.random() < 0.5 else "",
    )


def moves(dice: Dice) -> Scenario:
    """Requests move all the time, and nothing else happens: all are answered whole."""
    scenario = _moving(dice)

    def check(run: ChaosRun) -> str:
        return "" if run.moves > 2 else f"only {run.moves} moves"

    scenario.check = check
    return scenario


def prefixes_evicted(dice: Dice) -> Scenario:
    """What stages have made ready goes from the destination's cache before it is needed."""
    scenario = _moving(dice)
    at_s, ends_s = scenario.items[0].arrival_s, scenario.items[-1].arrival_s + 5.0
    while at_s < ends_s:
        at_s += dice.rng.expovariate(5.0)
        scenario.world.append((at_s, Evicts(node_id=dice.rng.choice(scenario.nodes).node_id)))
    return scenario


def movers_die(dice: Dice) -> Scenario:
    """Sources and destinations die, hang, fail requests and stages, turn stages away, and lose their daemons."""
    scenario = _moving(dice)
    rng, nodes = dice.rng, scenario.nodes
    for node in rng.sample(nodes, rng.randint(1, len(nodes))):
        _fail(dice, node, dice.moment(scenario.items), scenario.world)
    scenario.may_end = WHOLE | frozenset(
        {Outcome.NODE_LOST, Outcome.ENGINE_FAILED, Outcome.OVERLOADED, Outcome.NO_NODE}
    )
    return scenario


def _fail(dice: Dice, node: NodeSpec, at_s: float, world: World) -> None:
    rng, node_id = dice.rng, node.node_id
    back_s = at_s + rng.uniform(0.1, AWAY_S)
    match rng.choice(("dies", "hangs", "fails", "fills", "daemon")):
        case "dies":
            world += [(at_s, ev.NodeLost(node_id=node_id, detail="killed")), (back_s, joined(node))]
        case "hangs":
            world += [
                (at_s, Vanishes(node_id=node_id)),
                (at_s + SUSPECT_S, ev.NodeSuspected(node_id=node_id, detail="no word from it")),
                (at_s + CUT_OFF_S, ev.NodeLost(node_id=node_id, detail="cut off")),
                (at_s + CUT_OFF_S + 0.1, joined(node)),
            ]
        case "fails":
            world += [(at_s + i * 0.05, RequestsFail(node_id=node_id, count=rng.randint(1, 8))) for i in range(3)]
        case "fills":
            world += [(at_s, Fills(node_id=node_id, queue_limit=0)), (back_s, Fills(node_id=node_id, queue_limit=None))]
        case "daemon":
            world += [
                (at_s, PredictorDies(node_id=node_id)),
                (at_s + 0.01, ev.NodeLost(node_id=node_id, detail="its daemon died")),
                (at_s + 0.05, OrphansDropped(node_id=node_id)),
                (back_s, PredictorReturns(node_id=node_id)),
            ]


def gateway_killed_while_moving(dice: Dice) -> Scenario:
    """The gateway dies in the middle of moves: nodes abort stages and answers, and what comes after is answered."""
    scenario = _moving(dice)
    at_s = dice.moment(scenario.items)
    scenario.world.append((at_s, GatewayRestarts()))
    scenario.may_end = WHOLE | {Outcome.INTERNAL}
    scenario.must_end = {item.request_id: WHOLE for item in scenario.items if item.arrival_s > at_s}
    return scenario


def clients_leave_while_moving(dice: Dice) -> Scenario:
    """Clients leave at random moments, before, while and after their requests move."""
    scenario = _moving(dice)
    rng = dice.rng
    leaving = rng.sample(scenario.items, 40)
    scenario.world += [(_leaves_s(dice, item), ev.ClientGone(request_id=item.request_id)) for item in leaving]
    scenario.may_end = WHOLE | {Outcome.CLIENT_LEFT}
    return scenario


def _leaves_s(dice: Dice, item: WorkloadItem) -> float:
    return item.arrival_s + dice.rng.expovariate(1 / 4.0)


MOVE_FAULTS: tuple[Callable[[Dice], Scenario], ...] = (
    moves,
    prefixes_evicted,
    movers_die,
    gateway_killed_while_moving,
    clients_leave_while_moving,
)

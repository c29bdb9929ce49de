"""The catalogue: every fault by the name that people, tests and `astrolabe bench chaos` call it. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from bench.chaos.virtual.moves import MOVE_FAULTS
from bench.chaos.virtual.scaling import SCALING_FAULTS
from bench.chaos.virtual.scenario import (
    CUT_OFF_S,
    STEP_TIME,
    SUSPECT_S,
    WHOLE,
    ChaosRun,
    Dice,
    Scenario,
    World,
    alike,
    joined,
)
from bench.simcluster import NodeSpec
from bench.simcluster.world import (
    CacheLies,
    ClockJumps,
    Fills,
    GatewayRestarts,
    Lies,
    OrphansDropped,
    PredictorDies,
    PredictorReturns,
    RequestsFail,
    TraceFreezes,
    Vanishes,
)
from bench.workload.prefix import item_block_hashes
from gateway.core import events as ev
from simcore.types import Outcome

GONE = frozenset({Outcome.NODE_LOST, Outcome.NO_NODE})
LEFT = frozenset({Outcome.CLIENT_LEFT})


def node_killed(dice: Dice) -> Scenario:
    """One node after another dies and comes back, each at a random moment; at least one is always there."""
    nodes = dice.fleet(least=2)
    items = dice.requests(60, 12.0)
    world: World = []
    at_s = dice.moment(items) / 2
    for _ in range(dice.rng.randint(1, 3)):
        victim = dice.rng.choice(nodes)
        back_s = at_s + dice.rng.uniform(0.1, 2.0)
        world += [(at_s, ev.NodeLost(node_id=victim.node_id, detail="killed")), (back_s, joined(victim))]
        at_s = back_s + dice.rng.uniform(0.2, 2.0)
    # Three attempts are allowed: who is hit by every kill may be given up.
    return Scenario(nodes=nodes, items=items, world=world, may_end=WHOLE | {Outcome.NODE_LOST})


def one_node_killed(dice: Dice) -> Scenario:
    """One node dies for good: nobody may notice."""
    nodes = dice.fleet(least=2)
    items = dice.requests(60, 12.0)
    victim = dice.rng.choice(nodes)
    world: World = [(dice.moment(items), ev.NodeLost(node_id=victim.node_id, detail="killed"))]
    return Scenario(nodes=nodes, items=items, world=world)


def _daemon_dies(dice: Dice, node: NodeSpec, at_s: float, back_s: float) -> World:
    """Its session breaks at once. The engine sees it at its next step, later, or works on to the end of each answer."""
    world: World = [
        (at_s, PredictorDies(node_id=node.node_id)),
        (at_s + dice.rng.uniform(0.0, 0.01), ev.NodeLost(node_id=node.node_id, detail="its daemon was killed")),
        (back_s, PredictorReturns(node_id=node.node_id)),
    ]
    noticed_s = dice.rng.choice((0.0, dice.rng.uniform(0.0, 5.0), math.inf))
    if noticed_s < math.inf:
        world.append((at_s + noticed_s, OrphansDropped(node_id=node.node_id)))
    return world


def predictor_killed(dice: Dice) -> Scenario:
    """One daemon after another dies while its engine lives, and a new one finds that engine, busy or not."""
    nodes = dice.fleet(least=2)
    items = dice.requests(80, 12.0)
    world: World = []
    at_s, victims = dice.moment(items) / 2, set()
    for _ in range(dice.rng.randint(1, 3)):
        victim = dice.rng.choice(nodes)
        victims.add(victim.node_id)
        back_s = at_s + dice.rng.uniform(0.1, 3.0)
        world += _daemon_dies(dice, victim, at_s, back_s)
        at_s = back_s + dice.rng.uniform(0.05, 2.0)
    # Long after all this is over, so many come at once that no node may be left out.
    items += dice.burst(10 * len(nodes), max(at_s, items[-1].arrival_s) + 200.0)
    burst_s = items[-1].arrival_s

    def check(run: ChaosRun) -> str:
        served = {node_id for arrival_s, node_id in run.answers if arrival_s == burst_s}
        return f"never used again: {sorted(victims - served)}" if alike(nodes) and victims - served else ""

    # Three attempts are allowed: who is hit by every kill may be given up.
    return Scenario(nodes=nodes, items=items, world=world, check=check, may_end=WHOLE | {Outcome.NODE_LOST})


def all_predictors_killed(dice: Dice) -> Scenario:
    """The daemons of all nodes die at once and new ones come one by one, beside engines that may still be busy."""
    return _all_at_once(dice, (0.1, 3.0), lambda node, at_s, back_s: _daemon_dies(dice, node, at_s, back_s))


def all_nodes_gone(dice: Dice) -> Scenario:
    """All nodes die at once and come back, one by one: what cannot be served is told so, what comes after is served."""
    return _all_at_once(
        dice,
        (0.5, 2.0),
        lambda node, at_s, back_s: [(at_s, ev.NodeLost(node_id=node.node_id, detail="power")), (back_s, joined(node))],
    )


def _all_at_once(dice: Dice, away_s: tuple[float, float], dies: Callable[[NodeSpec, float, float], World]) -> Scenario:
    """`dies` says what befalls a node from its death to its return, for which `away_s` has the least and the most."""
    nodes = dice.fleet(least=1)
    items = dice.requests(80, 10.0)
    at_s = items[30].arrival_s
    back_s = {node.node_id: at_s + dice.rng.uniform(*away_s) for node in nodes}
    world: World = [what for node in nodes for what in dies(node, at_s, back_s[node.node_id])]
    first_s = min(back_s.values())
    must_end = {item.request_id: WHOLE for item in items if item.arrival_s > first_s}
    return Scenario(nodes=nodes, items=items, world=world, may_end=WHOLE | GONE, must_end=must_end)


def _silent(dice: Dice, *, long: bool) -> Scenario:
    nodes = dice.fleet(least=2)
    items = dice.requests(90, 10.0)
    victim, at_s = dice.rng.choice(nodes), dice.moment(items) / 2
    silent_s = dice.rng.uniform(CUT_OFF_S + 0.1, CUT_OFF_S + 4.0)
    node_id = victim.node_id
    world: World = [
        (at_s, Vanishes(node_id=node_id)),
        (at_s + SUSPECT_S, ev.NodeSuspected(node_id=node_id, detail=f"no word from it for {SUSPECT_S:g} s")),
        (at_s + CUT_OFF_S, ev.NodeLost(node_id=node_id, detail="cut off")),
    ]
    if not long:
        world.append((at_s + silent_s, joined(victim)))
    return Scenario(nodes=nodes, items=items, world=world, unheard={node_id: ((at_s + SUSPECT_S, at_s + CUT_OFF_S),)})


def node_hangs(dice: Dice) -> Scenario:
    """A node stops for a while (SIGSTOP) and goes on: its session is cut off, its requests go on elsewhere."""
    return _silent(dice, long=False)


def half_open_connection(dice: Dice) -> Scenario:
    """A node is cut from the network without a word and stays away."""
    return _silent(dice, long=True)


def trace_frozen(dice: Dice) -> Scenario:
    """A node's trace stands still while its engine works; it is seen, used on, and believed again when it moves."""
    nodes = dice.fleet(least=1)
    items = dice.requests(120, 14.0)
    victim, at_s = dice.rng.choice(nodes).node_id, items[20].arrival_s
    thaws_s = items[-20].arrival_s
    world: World = [
        (at_s, TraceFreezes(node_id=victim)),
        (thaws_s, TraceFreezes(node_id=victim, thaws=True)),
    ]

    def check(run: ChaosRun) -> str:
        if "frozen" in run.alarms[victim]:
            return f"{victim} still has an alarm: {run.alarms[victim]}"
        return "" if not alike(nodes) or len(nodes) == 1 or run.nodes.get(victim, 0) else f"{victim} was never used"

    return Scenario(nodes=nodes, items=items, world=world, check=check)


def lying_predictor(dice: Dice) -> Scenario:
    """A node's forecasts are off by a factor, changing now and then; every answer comes all the same."""
    nodes = dice.fleet(least=2)
    items = dice.requests(90, 12.0)
    world: World = [
        (dice.moment(items), Lies(node_id=dice.rng.choice(nodes).node_id, factor=dice.rng.choice((1 / 3, 3.0, 20.0))))
        for _ in range(3)
    ]
    return Scenario(nodes=nodes, items=items, world=world)


def _fair_share(run: ChaosRun, node_id: str, nodes: int, from_s: float, until_s: float) -> str:
    """The complaint if the node got much less or more than the others of what arrived meanwhile."""
    placed = [at for arrival_s, at in run.answers if from_s < arrival_s < until_s]
    share = placed.count(node_id) * nodes / len(placed)
    return "" if 0.3 < share < 2.0 else f"{node_id} got {share:.2f} of its share while nobody believed it"


def lying_cache(dice: Dice) -> Scenario:
    """A node claims to have cached prompts that nobody has seen yet, then tells the truth: its word is dropped, its
    requests are not, it draws no more of them than others, and it is believed again."""
    nodes = dice.equal(least=3, most=4, enable_prefix_caching=True, max_num_seqs=16, num_blocks=1052)
    items = []
    for i, item in enumerate(dice.requests(800, 10.0, output_tokens=(60, 200))):
        # At first no two prompts begin alike, then six beginnings come again and again.
        first_id = 5 * (i if i < 300 else dice.rng.randrange(1000, 1006))
        prefix_ids = tuple(range(first_id, first_id + 5))
        prompt_tokens = item.prompt_tokens + 640
        items.append(
            msgspec.structs.replace(item, prompt_tokens=prompt_tokens, prefix_ids=prefix_ids, prefix_block_tokens=128)
        )
    liar, honest_s = dice.rng.choice(nodes).node_id, items[300].arrival_s
    claimed = tuple([name for item in items[:300] for name in item_block_hashes(item, nodes[0].config)])
    world: World = [
        (items[0].arrival_s, CacheLies(node_id=liar, names=claimed)),
        (honest_s, CacheLies(node_id=liar)),
    ]

    def check(run: ChaosRun) -> str:
        dropped_s = next((at_s for at_s, alarm in run.seen_alarms[liar] if "claims" in alarm), math.inf)
        if dropped_s > honest_s:
            return f"nobody saw that {liar} lies: {run.seen_alarms[liar]}"
        if "claims" in run.alarms[liar]:
            return f"{liar} is not believed again: {run.alarms[liar]}"
        return _fair_share(run, liar, len(nodes), dropped_s, honest_s)

    return Scenario(nodes=nodes, items=items, world=world, check=check, policy="prefix_affinity")


def lying_pace(dice: Dice) -> Scenario:
    """A node tells step times a thousand times too short or too long, then the truth: nobody believes it, it is used as
    if it were like the others, and it is believed again."""
    nodes = dice.equal(least=3)
    items = dice.requests(300, 10.0)
    liar, true = dice.rng.choice(nodes).node_id, STEP_TIME.pace(nodes[0].config)
    factor = dice.rng.choice((1e-3, 1e3))
    told = msgspec.structs.replace(true, step_s=tuple(s * factor for s in true.step_s))
    lied_s, honest_s = items[50].arrival_s, items[250].arrival_s
    world: World = [
        (lied_s, ev.PaceTold(node_id=liar, pace=told)),
        (honest_s, ev.PaceTold(node_id=liar, pace=true)),
    ]

    def check(run: ChaosRun) -> str:
        if not any("step times" in alarm and lied_s <= at_s < honest_s for at_s, alarm in run.seen_alarms[liar]):
            return f"nobody saw that {liar} lies: {run.seen_alarms[liar]}"
        if "step times" in run.alarms[liar]:
            return f"{liar} is not believed again: {run.alarms[liar]}"
        return _fair_share(run, liar, len(nodes), lied_s, honest_s)

    return Scenario(nodes=nodes, items=items, world=world, check=check, policy="estimated_latency")


def engine_fails(dice: Dice) -> Scenario:
    """An engine fails requests in the middle, several times in a row."""
    nodes = dice.fleet(least=3)
    items = dice.requests(80, 12.0)
    victim = dice.rng.choice(nodes).node_id
    world: World = [
        (dice.moment(items), RequestsFail(node_id=victim, count=dice.rng.randint(1, 6)))
        for _ in range(dice.rng.randint(1, 4))
    ]
    return Scenario(nodes=nodes, items=items, world=world)


def full_queue(dice: Dice) -> Scenario:
    """Some nodes turn requests away while their queue is full: pushback, not failure; nobody is ejected for it."""
    nodes = dice.fleet(least=2)
    items = dice.requests(80, 20.0)
    full = dice.rng.sample(nodes, dice.rng.randint(1, len(nodes)))
    world: World = [(0.0, Fills(node_id=node.node_id, queue_limit=dice.rng.randint(0, 3))) for node in full]

    def check(run: ChaosRun) -> str:
        ejected = [
            f"{n}: {alarm}" for n, alarms in run.seen_alarms.items() for _, alarm in alarms if "ejected" in alarm
        ]
        return f"ejected for being full: {ejected[:3]}" if ejected else ""

    may_end = WHOLE if len(full) < len(nodes) else WHOLE | {Outcome.OVERLOADED}
    return Scenario(nodes=nodes, items=items, world=world, check=check, may_end=may_end | {Outcome.OVERLOADED})


def gateway_killed(dice: Dice) -> Scenario:
    """The gateway dies and starts again: what ran through it is lost to its clients, and nothing else ever after."""
    nodes = dice.fleet(least=1)
    items = dice.requests(60, 10.0)
    at_s = dice.moment(items)
    must_end = {item.request_id: WHOLE for item in items if item.arrival_s > at_s}
    return Scenario(
        nodes=nodes,
        items=items,
        world=[(at_s, GatewayRestarts())],
        may_end=WHOLE | {Outcome.INTERNAL},
        must_end=must_end,
    )


def clients_leave(dice: Dice) -> Scenario:
    """A hundred clients leave, each at a random moment of its own: before, while and after its answer comes."""
    nodes = dice.fleet(least=1)
    items = dice.requests(100, 30.0)
    ends_s = items[-1].arrival_s + 5.0
    world: World = [
        (dice.rng.uniform(item.arrival_s, ends_s), ev.ClientGone(request_id=item.request_id)) for item in items
    ]
    return Scenario(nodes=nodes, items=items, world=world, may_end=WHOLE | LEFT)


def slow_client(dice: Dice) -> Scenario:
    """The gateway expels some clients that read too slowly; the others notice nothing."""
    nodes = dice.fleet(least=1)
    items = dice.requests(60, 10.0)
    slow = dice.rng.sample(items, 10)
    world: World = [
        (
            item.arrival_s + dice.rng.uniform(0.0, 3.0),
            ev.ClientGone(request_id=item.request_id, outcome=Outcome.CLIENT_SLOW, detail="reads too slowly"),
        )
        for item in slow
    ]
    must_end = {item.request_id: WHOLE | {Outcome.CLIENT_SLOW} for item in slow}
    return Scenario(nodes=nodes, items=items, world=world, must_end=must_end)


def clock_jumps(dice: Dice) -> Scenario:
    """The machine sleeps for a while: deadlines pass, nothing else happens to anybody."""
    nodes = dice.fleet(least=1)
    items = dice.requests(60, 10.0)
    hurried = dice.rng.sample(items, 20)
    return Scenario(
        nodes=nodes,
        items=items,
        world=[(dice.moment(items), ClockJumps(by_s=dice.rng.choice((0.5, 30.0, 3600.0))))],
        dress={item.request_id: {"slo": ev.Slo(deadline_s=60.0)} for item in hurried},
        must_end={item.request_id: WHOLE | {Outcome.DEADLINE} for item in hurried},
    )


def deadlines(dice: Dice) -> Scenario:
    """Tight deadlines under kills: each ends in time or with `deadline`, whatever is tried again meanwhile."""
    scenario = node_killed(dice)
    scenario.dress = {
        item.request_id: {"slo": ev.Slo(deadline_s=dice.rng.uniform(0.05, 3.0))} for item in scenario.items
    }
    scenario.may_end = scenario.may_end | {Outcome.DEADLINE}
    return scenario


def malformed_requests(dice: Dice) -> Scenario:
    """Requests that no node can serve, between good ones, while a node dies: they are refused and harm nobody."""
    scenario = one_node_killed(dice)
    bad: list[dict[str, object]] = [
        {"prompt_tokens": 0},
        {"prompt_tokens": 10_000_000},
        {"max_output_tokens": 0},
        {"policy": "no_such_policy"},
        {"model": "no-such-model"},
        {"slo": ev.Slo(deadline_s=-1.0)},
        {"slo": ev.Slo(deadline_s=math.nan)},
    ]
    chosen = dice.rng.sample(scenario.items, 20)
    scenario.dress = {item.request_id: dice.rng.choice(bad) for item in chosen}
    scenario.must_end = {item.request_id: frozenset({Outcome.INVALID}) for item in chosen}
    return scenario


def resume_modes(dice: Dice) -> Scenario:
    """A node dies; who may not go on elsewhere is told so with what it has, everybody else goes on."""
    scenario = one_node_killed(dice)
    dress: dict[str, dict[str, object]] = {}
    must_end: dict[str, frozenset[Outcome]] = {}
    for item in scenario.items:
        resume = dice.rng.choice(("exact", "best_effort", "off"))
        continuation = dice.rng.choice(("exact", "approximate", "impossible"))
        dress[item.request_id] = {"resume": resume, "continuation": continuation}
        goes_on = continuation == "exact" or (continuation == "approximate" and resume == "best_effort")
        if not goes_on or resume == "off":
            must_end[item.request_id] = WHOLE | {Outcome.NODE_LOST}
    scenario.dress, scenario.must_end = dress, must_end
    return scenario


def slow_node(dice: Dice) -> Scenario:
    """One node is five times slower than the others, and nobody was told: it gets less than half of what they get,
    though their seats are nearly all taken."""
    nodes = dice.equal(least=4, most=4, max_num_seqs=16, num_blocks=1052)
    knots = STEP_TIMES_SLOWER
    slow = msgspec.structs.replace(nodes[0].step_time, name="chaos/slow", **knots)
    nodes[0] = NodeSpec(node_id="n0", config=nodes[0].config, step_time=slow)
    items = dice.requests(400, 12.0)

    def check(run: ChaosRun) -> str:
        fast = sum(count for node_id, count in run.nodes.items() if node_id != "n0") / 3
        share = run.nodes.get("n0", 0) / fast
        return "" if share < 0.5 else f"the slow node completed {share:.2f} of what a fast one did"

    return Scenario(nodes=nodes, items=items, check=check, policy="min_total_latency")


def everything_at_once(dice: Dice) -> Scenario:
    """Kills, hangs, failures, lies, frozen traces, full queues and leaving clients, all in one run."""
    nodes = dice.fleet(least=3)
    first = nodes[0].node_id
    items = dice.requests(120, 15.0)
    world: World = []
    for maker in (engine_fails, lying_predictor, trace_frozen, full_queue):
        world += [
            (at_s, what)
            for at_s, what in maker(dice).world
            if getattr(what, "node_id", first) in {node.node_id for node in nodes}
        ]
    at_s = dice.moment(items)
    world += [(at_s, ev.NodeLost(node_id=first, detail="killed")), (at_s + 1.0, joined(nodes[0]))]
    world += [
        (item.arrival_s + dice.rng.expovariate(1.0), ev.ClientGone(request_id=item.request_id))
        for item in dice.rng.sample(items, 30)
    ]
    failures = {Outcome.NODE_LOST, Outcome.ENGINE_FAILED, Outcome.OVERLOADED}
    return Scenario(nodes=nodes, items=items, world=world, may_end=WHOLE | LEFT | failures)


STEP_TIMES_SLOWER: dict[str, object] = {
    "constant_s": 0.025,
    "prefill_work_s_per_token2": 5e-8,
    "decode_kv_s_per_token": 2e-6,
    "per_seq_s": 5e-5,
    "dense_knots_s": (0.09, 0.115, 0.45, 0.9),
}

FAULTS: dict[str, Callable[[Dice], Scenario]] = {
    maker.__name__: maker
    for maker in (
        node_killed,
        one_node_killed,
        predictor_killed,
        all_predictors_killed,
        node_hangs,
        half_open_connection,
        trace_frozen,
        lying_predictor,
        lying_cache,
        lying_pace,
        engine_fails,
        full_queue,
        all_nodes_gone,
        gateway_killed,
        clients_leave,
        slow_client,
        clock_jumps,
        deadlines,
        malformed_requests,
        resume_modes,
        slow_node,
        everything_at_once,
        *SCALING_FAULTS,
        *MOVE_FAULTS,
    )
}

"""Faults in virtual time: a scenario per seed, run through the real router, and what must hold in all of them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from bench.chaos.virtual.faults import FAULTS
from bench.chaos.virtual.scaling import complaints_of
from bench.chaos.virtual.scenario import WHOLE, ChaosRun, Dice, Scenario
from bench.simcluster import NodeSpec, SimCluster
from gateway.core import events as ev
from gateway.core.queue.queue import HoldConfig
from gateway.core.router import RouterConfig

POLICIES = ("min_total_latency", "min_new_request_latency", "least_requests", "llumnix_freeness", "power_of_two")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one run broke; nothing, if all is well."""

    fault: str
    seed: int
    broken: tuple[str, ...]
    outcomes: dict[str, int]
    resumed: int
    """Answers that went on at another node."""
    moves: int = 0


class _Watch:
    """Sees every event and action of a run and notes what must not be."""

    def __init__(self, scenario: Scenario) -> None:
        self.broken: list[str] = []
        self.resumed = 0
        self.alarms: dict[str, list[tuple[float, str]]] = {}
        self.cluster: SimCluster | None = None
        self._unheard = scenario.unheard
        self._down: set[str] = set()
        self._live: set[str] = set()
        self._leaving: set[str] = set()
        self._sent: Counter[str] = Counter()
        """Dispatches per node in its present session."""

    def __call__(self, at_s: float, event: ev.AnyEvent, actions: Sequence[ev.AnyAction]) -> None:
        match event:
            case ev.NodeLost():
                self._down.add(event.node_id)
            case ev.NodeJoined():
                self._down.discard(event.node_id)
                self._sent[event.node_id] = 0
            case ev.LoadNoted() if event.dispatch_seq > self._sent[event.load.node_id]:
                self.broken.append(f"{at_s:.3f} s: {event.load.node_id} counts dispatches of another session")
            case ev.RetirementTold():
                (self._leaving.add if event.retiring else self._leaving.discard)(event.node_id)
            case ev.NodeRemoved():
                self._leaving.discard(event.node_id)
            case ev.Arrived():
                self._live.add(event.request.request_id)
        for action in actions:
            match action:
                case ev.Dispatch():
                    self._dispatched(at_s, action)
                case ev.AskForecast() if action.node_id in self._down:
                    self.broken.append(f"{at_s:.3f} s: asked {action.node_id}, which is down")
                case ev.Finish():
                    if action.request_id not in self._live:
                        self.broken.append(f"{at_s:.3f} s: {action.request_id} ended twice or never came")
                    self._live.discard(action.request_id)
        assert self.cluster is not None
        for node in self.cluster.router.nodes():
            seen = self.alarms.setdefault(node.node_id, [])
            if (seen[-1][1] if seen else "") != node.alarm:
                seen.append((at_s, node.alarm))

    def _dispatched(self, at_s: float, action: ev.Dispatch) -> None:
        self._sent[action.node_id] = action.dispatch_seq
        if action.node_id in self._down:
            self.broken.append(f"{at_s:.3f} s: {action.request_id} went to {action.node_id}, which is down")
        if action.node_id in self._leaving:
            self.broken.append(f"{at_s:.3f} s: {action.request_id} went to {action.node_id}, which is to leave")
        for from_s, to_s in self._unheard.get(action.node_id, ()):
            others = {node.node_id for node in self.cluster.router.nodes()} if self.cluster is not None else set()
            if from_s < at_s < to_s and others - self._down - {action.node_id}:
                self.broken.append(f"{at_s:.3f} s: {action.request_id} went to {action.node_id}, silent for long")
        if action.resumed is not None and not action.stage:
            self.resumed += 1


def run(fault: str, seed: int, nodes: Sequence[NodeSpec] = ()) -> Verdict:
    """Runs one fault with one seed, on these nodes or on some that the seed draws.

    Raises KeyError for a name that is not in the catalogue, ValueError for too few nodes.
    """
    dice = Dice(seed, nodes)
    scenario = FAULTS[fault](dice)
    watch = _Watch(scenario)
    config = RouterConfig(
        policy=scenario.policy or dice.rng.choice(POLICIES),
        seed=seed,
        hold=HoldConfig(when=dice.rng.choice(("never", "never", "forecast", "always"))),
        moves=scenario.moves,
    )
    cluster = SimCluster(
        scenario.nodes,
        config,
        scenario.delays,
        max_output_tokens=1000,
        observe=watch,
        dress=lambda shape: msgspec.structs.replace(shape, **scenario.dress.get(shape.request_id, {})),
        scaled=scenario.scaled,
    )
    watch.cluster = cluster
    broken = watch.broken
    try:
        done = cluster.run(scenario.items, scenario.world)
        results, scaling = done.results, done.scaling
        moves = 0 if done.moves is None else done.moves.done
        cluster.router.check_quiescent()
    except AssertionError as failed:
        broken.append(f"{type(failed).__name__}: {failed}")
        results, scaling, moves = [], None, 0
    if scenario.scaled is not None and scaling is not None:
        broken += complaints_of(scenario.scaled, scaling, cluster.followed)
    outcomes: Counter[str] = Counter()
    complete: Counter[str] = Counter()
    answers: list[tuple[float, str]] = []
    lengths = {item.request_id: item.output_tokens for item in scenario.items}
    for row in results:
        outcomes[row.outcome.value] += 1
        allowed = scenario.must_end.get(row.request_id, scenario.may_end)
        if row.outcome not in allowed:
            names = sorted(outcome.value for outcome in allowed)
            broken.append(f"{row.request_id} ended with {row.outcome.value} ({row.detail}), not one of {names}")
        if row.outcome in WHOLE:
            complete[row.node_id] += 1
            answers.append((row.arrival_s, row.node_id))
            if row.output_tokens != lengths[row.request_id]:
                broken.append(f"{row.request_id} got {row.output_tokens} tokens of {lengths[row.request_id]}")
        elif row.output_tokens > lengths[row.request_id]:
            broken.append(f"{row.request_id} got {row.output_tokens} tokens, more than {lengths[row.request_id]}")
    left = cluster.busy_nodes()
    if left:
        broken.append(f"engines that still work for nobody: {left}")
    free = [(spec.config.num_blocks, free) for spec, free in zip(cluster.specs(), cluster.free_blocks(), strict=True)]
    if any(have != want for want, have in free):
        broken.append(f"KV blocks that nobody holds and nobody has: {free}")
    if scenario.check is not None and not broken:
        statuses = cluster.router.nodes()
        complaint = scenario.check(
            ChaosRun(
                nodes=complete,
                answers=answers,
                alarms={node.node_id: node.alarm for node in statuses},
                seen_alarms={node_id: tuple(seen) for node_id, seen in watch.alarms.items()},
                scaling=scaling,
                moves=moves,
            )
        )
        if complaint:
            broken.append(complaint)
    return Verdict(
        fault=fault, seed=seed, broken=tuple(broken), outcomes=dict(outcomes), resumed=watch.resumed, moves=moves
    )

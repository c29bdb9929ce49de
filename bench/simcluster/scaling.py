"""A simulated cluster that grows and shrinks: the live gateway's own scaler, and the world that it acts on. Pure.

Nothing of the scaler is modelled: `gateway.core.scale.scaler.Scaler` hears what it hears live. What is modelled is the
world behind its connector: how long starts take, that some fail, that nodes are taken away, and what is paid for.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from bench.measure.groups import HOUR_S
from bench.measure.scaling import Bill, GroupCourse, ScalingResult, ScalingTimeline
from bench.simcluster.start_time import StartTime
from bench.simcluster.world import NodeSpec
from gateway.core import events as router_ev
from gateway.core.router import Router
from gateway.core.scale import events as ev
from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.scaler import ScaleDecision, Scaler
from gateway.core.scale.seen import fleet_seen
from gateway.core.scale.watch import RequestWatch

STUCK_S = HOUR_S
"""Requests are held and none has ended for so long: none will."""


StartFailure = Literal["refused", "breaks", "never", "stranger"]
"""Refused at once; broken while it starts; never ready, and nobody says so; ready, but serving another model."""


class ScaledGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes of one group, and the world that they are started in."""

    node: NodeSpec
    """What each of them is; its id is theirs to have."""
    start_time: StartTime = StartTime()
    nodes: int = 1
    """Serving when the run begins."""
    failed_starts: float = 0.0
    """Share of the starts that come to nothing, in one of the ways of `failures`, each as often."""
    failures: tuple[StartFailure, ...] = ("refused", "breaks", "never")
    vanish_s: float | None = None
    """Spot nodes: mean seconds from the wish for one to its being taken away, exponential. None: never."""


class ScaledFleet(msgspec.Struct, frozen=True, kw_only=True):
    """All that is scaled, and by what."""

    config: ScaleConfig
    groups: Mapping[str, ScaledGroup]
    """By the names of the configuration's groups."""
    seed: int = 0
    """Of start-up times, failed starts and vanishing nodes."""

    def __post_init__(self) -> None:
        names = [group.name for group in self.config.groups]
        if sorted(names) != sorted(self.groups):
            raise ValueError(f"the scaler has the groups {names}, the world {list(self.groups)}")
        for name, group in self.groups.items():
            if not 0 <= group.failed_starts <= 1:
                raise ValueError(f"group {name!r}: failed_starts is a share, got {group.failed_starts:g}")
            if group.nodes < 0:
                raise ValueError(f"group {name!r}: {group.nodes} nodes to begin with; give 0 or more")
            if group.vanish_s is not None and not group.vanish_s > 0:
                raise ValueError(f"group {name!r}: nodes vanish after {group.vanish_s:g} s; give seconds above 0")

    def config_of_nodes(self) -> ScaleConfig:
        """The scaler's configuration with model, engine and pace of each group."""
        groups = []
        for group in self.config.groups:
            spec = self.groups[group.name].node
            engine = group.engine or spec.config
            pace = group.pace or spec.step_time.pace(engine)
            model = group.model or engine.model
            groups.append(msgspec.structs.replace(group, model=model, engine=engine, pace=pace))
        return msgspec.structs.replace(self.config, groups=tuple(groups))

    def first_nodes(self) -> list[NodeSpec]:
        """Those that serve when the run begins."""
        return [
            msgspec.structs.replace(group.node, node_id=f"{name}-{index}")
            for name, group in self.groups.items()
            for index in range(group.nodes)
        ]


class Machine(msgspec.Struct, kw_only=True, eq=False):
    """What somebody pays for."""

    node_id: str
    group: str
    asked_s: float
    ready_s: float | None = None
    fate: Literal["comes"] | StartFailure = "comes"
    state: Literal["starting", "serving", "gone"] = "starting"
    detail: str = ""
    """What its connector says is wrong with it."""


class Tick(NamedTuple):
    """The scaler decides."""

    of_gateway: int


class Started(NamedTuple):
    """A start comes to its end, whatever that is."""

    machine: Machine


class TakenAway(NamedTuple):
    """A spot node vanishes."""

    machine: Machine


class ConnectorFails(msgspec.Struct, frozen=True, kw_only=True):
    """A connector that cannot do its work; with empty `how` it can again.

    `list`: it does not say what runs. `start`, `stop`: every start and stop fails. `forgets`: a start fails as far as
    it knows, and is carried out all the same. `hides`: it leaves out every second node of what runs. `invents`: it
    names nodes that are not there.
    """

    how: tuple[Literal["list", "start", "stop", "forgets", "hides", "invents"], ...] = ()


ScalingEvent = Tick | Started | TakenAway | ConnectorFails


class ScaledStage(Protocol):
    """The cluster, as far as its scaler acts on it."""

    @property
    def router(self) -> Router:
        """The gateway's."""

    @property
    def ahead_s(self) -> float:
        """By how much the gateway's clock has jumped."""

    @property
    def unfinished(self) -> bool:
        """Whether a request has not ended, or is yet to come."""

    @property
    def ended(self) -> int:
        """Requests that have ended."""

    def tell_router(self, event: router_ev.AnyEvent, at_s: float) -> None:
        """The router hears it, and its wishes are carried out."""

    def later(self, at_s: float, event: ScalingEvent) -> None:
        """The event comes back then."""

    def add(self, spec: NodeSpec, at_s: float) -> None:
        """A node joins."""

    def take_away(self, node_id: str, at_s: float) -> None:
        """A node and all that is on it are gone; the router hears of it."""

    def is_working(self, node_id: str) -> bool:
        """Whether its engine has requests."""


class ScaledNodes:
    """The nodes of a cluster that may be started and stopped, with the scaler that decides."""

    def __init__(self, fleet: ScaledFleet, stage: ScaledStage) -> None:
        self.fleet = fleet
        self.machines: dict[str, Machine] = {}
        """Those that there are, by the names of their nodes."""
        self.retiring: set[str] = set()
        """Nodes that are to leave: each knows it itself, so no gateway that restarts can forget it."""
        self.fails: frozenset[str] = frozenset()
        """What the connector cannot do (`ConnectorFails`)."""
        self._config = fleet.config_of_nodes()
        self._stage = stage
        self._rng = random.Random(f"{fleet.seed}/scaled nodes")
        self._gateway = 0
        self._new_gateway()
        self._timeline = ScalingTimeline(groups={name: GroupCourse() for name in fleet.groups})
        self._decisions: list[ScaleDecision] = []
        self._bills: list[Bill] = []
        self._refused: set[tuple[str, float]] = set()
        """Nodes that could not be stopped, and since when they are paid for."""
        self._began_s = 0.0
        self._starts = self._failed = self._stops = self._vanished = self._peak = self._hidden = 0
        self._last_end = (-1, 0.0)
        """Requests that have ended, and since when so many have."""

    def _new_gateway(self) -> None:
        self.scaler = Scaler(self._config)
        self.watch = RequestWatch(self.scaler.handle)
        self.saw = self.watch.saw
        """Every event of the router goes here, with what it answered and when on the gateway's clock."""

    def begin(self, at_s: float) -> None:
        """The first nodes have joined."""
        self._began_s = at_s
        for name, group in self.fleet.groups.items():
            for index in range(group.nodes):
                machine = self._machine(f"{name}-{index}", name, at_s)
                machine.state, machine.ready_s = "serving", at_s
        self._expect(at_s)
        self._mark(at_s)
        self._stage.later(at_s + self._config.tick_s, Tick(self._gateway))

    def gateway_restarted(self, at_s: float) -> None:
        """A new gateway hears from the nodes themselves which of them are to leave; of the scaler nothing is left."""
        self._gateway += 1
        self._new_gateway()
        for node_id in sorted(self.retiring):
            self._stage.tell_router(router_ev.RetirementTold(node_id=node_id, retiring=True), at_s)
        self._expect(at_s)
        self._stage.later(at_s + self._config.tick_s, Tick(self._gateway))

    def happen(self, event: ScalingEvent, at_s: float) -> None:
        """Something that was to come has come. After the last answer nothing counts any more."""
        if not self._stage.unfinished:
            return
        match event:
            case Tick():
                if event.of_gateway == self._gateway:
                    self._tick(at_s)
            case Started():
                self._started(event.machine, at_s)
            case TakenAway():
                self._taken_away(event.machine, at_s)
            case ConnectorFails():
                self.fails = frozenset(event.how)

    def finish(self, at_s: float) -> ScalingResult:
        """What came of it; the run ended then, and what there is still is paid for until then."""
        self._mark(at_s)
        for machine in list(self.machines.values()):
            self._gone(machine, at_s)
        node_s = dict.fromkeys(self.fleet.groups, 0.0)
        for bill in self._bills:
            node_s[bill.group] += bill.gone_s - bill.asked_s
        prices = {group.name: group.price_per_hour for group in self._config.groups}
        return ScalingResult(
            began_s=self._began_s,
            ended_s=at_s,
            node_s=node_s,
            cost=sum(prices[name] * seconds / HOUR_S for name, seconds in node_s.items()),
            starts=self._starts,
            failed_starts=self._failed,
            stops=self._stops,
            stops_refused=len(self._refused),
            nodes_hidden=self._hidden,
            vanished=self._vanished,
            peak_nodes=self._peak,
            timeline=self._timeline,
            bills=self._bills,
            decisions=self._decisions,
        )

    # --- a tick -------------------------------------------------------------------------------------------------------

    def _tick(self, at_s: float) -> None:
        stage, scaler = self._stage, self.scaler
        now_s = at_s + stage.ahead_s
        scaler.handle(self._listed(), now_s)
        seen = fleet_seen(
            stage.router, now_s, retiring=self.retiring, is_empty=lambda node_id: not stage.is_working(node_id)
        )
        self._check_progress(seen.held, at_s)
        actions = scaler.handle(seen, now_s)
        if actions and scaler.latest is not None:
            self._decisions.append(scaler.latest)
            self._carry_out(actions, at_s)
        self._expect(at_s)
        self._mark(at_s, held=seen.held, running=sum(node.outstanding for node in seen.nodes))
        stage.later(at_s + self._config.tick_s, Tick(self._gateway))

    def _check_progress(self, held: int, at_s: float) -> None:
        """Raises ValueError when no request will ever end."""
        ended, since_s = self._last_end
        if ended != self._stage.ended or not held:
            self._last_end = (self._stage.ended, at_s)
        elif at_s - since_s > STUCK_S:
            raise ValueError(
                f"{held} requests have waited for a node for an hour and none starts: let fewer starts fail, or keep "
                "at least one node"
            )

    def _expect(self, at_s: float) -> None:
        expected = self.scaler.expected(at_s + self._stage.ahead_s)
        self._stage.tell_router(router_ev.NodesExpected(nodes=expected), at_s)

    def _listed(self) -> ev.NodesListed | ev.ListFailed:
        if "list" in self.fails:
            return ev.ListFailed(detail="no answer")
        there = [ev.ListedNode(node_id=m.node_id, group=m.group, detail=m.detail) for m in self.machines.values()]
        if "hides" in self.fails:
            self._hidden = max(self._hidden, len(there) // 2)
            there = there[::2]
        if "invents" in self.fails:
            there += [
                ev.ListedNode(node_id=f"{name}-{90 + i}", group=name) for name in self.fleet.groups for i in range(2)
            ]
        return ev.NodesListed(nodes=tuple(there))

    def _carry_out(self, actions: Sequence[ev.AnyScaleAction], at_s: float) -> None:
        for action in actions:
            match action:
                case ev.StartNode():
                    self._start(action, at_s)
                case ev.StopNode():
                    self._stop(action, at_s)
                case ev.RetireNode():
                    self._retire(action, at_s)

    def _start(self, action: ev.StartNode, at_s: float) -> None:
        if action.node_id in self.machines:
            return
        self._starts += 1
        group = self.fleet.groups[action.group]
        fate: Literal["comes"] | StartFailure = "comes"
        if self._rng.random() < group.failed_starts:
            fate = self._rng.choice(group.failures)
        takes_s = group.start_time.draw(self._rng)
        if fate != "comes" or "start" in self.fails:
            self._failed += 1
        if fate == "refused" or "start" in self.fails:
            self._tell(ev.StartFailed(node_id=action.node_id, detail="no machine can be had"), at_s)
            return
        machine = self._machine(action.node_id, action.group, at_s)
        machine.fate = fate
        if fate != "never":
            self._stage.later(at_s + takes_s, Started(machine))
        if "forgets" in self.fails:
            self._tell(ev.StartFailed(node_id=action.node_id, detail="no answer in time"), at_s)

    def _stop(self, action: ev.StopNode, at_s: float) -> None:
        machine = self.machines.get(action.node_id)
        if machine is None:
            return
        if "stop" in self.fails:
            self._refused.add((machine.node_id, machine.asked_s))
            self._tell(ev.StopFailed(node_id=action.node_id, detail="no answer in time"), at_s)
            return
        if machine.state == "serving":
            status = next((node for node in self._stage.router.nodes() if node.node_id == machine.node_id), None)
            up = status is not None and status.status != "down"
            cut = status is not None and (status.in_flight or (up and self._stage.is_working(machine.node_id)))
            assert not cut, f"{machine.node_id} is stopped with requests on it"
            self._stage.take_away(machine.node_id, at_s)
        self._stops += 1
        self._gone(machine, at_s)

    def _retire(self, action: ev.RetireNode, at_s: float) -> None:
        machine = self.machines.get(action.node_id)
        if machine is None or machine.state != "serving":
            return
        if action.undo:
            self.retiring.discard(action.node_id)
        else:
            self.retiring.add(action.node_id)
        self._stage.tell_router(router_ev.RetirementTold(node_id=action.node_id, retiring=not action.undo), at_s)

    # --- machines -----------------------------------------------------------------------------------------------------

    def _machine(self, node_id: str, group: str, at_s: float) -> Machine:
        machine = self.machines[node_id] = Machine(node_id=node_id, group=group, asked_s=at_s)
        self._peak = max(self._peak, len(self.machines))
        vanish_s = self.fleet.groups[group].vanish_s
        if vanish_s is not None:
            self._stage.later(at_s + self._rng.expovariate(1.0 / vanish_s), TakenAway(machine))
        return machine

    def _started(self, machine: Machine, at_s: float) -> None:
        if machine.state != "starting":
            return
        if machine.fate == "breaks":
            machine.detail = "it ended while it started"
            return
        machine.state, machine.ready_s = "serving", at_s
        node = self.fleet.groups[machine.group].node
        config = node.config
        if machine.fate == "stranger":
            config = msgspec.structs.replace(config, model=f"not {config.model}")
        self._stage.add(msgspec.structs.replace(node, node_id=machine.node_id, config=config), at_s)
        self._mark(at_s)

    def _taken_away(self, machine: Machine, at_s: float) -> None:
        if machine.state == "gone":
            return
        self._vanished += 1
        if machine.state == "serving":
            self._stage.take_away(machine.node_id, at_s)
        self._gone(machine, at_s)
        self._mark(at_s)

    def _gone(self, machine: Machine, at_s: float) -> None:
        self._bills.append(
            Bill(
                node_id=machine.node_id,
                group=machine.group,
                asked_s=machine.asked_s,
                ready_s=machine.ready_s,
                gone_s=at_s,
            )
        )
        machine.state = "gone"
        self.retiring.discard(machine.node_id)
        del self.machines[machine.node_id]

    def _tell(self, event: ev.AnyScaleEvent, at_s: float) -> None:
        self.scaler.handle(event, at_s + self._stage.ahead_s)

    def _mark(self, at_s: float, *, held: int | None = None, running: int | None = None) -> None:
        timeline = self._timeline
        wanted = self.scaler.wanted()
        for name, course in timeline.groups.items():
            own = [machine for machine in self.machines.values() if machine.group == name]
            starting = sum(machine.state == "starting" for machine in own)
            draining = sum(machine.node_id in self.retiring for machine in own)
            # Before the first decision nothing is wanted but what there is.
            course.wanted.append(len(own) if self.scaler.latest is None else wanted[name])
            course.starting.append(starting)
            course.serving.append(len(own) - starting - draining)
            course.draining.append(draining)
        timeline.at_s.append(at_s)
        # What came between two ticks has changed neither by itself.
        timeline.held.append((timeline.held or [0])[-1] if held is None else held)
        timeline.running.append((timeline.running or [0])[-1] if running is None else running)

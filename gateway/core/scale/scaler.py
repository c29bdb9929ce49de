"""The scaler: events in, actions out. Pure; `now_s` is the caller's clock, and events come in its order.

Owns the life of every node that may be started or stopped: asked for, late, given up, serving, to leave, taken back,
gone. How many there should be is the rule's to say (`rule.ScalingRule`); that nothing is cut off, paid for twice or
forgotten is seen to here, the same for all rules. The live gateway and the simulated cluster drive the same class.

What runs is what the connector lists, and no memory of ours: a leader that takes over needs nothing of the one before.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from gateway.core.events import ExpectedNode
from gateway.core.scale import events as ev
from gateway.core.scale.config import ScaleConfig, ScaleGroup, check
from gateway.core.scale.fleet import FleetState, GroupState, SeenNode, StartingNode
from gateway.core.scale.rule import ScalingRule, Wish
from gateway.core.scale.rules.registry import make_rule
from gateway.core.scale.start_times import StartTimes

KEPT_DECISIONS = 256
AGAIN_S = 30.0
"""After so long a stop is asked for once more, should the node still be there."""
FIRST_WAIT_S = 10.0
LONGEST_WAIT_S = 600.0
"""Between starts that fail: twice as long after each."""
LATE = 3.0
"""Times its usual start after which a node is given up."""
JUMP_TICKS = 10
"""So many ticks missed at once are a clock that has jumped or a gateway that stood still: what was seen is old."""


class ScaleDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What was wanted at one tick and why, for people and for the record."""

    now_s: float
    rule: str
    had: dict[str, int]
    """Nodes that served or started, per group."""
    wanted: dict[str, int]
    """What the rule asked for, before bounds."""
    actions: tuple[ev.AnyScaleAction, ...]
    seen: dict[str, float]
    """The numbers that the rule went by."""
    why: str
    held_back: str = ""
    """Why nothing was done although something was wanted; empty when it was."""
    shortfall: str = ""


class _Managed(msgspec.Struct, kw_only=True):
    """A node that may be stopped."""

    node_id: str
    group: str
    since_s: float
    """Since when it is expected: asked for, first listed, or lost."""
    listed: bool
    ours: bool
    """This scaler asked for it: then it is known what its start took."""
    asked_as: str = ""
    """By which name, where it has another one now."""
    came_up: bool = False
    has_served: bool = False
    """It was up once: that it is gone is no failed start."""
    missing: bool = False
    """The last list lacks it, though it was there before."""
    is_wrong: bool = False
    """It serves another model than its group should."""
    leaving: bool | None = None
    """It was asked to retire (True) or to serve again (False) and has not said yet that it does."""
    given_up: bool = False
    why: Literal["left", "given_up", "not_wanted"] = "left"
    stopping_s: float | None = None
    """When a stop was last asked for."""
    detail: str = ""


class Scaler:
    """Decides for the groups of one fleet.

    Raises ScaleError for a configuration that cannot be, an unknown rule, or options that it does not have.
    """

    def __init__(
        self,
        config: ScaleConfig,
        *,
        leads: bool = True,
        advises: bool = False,
        rule: ScalingRule | None = None,
        on_defect: Callable[[Exception], object] | None = None,
    ) -> None:
        """`advises`: what is wanted is said and never done. `rule`: one of the caller's own instead of the configured
        one. `on_defect` hears what the rule raises at a tick, which changes nothing then; None: it is raised."""
        check(config)
        self.config = config
        self.fleet: FleetState | None = None
        """At the last tick."""
        self._advises = advises
        self._on_defect = on_defect
        self.decisions: deque[ScaleDecision] = deque(maxlen=KEPT_DECISIONS)
        """Those that changed something or wanted to, oldest first."""
        self.latest: ScaleDecision | None = None
        """Of the last tick."""
        self.leads = leads
        self._is_alone = True
        self._rule_ready = True
        self._groups = {group.name: group for group in config.groups}
        self._rule = rule or make_rule(config)
        self._times = {group.name: StartTimes(group.cold_start_s) for group in config.groups}
        self._blocked_s = dict.fromkeys(self._groups, -math.inf)
        self._nodes: dict[str, _Managed] = {}
        self._in_doubt: set[str] = set()
        """Groups of which a start has failed, or seemed to, since the last list."""
        self._seen: dict[str, SeenNode] = {}
        """The nodes of the present tick."""
        self._elsewhere: frozenset[str] = frozenset()
        """Those that other gateways have."""
        self._list_problem = "no list of what runs has come yet"
        self._last_s: float | None = None
        self._handlers: dict[type[ev.ScaleEvent], Callable[[Any, float], list[ev.AnyScaleAction] | None]] = {
            ev.RequestCame: self._rule.came,
            ev.RequestPlaced: self._rule.placed,
            ev.RequestDone: self._rule.done,
            ev.FleetSeen: self._on_fleet_seen,
            ev.NodesListed: self._on_nodes_listed,
            ev.ListFailed: self._on_list_failed,
            ev.StartFailed: self._on_start_failed,
            ev.StopFailed: self._on_stop_failed,
            ev.LeadershipSet: self._on_leadership_set,
            ev.RuleReadySet: self._on_rule_ready_set,
        }

    def handle(self, event: ev.AnyScaleEvent, now_s: float) -> list[ev.AnyScaleAction]:
        """What must be done now, in this order."""
        return self._handlers[type(event)](event, now_s) or []

    @property
    def kernels(self) -> str:
        """What of `simcore.warmup` the rule's ticks need; empty: nothing."""
        return str(getattr(self._rule, "kernels", ""))

    def starts(self) -> dict[str, StartTimes]:
        """What starts took, per group."""
        return self._times

    def stopping(self) -> list[tuple[str, str, str]]:
        """Nodes that are being stopped or have been given up: name, group, and what is wrong with them."""
        ends = [node for node in self._nodes.values() if node.given_up or node.stopping_s is not None]
        return [(node.node_id, node.group, node.detail or node.why.replace("_", " ")) for node in ends]

    def wanted(self) -> dict[str, int]:
        """Nodes wanted per group at the last tick, within the bounds."""
        if self.latest is None:
            return {group.name: group.min for group in self.config.groups}
        return {
            name: _bounded(self.latest.wanted.get(name, self.latest.had[name]), group)
            for name, group in self._groups.items()
        }

    def expected(self, now_s: float, *, heard_in_s: float = 0.0) -> tuple[ExpectedNode, ...]:
        """What can be had of each group whose engine is known: a node that starts, or one that would be started.

        `heard_in_s`: until whoever leads, and that a node is wanted here, have met.
        """
        found = []
        for group in self.config.groups:
            if group.engine is None:
                continue
            usual_s = self._times[group.name].quantile(0.5)
            dates_s = [
                max(now_s, node.since_s + usual_s)
                for node in self._nodes.values()
                if node.group == group.name and not node.came_up and not node.given_up and node.stopping_s is None
            ]
            blocked_s = self._blocked_s[group.name]
            ready_s = min(dates_s, default=max(now_s + heard_in_s, blocked_s) + self.config.tick_s + usual_s)
            found.append(ExpectedNode(config=group.engine, ready_in_s=ready_s - now_s))
        return tuple(found)

    # --- what connectors say ------------------------------------------------------------------------------------------

    def _on_nodes_listed(self, event: ev.NodesListed, now_s: float) -> None:
        self._list_problem = ""
        self._in_doubt.clear()
        listed = {node.node_id: node for node in event.nodes if node.group in self._groups}
        for said in listed.values():
            if said.asked_as and said.node_id not in self._nodes and said.asked_as in self._nodes:
                known = self._nodes[said.node_id] = self._nodes.pop(said.asked_as)
                known.node_id = said.node_id
        for node_id, known in list(self._nodes.items()):
            if node_id in listed:
                continue
            if known.stopping_s is not None:
                del self._nodes[node_id]
            elif known.came_up:
                # What the router sees is there, whatever the list says; what neither sees is not.
                known.listed, known.missing = False, True
            elif known.listed:
                if not known.given_up and not known.has_served:
                    self._start_went_wrong(known.group, now_s)
                del self._nodes[node_id]
            elif known.given_up and not self._may_stop(known):
                # It never was there, and to stop it would stop another.
                del self._nodes[node_id]
            # Else it was asked for a moment ago, and may be too new for this list.
        for node_id, said in listed.items():
            node = self._nodes.get(node_id)
            if node is None:
                node = _Managed(node_id=node_id, group=said.group, since_s=now_s, listed=True, ours=False)
                self._nodes[node_id] = node
            node.listed, node.missing = True, False
            node.detail, node.asked_as = said.detail, said.asked_as

    def _on_list_failed(self, event: ev.ListFailed, now_s: float) -> None:
        self._list_problem = event.detail or "the connector does not say what runs"

    def _on_start_failed(self, event: ev.StartFailed, now_s: float) -> None:
        node = self._nodes.get(event.node_id)
        # Of one that another leader has taken in since, an old failure says nothing.
        if node is None or node.came_up or node.given_up or not node.ours:
            return
        self._start_went_wrong(node.group, now_s)
        if node.listed:
            node.given_up, node.why, node.detail = True, "given_up", event.detail
        else:
            # Whether it runs all the same is for the next list to say; then it is taken in.
            self._in_doubt.add(node.group)
            del self._nodes[event.node_id]

    def _on_stop_failed(self, event: ev.StopFailed, now_s: float) -> None:
        node = self._nodes.get(event.node_id)
        if node is not None:
            node.detail = event.detail

    def _on_leadership_set(self, event: ev.LeadershipSet, now_s: float) -> None:
        if event.leads and not self.leads:
            self._list_problem = "no list of what runs has come since this gateway leads"
        self.leads, self._is_alone = event.leads, event.alone
        if not event.leads:
            for node in list(self._nodes.values()):
                node.stopping_s, node.leaving, node.given_up, node.ours = None, None, False, False
                if not node.listed:
                    # Whether the start that was asked for was carried out, the list tells.
                    del self._nodes[node.node_id]

    def _on_rule_ready_set(self, event: ev.RuleReadySet, now_s: float) -> None:
        self._rule_ready = event.ready

    def _start_went_wrong(self, group: str, now_s: float) -> None:
        if not self.leads:
            # The one that leads may have stopped it on purpose.
            return
        times = self._times[group]
        times.failed()
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (times.failures - 1))
        self._blocked_s[group] = now_s + wait_s

    # --- a tick -------------------------------------------------------------------------------------------------------

    def _on_fleet_seen(self, event: ev.FleetSeen, now_s: float) -> list[ev.AnyScaleAction]:
        jump_s = self._jumped(now_s)
        self._seen = {node.node_id: node for node in event.nodes}
        self._elsewhere = frozenset(event.elsewhere)
        actions: list[ev.AnyScaleAction] = []
        self._bring_up_to_date(now_s)
        fleet = self._fleet(event, now_s)
        had = fleet.count()
        self.fleet = fleet
        wish = self._ask_rule(fleet, now_s)
        held_back = self._held_back(jump_s)
        wanted = had if wish is None else {**had, **wish.wanted}
        for name in self._woken(event.waiting_models, fleet):
            wanted = {**wanted, name: max(1, wanted[name])}
        if not held_back:
            actions += self._stops(now_s)
            for state in fleet.groups:
                actions += self._change(state, wanted[state.group.name], wish.leave if wish else (), now_s)
            # Said again until the node says that it has heard it.
            actions += [
                ev.RetireNode(node_id=node.node_id, undo=not node.leaving)
                for node in self._nodes.values()
                if node.leaving is not None
            ]
        decision = ScaleDecision(
            now_s=now_s,
            rule=self.config.rule,
            had=had,
            wanted=dict(wanted),
            actions=tuple(actions),
            seen=dict(wish.seen) if wish else {},
            why=wish.why if wish else "nothing to go by: all stays as it is",
            held_back=held_back if wanted != had else "",
            shortfall=wish.shortfall if wish else "",
        )
        before = self.latest
        self.latest = decision
        if actions or (before is not None and wanted != had and before.wanted != decision.wanted):
            self.decisions.append(decision)
        return actions

    def _woken(self, models: Sequence[str], fleet: FleetState) -> Iterable[str]:
        """For each model that requests wait for while nobody serves it, the cheapest group that does: whatever the
        rule says, one node of it is wanted."""
        for model in models:
            serving = [state for state in fleet.groups if not model or model == state.group.model]
            if serving and not any(state.serving for state in serving):
                # One that starts already is wanted until it is there.
                able = [state for state in serving if state.starting]
                able = able or [state for state in serving if state.blocked_until_s <= fleet.now_s] or serving
                yield min(able, key=lambda state: state.group.price_per_hour).group.name

    def _ask_rule(self, fleet: FleetState, now_s: float) -> Wish | None:
        if not self._rule_ready:
            return Wish(wanted={}, why="the rule's code is still being compiled: all stays as it is")
        try:
            return self._rule.tick(fleet, now_s)
        except Exception as defect:
            if self._on_defect is None:
                raise
            self._on_defect(defect)
            return Wish(wanted={}, why=f"the rule has failed ({type(defect).__name__}: {defect}): all stays as it is")

    def _jumped(self, now_s: float) -> float:
        """By how many seconds the clock has jumped since the last tick; 0 when it has not."""
        last_s, self._last_s = self._last_s, now_s
        if last_s is None or 0.0 <= now_s - last_s <= JUMP_TICKS * self.config.tick_s:
            return 0.0
        jump_s = now_s - last_s - self.config.tick_s
        # What was noted since the jump is of the new time.
        for node in self._nodes.values():
            node.since_s = min(now_s, node.since_s + jump_s)
            if node.stopping_s is not None:
                node.stopping_s = min(now_s, node.stopping_s + jump_s)
        for group, until_s in self._blocked_s.items():
            self._blocked_s[group] = min(now_s + LONGEST_WAIT_S, until_s + jump_s)
        return jump_s

    def _held_back(self, jump_s: float) -> str:
        if not self.leads:
            return "another gateway leads"
        if self._advises:
            return "advice only"
        if jump_s:
            return f"the clock jumped by {jump_s:.0f} s between two ticks"
        return self._list_problem

    def _bring_up_to_date(self, now_s: float) -> None:
        """Who has come up, who is gone, who is too late."""
        for node in list(self._nodes.values()):
            there = self._seen.get(node.node_id)
            if there is not None and there.state != "down":
                if not node.came_up:
                    self._joined(node, there, now_s)
                self._hear(node, there)
                continue
            if node.came_up:
                # Lost. Whoever looks after it may bring it back: as long as a start may take, it is expected.
                node.came_up, node.ours, node.since_s, node.leaving = False, False, now_s, None
                if node.missing:
                    del self._nodes[node.node_id]
                    continue
            if node.node_id in self._elsewhere:
                # It is we who are cut off.
                node.since_s, node.given_up = now_s, False
            if node.given_up or node.stopping_s is not None or not self.leads:
                continue
            if node.detail or now_s - node.since_s > self._limit_s(node.group):
                if not node.has_served:
                    self._start_went_wrong(node.group, now_s)
                node.given_up, node.why = True, "given_up"

    def _joined(self, node: _Managed, there: SeenNode, now_s: float) -> None:
        node.came_up = node.has_served = True
        model, config = self._groups[node.group].model, there.view.config
        node.is_wrong = bool(model) and model != config.model and model not in config.other_names
        if node.is_wrong:
            self._start_went_wrong(node.group, now_s)
            return
        # Starts work, whoever asked for this one; of one that ran before us it is not known how long it took.
        self._times[node.group].ready(now_s - node.since_s if node.ours else None)
        self._blocked_s[node.group] = min(self._blocked_s[node.group], now_s + FIRST_WAIT_S)

    def _hear(self, node: _Managed, there: SeenNode) -> None:
        """A node is up and says whether it retires."""
        has_left = there.retiring and there.empty
        if has_left or there.retiring == node.leaving:
            node.leaving = None
        if node.is_wrong and self.leads and not there.retiring:
            node.leaving = True
        if has_left or not (node.given_up or node.stopping_s is not None):
            return
        # It came up after all, or anew, with requests on it perhaps: they are finished before it is stopped.
        if node.stopping_s is not None and self.leads:
            node.leaving = True
        node.given_up, node.stopping_s, node.detail, node.why = False, None, "", "left"

    def _limit_s(self, group: str) -> float:
        if self.config.start_limit_s is not None:
            return self.config.start_limit_s
        return LATE * max(self._times[group].quantile(0.9), self._groups[group].cold_start_s)

    def _fleet(self, event: ev.FleetSeen, now_s: float) -> FleetState:
        groups = []
        for name, group in self._groups.items():
            mine = [node for node in self._nodes.values() if node.group == name and not node.given_up]
            serving, draining = self._there([node for node in mine if node.came_up and node.stopping_s is None])
            times = self._times[name]
            usual_s = times.quantile(0.5)
            starting = [
                StartingNode(node_id=node.node_id, asked_s=node.since_s, ready_s=max(now_s, node.since_s + usual_s))
                for node in mine
                if not node.came_up and node.stopping_s is None
            ]
            groups.append(
                GroupState(
                    group=group,
                    serving=tuple(serving),
                    draining=tuple(draining),
                    starting=tuple(sorted(starting, key=lambda node: (node.ready_s, node.node_id))),
                    blocked_until_s=self._blocked_s[name],
                    start_p50_s=usual_s,
                    start_p90_s=times.quantile(0.9),
                )
            )
        return FleetState(
            now_s=now_s,
            groups=tuple(groups),
            fixed=tuple(node for node in event.nodes if node.node_id not in self._nodes),
            held=event.held,
            held_prompt_tokens=event.held_prompt_tokens,
            held_expected_tokens=event.held_expected_tokens,
            oldest_held_s=event.oldest_held_s,
        )

    def _there(self, nodes: Iterable[_Managed]) -> tuple[list[SeenNode], list[SeenNode]]:
        """Those that serve and those that may be taken back: as they say, or as they have been asked a moment ago."""
        serving, draining = [], []
        for node in nodes:
            there = self._seen[node.node_id]
            if node.is_wrong:
                continue
            retires = there.retiring if node.leaving is None else node.leaving
            if retires and not there.empty:
                draining.append(msgspec.structs.replace(there, retiring=True))
            elif not retires and (there.state == "up" or there.retiring):
                serving.append(msgspec.structs.replace(there, retiring=False))
        return serving, draining

    # --- carrying it out ----------------------------------------------------------------------------------------------

    def _stops(self, now_s: float) -> list[ev.AnyScaleAction]:
        """Nodes that are given up, or have said that they are empty and take nothing."""
        actions: list[ev.AnyScaleAction] = []
        # The last first: of a group that can only stop its last node, the one before is the last then.
        for node in sorted(self._nodes.values(), key=lambda node: _number(node.node_id), reverse=True):
            there = self._seen.get(node.node_id)
            has_left = there is not None and there.retiring and there.empty
            if not (node.given_up or has_left or node.stopping_s is not None):
                continue
            if node.stopping_s is not None and 0.0 <= now_s - node.stopping_s < AGAIN_S:
                continue
            if (has_left or not self._may_be_in_use(node)) and self._may_stop(node):
                actions.append(self._stop(node, now_s))
        return actions

    def _may_be_in_use(self, node: _Managed) -> bool:
        """Whether another gateway may have a node that is down here."""
        if self._is_up(node.node_id):
            return True
        if self._is_alone or node.detail:
            return False
        return node.has_served or all(there.state == "down" for there in self._seen.values())

    def _may_stop(self, node: _Managed) -> bool:
        """Whether the connector would stop this node and no other."""
        if self._groups[node.group].leaves == "any":
            return True
        number = _number(node.node_id)
        # One that is there although no list has it would be stopped as well.
        there = [
            seen
            for node_id, seen in self._seen.items()
            if node_id not in self._nodes and node_id.rpartition("-")[0] == node.group and _number(node_id) > number
        ]
        return all(seen.state == "down" or (seen.retiring and seen.empty) for seen in there) and all(
            other.stopping_s is not None or _number(other.node_id) <= number
            for other in self._nodes.values()
            if other.group == node.group
        )

    def _stop(self, node: _Managed, now_s: float) -> ev.StopNode:
        node.stopping_s, node.leaving = now_s, None
        return ev.StopNode(node_id=node.node_id, group=node.group, why=node.why)

    def _change(self, state: GroupState, wanted: int, leave: Sequence[str], now_s: float) -> list[ev.AnyScaleAction]:
        wanted = _bounded(wanted, state.group)
        if wanted > state.count:
            return self._grow(state, wanted - state.count, now_s)
        if wanted < state.count:
            return self._shrink(state, state.count - wanted, leave, now_s)
        return []

    def _grow(self, state: GroupState, by: int, now_s: float) -> list[ev.AnyScaleAction]:
        group = state.group
        # A node that is still there is there at once. The one with most requests has the warmest cache.
        back = sorted(
            state.draining,
            key=lambda node: (_number(node.node_id) if group.leaves == "last" else -node.outstanding, node.node_id),
        )[:by]
        for node in back:
            self._nodes[node.node_id].leaving = False
        if now_s < state.blocked_until_s or group.name in self._in_doubt:
            return []
        # One that is being stopped is paid for until a list lacks it: a stop may fail, and another may undo it.
        paid = sum(node.group == group.name for node in self._nodes.values())
        fresh = min(by - len(back), group.max - paid)
        # Of a group whose last start has failed one node is tried first.
        if self._times[group.name].failures:
            fresh = min(fresh, 1 - len(state.starting))
        actions: list[ev.AnyScaleAction] = []
        for node_id in self._free_names(group, fresh):
            self._nodes[node_id] = _Managed(node_id=node_id, group=group.name, since_s=now_s, listed=False, ours=True)
            actions.append(ev.StartNode(node_id=node_id, group=group.name))
        return actions

    def _shrink(self, state: GroupState, by: int, leave: Sequence[str], now_s: float) -> list[ev.AnyScaleAction]:
        actions: list[ev.AnyScaleAction] = []
        # One that we do not reach and others use cannot be asked.
        coming = [node.node_id for node in state.starting if not self._is_up(node.node_id)]
        if state.group.leaves == "last":
            order = sorted((*coming, *(node.node_id for node in state.serving)), key=_number, reverse=True)
        else:
            # Those that are not there yet, the latest first; then as the rule says, then as the lab does (LOR).
            named = {node_id: i for i, node_id in enumerate(leave)}
            serving = sorted(
                state.serving, key=lambda node: (named.get(node.node_id, len(named)), node.outstanding, node.node_id)
            )
            order = [*reversed(coming), *(node.node_id for node in serving)]
        for node_id in order[:by]:
            node = self._nodes[node_id]
            if node_id not in coming:
                node.leaving = True
                continue
            node.given_up, node.why = True, "not_wanted"
            if self._may_stop(node) and not self._may_be_in_use(node):
                actions.append(self._stop(node, now_s))
        return actions

    def _is_up(self, node_id: str) -> bool:
        """Whether this or another gateway has the node."""
        there = self._seen.get(node_id)
        return node_id in self._elsewhere or (there is not None and there.state != "down")

    def _free_names(self, group: ScaleGroup, count: int) -> Iterator[str]:
        """The first that nobody has. One that is up though no list has it is somebody's."""
        number = 0
        asked = {node.asked_as for node in self._nodes.values()}
        while count > 0:
            node_id = f"{group.name}-{number}"
            number += 1
            if node_id in self._nodes or node_id in asked:
                continue
            if not self._is_up(node_id):
                count -= 1
                yield node_id
            elif group.leaves == "last":
                # No other can come before it.
                return


def _bounded(wanted: int, group: ScaleGroup) -> int:
    return min(max(wanted, group.min), group.max)


def _number(node_id: str) -> int:
    tail = node_id.rpartition("-")[2]
    return int(tail) if tail.isdecimal() else -1

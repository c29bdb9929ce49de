"""What people and pages are told of a scaler: made after each tick, never changed. Plain data."""

from __future__ import annotations

import msgspec

from gateway.core.scale.events import StartNode
from gateway.core.scale.scaler import ScaleDecision, Scaler


class ScaledNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node of a group."""

    node_id: str
    state: str
    """starting, serving, draining or stopping."""
    detail: str = ""
    ready_in_s: float | None = None
    """Of one that starts: when it is expected; 0 when it is late."""


class GroupStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One group."""

    name: str
    model: str
    min: int
    max: int
    wanted: int
    """Within the bounds."""
    price_per_hour: float
    start_p50_s: float
    start_p90_s: float
    blocked_s: float
    """No start is tried for so long: the last ones have failed."""
    nodes: tuple[ScaledNode, ...]

    def count(self, state: str) -> int:
        """Nodes in that state."""
        return sum(node.state == state for node in self.nodes)


class ScaleStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A scaler after a tick."""

    now_s: float
    rule: str
    connector: str
    leads: bool
    leader: str
    """The gateway that leads; empty: this one, or nobody knows."""
    executes: bool
    tick_s: float
    problem: str
    """Why nothing can be started or stopped; empty when it can."""
    groups: tuple[GroupStatus, ...]
    latest: ScaleDecision | None
    decisions: tuple[ScaleDecision, ...]
    """Those that changed something or wanted to, oldest first."""


def status_of(
    scaler: Scaler, now_s: float, *, connector: str, executes: bool, leader: str = "", problem: str = ""
) -> ScaleStatus:
    """To be called while nobody else uses the scaler."""
    wanted = scaler.wanted()
    stopping = scaler.stopping()
    groups = []
    for state in scaler.fleet.groups if scaler.fleet is not None else ():
        group = state.group
        ends = {name: detail for name, of, detail in stopping if of == group.name}
        # What the tick has just asked for is under way.
        nodes = [
            *(
                ScaledNode(node_id=action.node_id, state="starting", ready_in_s=state.start_p50_s)
                for action in (scaler.latest.actions if scaler.latest is not None else ())
                if isinstance(action, StartNode) and action.group == group.name
            ),
            *(ScaledNode(node_id=n.node_id, state="serving") for n in state.serving),
            *(ScaledNode(node_id=n.node_id, state="draining") for n in state.draining if n.node_id not in ends),
            *(
                ScaledNode(node_id=n.node_id, state="starting", ready_in_s=max(0.0, n.ready_s - now_s))
                for n in state.starting
                if n.node_id not in ends
            ),
            *(ScaledNode(node_id=name, state="stopping", detail=detail) for name, detail in ends.items()),
        ]
        groups.append(
            GroupStatus(
                name=group.name,
                model=group.model,
                min=group.min,
                max=group.max,
                wanted=wanted[group.name],
                price_per_hour=group.price_per_hour,
                start_p50_s=state.start_p50_s,
                start_p90_s=state.start_p90_s,
                blocked_s=max(0.0, state.blocked_until_s - now_s),
                nodes=tuple(sorted(nodes, key=lambda node: node.node_id)),
            )
        )
    return ScaleStatus(
        now_s=now_s,
        rule=scaler.config.rule,
        connector=connector,
        leads=scaler.leads,
        leader=leader,
        executes=executes,
        tick_s=scaler.config.tick_s,
        problem=problem,
        groups=tuple(groups),
        latest=scaler.latest,
        decisions=tuple(scaler.decisions),
    )

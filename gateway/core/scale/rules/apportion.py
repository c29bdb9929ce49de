"""A wish of rules that think of one number of equal nodes: which groups grow and shrink for it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.core.scale.fleet import FleetState, GroupState, SeenNode
from gateway.core.scale.rule import Wish


def provisioned(fleet: FleetState) -> int:
    """Nodes that serve or will, those that nobody may stop among them."""
    return sum(state.count for state in fleet.groups) + sum(node.state == "up" for node in fleet.fixed)


def serving(fleet: FleetState) -> list[SeenNode]:
    """Nodes that get new requests."""
    return list(fleet.serving)


def wish(fleet: FleetState, nodes: int, *, seen: Mapping[str, float], why: str, leave: Sequence[str] = ()) -> Wish:
    """So many nodes in all, those that nobody may stop among them.

    More are of the cheapest group that has room and whose starts do not fail; fewer of the dearest that has more than
    its minimum.
    """
    wanted = {state.group.name: state.count for state in fleet.groups}
    by = nodes - provisioned(fleet)
    if by > 0:
        for state in sorted(fleet.groups, key=lambda s: (s.blocked_until_s > fleet.now_s, s.group.price_per_hour)):
            more = max(0, min(by, state.group.max - state.count))
            wanted[state.group.name] += more
            by -= more
    else:
        for state in sorted(fleet.groups, key=_dearest):
            fewer = max(0, min(-by, state.count - state.group.min))
            wanted[state.group.name] -= fewer
            by += fewer
    return Wish(wanted=wanted, leave=tuple(leave), seen=dict(seen), why=why)


def _dearest(state: GroupState) -> float:
    return -state.group.price_per_hour

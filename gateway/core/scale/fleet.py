"""The fleet as a scaling rule sees it at a tick. Pure data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from gateway.core.nodes.view import NodeView
from gateway.core.scale.config import ScaleGroup

SeenState = Literal["up", "draining", "down"]


class SeenNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node as its gateway knows it."""

    node_id: str
    state: SeenState
    view: NodeView
    empty: bool
    """Nothing runs there, of any gateway, and it takes nothing new. One that is `retiring` too has left: no gateway can
    take it back, and it may be stopped."""
    retiring: bool = False
    """It is to leave: the node itself says so, whoever asked it to. A node that an operator drains is not."""

    @property
    def outstanding(self) -> int:
        """Requests there: ours, or all that the node tells of, whichever is more."""
        load = self.view.load
        return max(self.view.in_flight, 0 if load is None else load.running + load.waiting)


class StartingNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node that was asked for and has not joined yet: capacity with a date."""

    node_id: str
    asked_s: float
    ready_s: float
    """When it is expected."""


class GroupState(msgspec.Struct, frozen=True, kw_only=True):
    """One group at a tick."""

    group: ScaleGroup
    serving: tuple[SeenNode, ...]
    """Those that get new requests."""
    draining: tuple[SeenNode, ...]
    """Those that are to leave and may be taken back."""
    starting: tuple[StartingNode, ...]
    """By the time at which they are expected."""
    blocked_until_s: float = 0.0
    """Starts have failed: no other is tried before."""
    start_p50_s: float
    """What a start takes, as measured (before: `ScaleGroup.cold_start_s`)."""
    start_p90_s: float

    @property
    def count(self) -> int:
        """Nodes that serve or will."""
        return len(self.serving) + len(self.starting)


class FleetState(msgspec.Struct, frozen=True, kw_only=True):
    """All that a rule is told at a tick beside what it has heard."""

    now_s: float
    groups: tuple[GroupState, ...]
    fixed: tuple[SeenNode, ...] = ()
    """Nodes that nobody may start or stop; they serve too."""
    held: int = 0
    """Requests that wait at the gateway."""
    held_prompt_tokens: int = 0
    held_expected_tokens: float = 0.0
    """Output tokens that those are expected to get."""
    oldest_held_s: float = 0.0
    """How long the first of them has waited."""

    @property
    def serving(self) -> Iterator[SeenNode]:
        """All nodes that get new requests."""
        for group in self.groups:
            yield from group.serving
        for node in self.fixed:
            if node.state == "up":
                yield node

    def count(self) -> dict[str, int]:
        """Nodes that serve or will, per group."""
        return {state.group.name: state.count for state in self.groups}

"""What can go wrong in a simulated cluster, besides lost nodes and clients that leave (`gateway.core.events`). Pure.

Each is something that happens at a moment, given to `SimCluster.run` in `world` together with the events from outside.
"""

from __future__ import annotations

import msgspec


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that goes wrong."""


class Vanishes(Fault, frozen=True, kw_only=True):
    """The node says nothing any more and hears nothing, and nobody is told: a hang, a half-open connection. What the
    gateway's link makes of the silence is up to the scenario: `NodeSuspected`, `NodeLost`, `NodeJoined`."""

    node_id: str


class TraceFreezes(Fault, frozen=True, kw_only=True):
    """The engine works, its trace stands still: loads and forecasts are those of now. `thaws`: it moves again."""

    node_id: str
    thaws: bool = False


class Lies(Fault, frozen=True, kw_only=True):
    """All times that the node forecasts are wrong by this factor. 1: the truth again."""

    node_id: str
    factor: float


class Fills(Fault, frozen=True, kw_only=True):
    """The node turns requests away as soon as so many wait there. None: it takes them all again."""

    node_id: str
    queue_limit: int | None


class RequestsFail(Fault, frozen=True, kw_only=True):
    """The engine fails so many of the requests that it has, wherever they are."""

    node_id: str
    count: int


class GatewayRestarts(Fault, frozen=True, kw_only=True):
    """The gateway is killed and a new one stands in its place: its clients' streams break, and the nodes abort what
    they had from it."""


class ClockJumps(Fault, frozen=True, kw_only=True):
    """The gateway's clock goes ahead, as after a suspended machine."""

    by_s: float


class NodeFaults(msgspec.Struct):
    """What is wrong with one node now."""

    vanished: bool = False
    frozen_s: float | None = None
    """Since when its trace stands still."""
    lie: float = 1.0
    queue_limit: int | None = None

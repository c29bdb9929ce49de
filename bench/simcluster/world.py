"""What can happen to a simulated cluster from outside: nodes join and leave, things go wrong. Pure.

Each is something that happens at a moment, given to `SimCluster.run` in `world` together with the router's own events
(`gateway.core.events`), such as a lost node or a client that leaves.
"""

from __future__ import annotations

import math

import msgspec

from gateway.core import events as ev
from simcore.cost.step_time import StepTimeModel
from simcore.types import EngineConfig


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one node is."""

    node_id: str
    config: EngineConfig
    step_time: StepTimeModel


class Joins(msgspec.Struct, frozen=True, kw_only=True):
    """A new node is started; the router hears of it when it is ready, `startup_s` later."""

    spec: NodeSpec
    startup_s: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.startup_s) and self.startup_s >= 0):
            raise ValueError(f"startup_s must be finite and >= 0 seconds, got {self.startup_s}")


class Leaves(msgspec.Struct, frozen=True, kw_only=True):
    """A node is drained, and leaves the cluster when nothing runs there any more."""

    node_id: str


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


class CacheLies(Fault, frozen=True, kw_only=True):
    """The node claims to have blocks of these names cached, whatever is true. Without names: the truth
    again."""

    node_id: str
    names: tuple[int, ...] = ()


class Evicts(Fault, frozen=True, kw_only=True):
    """All that the node has cached and nobody uses goes, as it does when many other prompts come."""

    node_id: str


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


class PredictorDies(Fault, frozen=True, kw_only=True):
    """The node's daemon is killed, its engine lives. The daemon is the data path: streams and questions break. When the
    gateway hears of it is up to the scenario (`NodeLost`), and so is when the engine does (`OrphansDropped`): until
    then it works for nobody."""

    node_id: str


class PredictorReturns(Fault, frozen=True, kw_only=True):
    """A new daemon beside the same engine: it finds the engine as it is, and knows nothing of what was before."""

    node_id: str


class OrphansDropped(Fault, frozen=True, kw_only=True):
    """The engine sees that nobody reads any more what a dead daemon had asked for, and frees its blocks."""

    node_id: str


class ClockJumps(Fault, frozen=True, kw_only=True):
    """The gateway's clock goes ahead, as after a suspended machine."""

    by_s: float


WorldEvent = ev.AnyEvent | Fault | Joins | Leaves


class NodeFaults(msgspec.Struct):
    """What is wrong with one node now."""

    vanished: bool = False
    no_daemon: bool = False
    """Its engine lives alone."""
    frozen_s: float | None = None
    """Since when its trace stands still."""
    lie: float = 1.0
    queue_limit: int | None = None
    claims: frozenset[int] = frozenset()
    """Names of blocks that it claims to have cached."""

    def repair(self) -> None:
        """All is right again but what it says: lies last."""
        self.vanished = self.no_daemon = False
        self.frozen_s = self.queue_limit = None

    @property
    def deaf(self) -> bool:
        """Nothing that is sent to it arrives, and it says nothing."""
        return self.vanished or self.no_daemon

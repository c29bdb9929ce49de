"""The Protocol of a placement policy and the view of a node it gets. Pure.

A policy decides in two phases: `shortlist` says which nodes matter, forecasts are fetched by the shell if the policy
needs them, `costs` prices the shortlist; the router takes the cheapest, ties at random with its seeded generator. A
policy sees immutable views only, never a clock, and never waits.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, cast

import msgspec

from gateway.core.events import RequestShape
from simcore.types import EngineConfig, Forecast, NodeLoad


class NodeView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One node at the moment of a decision.

    `load` is the node's last note with our own dispatches that it does not yet include added to it (they count as
    waiting). `load is None` means nothing is known: such a node is unknown, never idle.
    """

    node_id: str
    config: EngineConfig
    load: NodeLoad | None
    state_age_s: float
    """Age of the node's state now: its age when noted plus the time since."""
    in_flight: int
    """Requests that this gateway has there, exact."""
    dispatches_60s: int
    """Dispatches of this gateway to it in the last 60 s."""


class Remembers(Protocol):
    """A policy that wants to know where each of its requests went."""

    def placed(self, request: RequestShape, node_id: str) -> None: ...


def remembering(policy: object) -> Remembers | None:
    """The policy, if it has a `placed`. An `isinstance` of a Protocol costs twenty times as much, for each request."""
    return cast(Remembers, policy) if hasattr(policy, "placed") else None


class Policy(Protocol):
    """One instance serves one router; state, if any, is its own."""

    name: ClassVar[str]
    cost_unit: ClassVar[str]
    needs_forecasts: ClassVar[bool]
    default_sample: ClassVar[int]
    """Nodes drawn at random to choose among; 0 means all."""

    def shortlist(self, request: RequestShape, nodes: Sequence[NodeView], rng: random.Random) -> Sequence[NodeView]:
        """The nodes worth pricing, out of the healthy ones (already sampled). Never empty if `nodes` is not."""

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        """One cost per node of the shortlist, lower is better; None where this node cannot be priced."""

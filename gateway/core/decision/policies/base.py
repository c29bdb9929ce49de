"""What a placement policy is: a cost for each node. Pure.

The router filters and samples the nodes, fetches forecasts if the policy needs them, has it price what is left, and
takes the cheapest, ties at random with its seeded generator. A policy sees immutable views only, never a clock, and
never waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from gateway.core.events import RequestShape
from gateway.core.nodes.view import NodeView
from simcore.types import Forecast

__all__ = ["NodeView", "PlacementWatcher", "Policy", "Served"]


class Policy(Protocol):
    """One instance serves one router; state, if any, is its own. A constructor takes nothing, or `rng`, the router's
    generator, to draw from, or `priority`, what its configuration says of classes.

    What a node has cached of the prompt is in its view (`NodeView.cached_tokens`). One that keeps an account of its own
    is a `PlacementWatcher` besides.
    """

    name: ClassVar[str]
    cost_unit: ClassVar[str]
    needs_forecasts: ClassVar[bool]

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        """One cost per node, lower is better; None where this node cannot be priced.

        Called once for each placement that the policy decides.
        """


class Served(NamedTuple):
    """A whole answer, as this gateway saw it. Seconds count from the dispatch."""

    ttft_s: float | None
    """None: when the first token was produced is not known."""
    e2e_s: float
    output_tokens: int


@runtime_checkable
class PlacementWatcher(Protocol):
    """What a policy is told, if it has these methods, of all requests of its router, whoever placed them.

    It hears from the moment that the router first needs it, so `began` and `left` may come for requests whose `placed`
    it never heard. A decision that somebody else carries out is not told of: nobody hears of its end.
    """

    def placed(self, request: RequestShape, node: NodeView) -> None:
        """The request goes to the node, which is as it was before that."""

    def began(self, request: RequestShape, node_id: str) -> None:
        """Its first token has come from there."""

    def left(self, request: RequestShape, node_id: str, served: Served | None) -> None:
        """It is there no longer, for whatever reason; `served` if its answer is whole."""

"""What a placement policy is: a cost for each node. Pure.

The router filters and samples the nodes, fetches forecasts if the policy needs them, has it price what is left, and
takes the cheapest, ties at random with its seeded generator. A policy sees immutable views only, never a clock, and
never waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from gateway.core.events import RequestShape
from gateway.core.nodes.view import NodeView
from simcore.types import Forecast

__all__ = ["NodeView", "Policy"]


class Policy(Protocol):
    """One instance serves one router; state, if any, is its own. A constructor takes nothing, or `rng`, the router's
    generator, to draw from.

    What a node has cached of the prompt is in its view (`NodeView.cached_tokens`).
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

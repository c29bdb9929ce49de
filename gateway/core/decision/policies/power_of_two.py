"""The lesser loaded of two nodes drawn at random (Mitzenmacher, "The power of two choices", 2001)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class PowerOfTwo:
    """Fewest requests of ours in flight among the sample; the router's `sample` makes it a power of k."""

    name: ClassVar[str] = "power_of_two"
    cost_unit: ClassVar[str] = "requests"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        return [float(node.in_flight) for node in nodes]

"""Any node, each with equal chance: the baseline that knows nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class RandomNode:
    """Every node costs the same, so the router's tie-break decides."""

    name: ClassVar[str] = "random"
    cost_unit: ClassVar[str] = "none"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        return [0.0] * len(nodes)

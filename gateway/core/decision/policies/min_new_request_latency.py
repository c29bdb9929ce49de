"""Where the new request itself is forecast to end soonest (Block / Astrolabe)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class MinNewRequestLatency:
    """cost = mean forecast seconds from now to the last token of the new request, whatever that does to others."""

    name: ClassVar[str] = "min_new_request_latency"
    cost_unit: ClassVar[str] = "s"
    needs_forecasts: ClassVar[bool] = True

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        return [None if (forecast := forecasts.get(node.node_id)) is None else forecast.e2e_s.mean for node in nodes]

"""Where the request meets its service levels with least harm to the others: most requests in time, not the fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.decision.policies.min_total_latency import MinTotalLatency
from gateway.core.decision.service_levels import asks_any, shortfall_s
from gateway.core.events import RequestShape
from simcore.types import Forecast


class SloGoodput(MinTotalLatency):
    """Nodes that meet all levels asked (at the 90th percentiles) cost the harm that the request does there, in seconds.
    The others cost the largest of these harms and their shortfall on top: they come after them, the least late first.

    Headroom counts up to the level and no further: seconds earlier than asked serve nobody, and a node left free will
    serve the next one. A request that asks for nothing costs what it costs under `min_total_latency`.
    """

    name: ClassVar[str] = "slo_goodput"

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        known = [forecasts.get(node.node_id) for node in nodes]
        if not asks_any(request.slo):
            return super().costs(request, nodes, forecasts)
        worst_harm_s = max((max(0.0, forecast.harm_s.mean) for forecast in known if forecast is not None), default=0.0)
        costs: list[float | None] = []
        for forecast in known:
            if forecast is None:
                costs.append(None)
                continue
            late_s = shortfall_s(request, forecast)
            costs.append(worst_harm_s + late_s if late_s > 0.0 else max(0.0, forecast.harm_s.mean))
        return costs

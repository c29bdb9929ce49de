"""Where the new request adds least latency to everyone: its own, its harm to those there, and to those who come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.later_cost import LATER_WAITS_PER_WAIT, room_s
from gateway.core.decision.policies.base import NodeView, Served
from gateway.core.decision.policies.estimated_latency import EstimatedLatency
from gateway.core.events import RequestShape
from simcore.types import Forecast


def total_latency_s(request: RequestShape, view: NodeView, forecast: Forecast) -> float:
    """What the request costs everybody by a forecast, in seconds; see `MinTotalLatency`."""
    later_s = LATER_WAITS_PER_WAIT * forecast.ttft_s.mean + room_s(request, view)
    return forecast.e2e_s.mean + forecast.harm_s.mean + later_s


class MinTotalLatency:
    """cost = mean forecast end-to-end seconds of the new request
    + mean seconds by which it delays, in sum, the requests already there
    + seconds by which it delays, in sum, those who will come there: for a place in a queue and for room;
    or what `estimated_latency` says of the node, if that is more or there is no forecast to go by.

    The first two are the growth of the summed latency of those present, by simulation. The third is what greed would
    leave out: a node where the request waits keeps everybody waiting who comes meanwhile, u / (1 - u) seconds for each
    of its own at utilisation u (M/G/1); and a node that is nearly full, nobody waiting yet, has one seat less for the
    next (M/M/c, `gateway.core.nodes.pace.later_waits`). Both are the first step of policy iteration from a random split
    of the arrivals (Krishnan 1990) at the utilisation that a fleet is planned for.

    A forecast sees those there leave and nobody come in their place; the estimate takes the node to stay as it is. What
    a request costs lies between the two or beyond, so the larger counts: a node is not cheap for being empty later.
    """

    name: ClassVar[str] = "min_total_latency"
    cost_unit: ClassVar[str] = "s"
    needs_forecasts: ClassVar[bool] = True

    def __init__(self) -> None:
        self._estimate = EstimatedLatency()

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        costs = list(self._estimate.costs(request, nodes, forecasts))
        for i, node in enumerate(nodes):
            forecast, estimated_s = forecasts.get(node.node_id), costs[i]
            if forecast is not None:
                forecast_s = total_latency_s(request, node, forecast)
                costs[i] = forecast_s if estimated_s is None else max(forecast_s, estimated_s)
        return costs

    def placed(self, request: RequestShape, node: NodeView) -> None:
        self._estimate.placed(request, node)

    def began(self, request: RequestShape, node_id: str) -> None:
        self._estimate.began(request, node_id)

    def left(self, request: RequestShape, node_id: str, served: Served | None) -> None:
        self._estimate.left(request, node_id, served)

"""Where the new request adds least latency to everyone: its own, its harm to those there, and to those who come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.later_cost import LATER_WAITS_PER_WAIT, room_s
from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


def total_latency_s(request: RequestShape, view: NodeView, forecast: Forecast) -> float:
    """What the request costs everybody, in seconds; see `MinTotalLatency`."""
    later_s = LATER_WAITS_PER_WAIT * forecast.ttft_s.mean + room_s(request, view)
    return forecast.e2e_s.mean + forecast.harm_s.mean + later_s


class MinTotalLatency:
    """cost = mean forecast end-to-end seconds of the new request
    + mean seconds by which it delays, in sum, the requests already there
    + seconds by which it delays, in sum, those who will come there: for a place in a queue and for room.

    The first two are the growth of the summed latency of those present, by simulation. The third is what greed would
    leave out: a node where the request waits keeps everybody waiting who comes meanwhile, u / (1 - u) seconds for each
    of its own at utilisation u (M/G/1); and a node that is nearly full, nobody waiting yet, has one seat less for the
    next (M/M/c, `gateway.core.nodes.pace.later_waits`). Both are the first step of policy iteration from a random split
    of the arrivals (Krishnan 1990) at the utilisation that a fleet is planned for.
    """

    name: ClassVar[str] = "min_total_latency"
    cost_unit: ClassVar[str] = "s"
    needs_forecasts: ClassVar[bool] = True

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        return [
            None if (forecast := forecasts.get(node.node_id)) is None else total_latency_s(request, node, forecast)
            for node in nodes
        ]

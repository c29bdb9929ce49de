"""Where the new request adds least latency to everyone: its own, its harm to those there, and to those who come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

from gateway.core.decision.class_weights import EQUAL, Weights
from gateway.core.decision.harm_price import price_of_harm, prompts_share
from gateway.core.decision.later_cost import LATER_WAITS_PER_WAIT, room_s
from gateway.core.decision.policies.base import NodeView, Served
from gateway.core.decision.policies.estimated_latency import EstimatedLatency, Outlook
from gateway.core.events import RequestShape
from gateway.core.priority import PriorityConfig
from simcore.types import Forecast


def total_latency_s(
    request: RequestShape, view: NodeView, forecast: Forecast, price: float = 1.0, weights: Weights = EQUAL
) -> float:
    """What the request costs everybody by a forecast, in seconds, where harm has this price; see `MinTotalLatency`."""
    later_s = LATER_WAITS_PER_WAIT * forecast.ttft_s.mean + room_s(request, view)
    harm_s = price * forecast.harm_s.mean
    return weights.own * forecast.e2e_s.mean + weights.there * harm_s + weights.later * later_s


class _Course(NamedTuple):
    """How answers go at a node."""

    outlook: Outlook
    pace_s: float
    """Seconds per token, prompts of others included."""


class MinTotalLatency:
    """cost = mean forecast end-to-end seconds of the new request
    + mean seconds by which it delays, in sum, the requests already there, times their price
    + seconds by which it delays, in sum, those who will come there: for a place in a queue and for room;
    or what `estimated_latency` says of the node, if that is more or there is no forecast to go by.

    The price of a delay is 2 * pace of the node / pace of the nodes compared (`gateway.core.decision.harm_price`): a
    second hurts more where answers are slow already. Without it the sum of latencies is least where one kind of node
    gets nearly all prompts, and answers there pause for them again and again.

    What later ones wait is what greed would leave out: a node where the request waits keeps everybody waiting who comes
    meanwhile, u / (1 - u) seconds for each of its own at utilisation u (M/G/1); and a node that is nearly full, nobody
    waiting yet, has one seat less for the next (M/M/c, `gateway.core.nodes.pace.later_waits`). Both are the first step
    of policy iteration from a random split of the arrivals (Krishnan 1990) at the utilisation that a fleet is planned
    for.

    Seconds of each side, its own, of those there and of those to come, count by their classes (`ClassWeights`): what a
    high request suffers costs more, so it is placed where it runs fast and others are placed elsewhere.

    A forecast sees those there leave and nobody come in their place; the estimate takes the node to stay as it is, each
    token of the answer longer by the share of the node's time that prompts take. What a request costs lies between the
    two or beyond, so the larger counts: a node is not cheap for being empty later.
    """

    name: ClassVar[str] = "min_total_latency"
    cost_unit: ClassVar[str] = "s"
    needs_forecasts: ClassVar[bool] = True

    def __init__(self, priority: PriorityConfig | None = None) -> None:
        self._estimate = EstimatedLatency(priority)

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        weights = self._estimate.classes.weigh(request, nodes)
        costs = list(self._estimate.weighted(request, nodes, weights))
        courses = {
            node_id: course
            for node in nodes
            if (forecast := forecasts.get(node_id := node.node_id)) is not None
            and (course := self._course(node, forecast)) is not None
        }
        fleet_pace_s = _mean_pace_s(courses.values())
        for i, node in enumerate(nodes):
            forecast = forecasts.get(node.node_id)
            if forecast is None:
                continue
            course, estimated_s = courses.get(node.node_id), costs[i]
            weight = EQUAL if weights is None else weights[i]
            if course is None or estimated_s is None:
                costs[i] = total_latency_s(request, node, forecast, weights=weight)
                continue
            outlook, pace_s = course
            price = price_of_harm(pace_s / fleet_pace_s)
            estimated_s += weight.own * request.expected_tokens * (pace_s - outlook.step_s)
            costs[i] = max(total_latency_s(request, node, forecast, price, weight), estimated_s)
        return costs

    def placed(self, request: RequestShape, node: NodeView) -> None:
        self._estimate.placed(request, node)

    def began(self, request: RequestShape, node_id: str) -> None:
        self._estimate.began(request, node_id)

    def left(self, request: RequestShape, node_id: str, served: Served | None) -> None:
        self._estimate.left(request, node_id, served)

    def _course(self, node: NodeView, forecast: Forecast) -> _Course | None:
        outlook = self._estimate.outlook(node)
        if outlook is None:
            return None
        return _Course(outlook, outlook.step_s / (1.0 - prompts_share(forecast.prefill_share)))


def _mean_pace_s(courses: Iterable[_Course]) -> float:
    """Seconds per token as those at the nodes see it, and one more at each."""
    readers = total_s = 0.0
    for outlook, pace_s in courses:
        readers += outlook.batch + 1
        total_s += (outlook.batch + 1) * pace_s
    return total_s / readers if readers else 0.0

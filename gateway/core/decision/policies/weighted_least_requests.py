"""Fewest requests for what a node can do, as weights that somebody measured say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class WeightedLeastRequests:
    """cost = (requests of ours there + 1) / weight of the node (router key `weights`; 1 where none is said).

    Weighted least connections, as nginx (`least_conn`) and HAProxy (`leastconn`) balance servers that differ.
    """

    name: ClassVar[str] = "weighted_least_requests"
    cost_unit: ClassVar[str] = "requests/weight"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        return [(node.in_flight + 1) / node.weight for node in nodes]

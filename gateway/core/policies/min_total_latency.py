"""Where the new request adds least latency to everyone: its own end plus its harm to the others."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.events import RequestShape
from gateway.core.policies.base import NodeView
from simcore.types import Forecast


class MinTotalLatency:
    """cost = mean forecast end-to-end seconds of the new request + mean seconds by which it delays, in sum, the
    requests already there.

    That is the growth of the summed latency of all requests if it is placed there: choosing the least is greedy descent
    on mean latency, where `min_new_request_latency` lets a short request disturb fifty others.
    """

    name: ClassVar[str] = "min_total_latency"
    cost_unit: ClassVar[str] = "s"
    needs_forecasts: ClassVar[bool] = True
    default_sample: ClassVar[int] = 0

    def shortlist(self, request: RequestShape, nodes: Sequence[NodeView], rng: random.Random) -> Sequence[NodeView]:
        return nodes

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        return [
            None if (forecast := forecasts.get(node.node_id)) is None else forecast.e2e_s.mean + forecast.harm_s.mean
            for node in nodes
        ]

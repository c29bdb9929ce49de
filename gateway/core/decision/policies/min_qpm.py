"""Fewest dispatches of ours in the last 60 seconds (Block's `request_per_seconds`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast

WINDOW_S = 60.0
LEAST_S = 1.0
"""In less time nothing can be said of a rate."""


class MinQpm:
    """Queries per minute. The original compares stamps of two different clocks, so that every count is 0 and the policy
    is random; here the router counts on the one clock that it is given. Of a node that has not been there for a minute
    it is what a whole one would have: a newcomer gets its share, and not everything until it has caught up."""

    name: ClassVar[str] = "min_qpm"
    cost_unit: ClassVar[str] = "requests"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        return [node.dispatches_60s * WINDOW_S / min(max(node.present_s, LEAST_S), WINDOW_S) for node in nodes]

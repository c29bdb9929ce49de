"""Fewest requests of ours in flight: the fallback of every other policy, because it needs nobody's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class LeastRequests:
    """This gateway's own exact account, taken at dispatch and released at the end."""

    name: ClassVar[str] = "least_requests"
    cost_unit: ClassVar[str] = "requests"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        return [float(node.in_flight) for node in nodes]

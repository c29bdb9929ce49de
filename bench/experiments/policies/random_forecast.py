"""Random placement that asks the drawn node for a forecast all the same, with `sample = 1`: what prediction accuracy is
measured with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class RandomForecast:
    """One node drawn at random, whatever it says."""

    name: ClassVar[str] = "random_forecast"
    cost_unit: ClassVar[str] = "s"
    needs_forecasts: ClassVar[bool] = True

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        return [None if (f := forecasts.get(node.node_id)) is None else f.e2e_s.mean for node in nodes]

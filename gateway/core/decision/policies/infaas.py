"""Most free memory per running request (INFaaS++ as Block and Llumnix compare with it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class Infaas:
    """cost = -free_blocks / max(running, 1); the engine's queue does not count, which is what Llumnix adds.

    Requests under way to the engine, that its scheduler has not seen, count as if they ran already: otherwise all
    decisions of one state interval would fall on one node (Block's herding).
    """

    name: ClassVar[str] = "infaas"
    cost_unit: ClassVar[str] = "-blocks/request"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        costs: list[float | None] = []
        for node in nodes:
            load = node.load
            if load is None:
                costs.append(None)
                continue
            # A summary does not say which waiting prompts are reserved ones; their mean is exact when all are.
            under_way_blocks = load.waiting_prompt_blocks * load.reserved / load.waiting if load.reserved else 0.0
            costs.append((under_way_blocks - load.free_blocks) / max(load.running + load.reserved, 1))
        return costs

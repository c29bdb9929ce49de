"""The freest node by Llumnix's freeness (Sun et al., OSDI '24, section 4.3), dispatch only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class LlumnixFreeness:
    """cost = -(free_blocks - prompt blocks of all waiting requests) / max(running, 1), Block's Llumnix-.

    Freeness is negative when the queue wants more than there is. Requests under way to the engine, that its scheduler
    has not seen, count in the batch as if they ran already: the OSDI artifact divides its dispatch load by running +
    waiting for the same reason, and Block's formula is met exactly when nothing is under way.
    """

    name: ClassVar[str] = "llumnix_freeness"
    cost_unit: ClassVar[str] = "-blocks/request"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        return [
            None
            if (load := node.load) is None
            else (load.waiting_prompt_blocks - load.free_blocks) / max(load.running + load.reserved, 1)
            for node in nodes
        ]

"""The freest node by Llumnix's freeness (Sun et al., OSDI '24, section 4.3), dispatch only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from gateway.core.nodes.freeness import freeness, has_high
from simcore.types import Forecast


class LlumnixFreeness:
    """cost = -freeness = (prompt blocks of all waiting requests + headroom - free blocks) / max(running, 1).

    Freeness is negative when the queue wants more than there is; `gateway.core.nodes.freeness` has the cases of their
    algorithm 1. The headroom, all of a node but 1,600 tokens, is as in the dispatch of their artifact: a node with
    requests of high priority (below 0) keeps it from others, and one without keeps it from high ones, so that they
    gather; an idle node keeps none. Without priorities the cost is Block's Llumnix-. Requests under way to the engine,
    that its scheduler has not seen, count in the batch as if they ran already: the artifact divides its dispatch load
    by running + waiting for the same reason, and Block's formula is met exactly when nothing is under way.
    """

    name: ClassVar[str] = "llumnix_freeness"
    cost_unit: ClassVar[str] = "-blocks/request"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        is_high = request.priority < 0
        return [
            None
            if (load := node.load) is None
            else -freeness(
                load,
                node.config,
                keeps_headroom=bool(load.running + load.waiting) and has_high(node.classes) != is_high,
            )
            for node in nodes
        ]

"""production-stack's loadaware: the share of the prompt that is cached, less the load above the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast

BETA = 1.0


class ProductionStack:
    """cost = 1.0 x (load - mean load) / max(1, mean load) - cached tokens / prompt tokens, load being requests of ours
    there. Where nobody has any of the prompt: the fewest dispatches of ours in the last 60 s.

    Source: vllm-project/production-stack, src/vllm_router/routers/routing_logic.py, LoadAwareRouter of pull request
    1035 (merged 2026-08-09), beta 1.0, without a session key as it starts by default.

    Not copied: ties go to the first URL there, here they are drawn. What is cached is LMCache's word there.
    """

    name: ClassVar[str] = "production_stack"
    cost_unit: ClassVar[str] = "score"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        if not any(node.cached_tokens for node in nodes):
            return [float(node.dispatches_60s) for node in nodes]
        mean = sum(node.in_flight for node in nodes) / len(nodes)
        return [
            BETA * (node.in_flight - mean) / max(1.0, mean)
            - min(node.cached_tokens, request.prompt_tokens) / max(1, request.prompt_tokens)
            for node in nodes
        ]

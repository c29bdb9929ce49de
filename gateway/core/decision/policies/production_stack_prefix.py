"""production-stack's prefixaware: the longest match, whatever the load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class ProductionStackPrefix:
    """cost = -cached tokens of the prompt's beginning; equals, as all are without a match, are drawn.

    Source: vllm-project/production-stack, src/vllm_router/routers/routing_logic.py, PrefixAwareRouter @5ae0b10.

    Not copied: the original never forgets a prefix (its issues 687 and PR 1042); here what a node cannot hold any more
    is forgotten. It matches chunks of 128 characters, here it is blocks of tokens.
    """

    name: ClassVar[str] = "production_stack_prefix"
    cost_unit: ClassVar[str] = "-tokens"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        return [-float(min(node.cached_tokens, request.prompt_tokens)) for node in nodes]

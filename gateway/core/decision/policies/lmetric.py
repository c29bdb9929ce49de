"""LMetric: tokens to prefill times requests in the batch, without a parameter (arXiv 2603.15202)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.accounts import KeepsPrefillAccount, uncached_tokens
from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class LMetric(KeepsPrefillAccount):
    """cost = (uncached prompt tokens of requests there that have no first token + those of this request) x (requests
    there + 1): what the request waits for times those that it keeps waiting.

    Source: the paper's product of new prefill tokens and batch size, in the form of vllm-project/aibrix,
    pkg/plugins/gateway/algorithms/l_metric_local.go @2519ad5, by the router's own account of both.

    Not copied: there a prompt counts until its answer is complete, as if it were never computed; here until its first
    token. The scorer proposed for llm-d (llm-d-router, scorer/lmetric @1fee9c8) leaves out the tokens under way.
    """

    name: ClassVar[str] = "lmetric"
    cost_unit: ClassVar[str] = "tokens x requests"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        return [
            float(
                (self.under_way.tokens(node.node_id) + uncached_tokens(request, node.cached_tokens))
                * (node.in_flight + 1)
            )
            for node in nodes
        ]

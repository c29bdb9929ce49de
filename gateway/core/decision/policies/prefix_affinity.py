"""Where least is left to compute once what the node has cached of the prompt is taken off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class PrefixAffinity:
    """cost = the node's unprocessed tokens + prompt tokens that it has not cached + expected output, all in tokens.

    Llumnix' cache-aware dispatch adds tokens of the prefix that are missed to those that wait for prefill; one unit, so
    no weight of cache against load is needed, and a hot prefix leaves its node as soon as the queue there is longer
    than what the cache saves. Without a match it is `min_total_unprocessed_tokens`.

    What a node has cached it tells itself, or the gateway's own account does (`gateway.core.nodes.prefix_index`).
    """

    name: ClassVar[str] = "prefix_affinity"
    cost_unit: ClassVar[str] = "tokens"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        new_tokens = request.prompt_tokens + request.expected_tokens
        return [
            None
            if node.load is None
            else node.load.unprocessed_tokens + new_tokens - min(node.cached_tokens, request.prompt_tokens - 1)
            for node in nodes
        ]

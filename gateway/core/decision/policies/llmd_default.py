"""llm-d's weighted scorers: cached prefix, queue, KV cache in use, and who last had a cold request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.accounts import cached_share
from gateway.core.decision.policies.base import NodeView, Served
from gateway.core.events import RequestShape
from simcore.types import Forecast

PREFIX_WEIGHT = 3.0
QUEUE_WEIGHT = 2.0
KV_WEIGHT = 2.0
COLD_WEIGHT = 2.0
BEST = PREFIX_WEIGHT + QUEUE_WEIGHT + KV_WEIGHT + COLD_WEIGHT


class LlmdDefault:
    """cost = 9 - (3 prefix + 2 queue + 2 kv + 2 cold), each score in 0..1: llm-d's default profile before the affinity
    filter (its guide optimized-baseline).

    prefix = share of the prompt's blocks that is cached; queue = (longest - waiting) / (longest - shortest), 1 where
    all queues are equal; kv = 1 - share of KV blocks in use; cold = 0.5 for all when any node has some of the prompt,
    else 1 for the node that had a prompt that nobody knew longest ago, 0 for the one that had the last.

    Source: llm-d/llm-d-router, scorers queuedepth/queue.go and kvcacheutilization/kvcache_utilization.go @2342697,
    nohitlru/no_hit_lru.go @0b59e4e, weights 3, 2, 2, 2 of optimized-baseline.

    Not copied: nodes that never had a cold request are ranked by their place in the list there, here they are equal;
    the router polls queues every 50 ms there and does not see what it sent since, here notes are current and what
    is under way counts as waiting; a node that told nothing scores 0 in queue and kv there, here it has no cost.
    """

    name: ClassVar[str] = "llmd_default"
    cost_unit: ClassVar[str] = "score"
    needs_forecasts: ClassVar[bool] = False

    def __init__(self) -> None:
        self._priced: tuple[str, bool] = ("", False)
        """The last request that was priced, and whether it was cold."""
        self._last_cold: dict[str, None] = {}
        """Nodes that had cold requests, the one that had the last at the end."""

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        is_cold = not any(node.cached_tokens for node in nodes)
        self._priced = (request.request_id, is_cold)
        cold = self._cold_scores(nodes) if is_cold else [0.5] * len(nodes)
        queues = [node.load.waiting for node in nodes if node.load is not None]
        longest, shortest = max(queues, default=0), min(queues, default=0)
        costs: list[float | None] = []
        for node, cold_score in zip(nodes, cold, strict=True):
            load = node.load
            if load is None:
                costs.append(None)
                continue
            queue = (longest - load.waiting) / (longest - shortest) if longest > shortest else 1.0
            kv = load.free_blocks / load.total_blocks
            prefix = cached_share(request, node.cached_tokens, node.config.block_size_tokens)
            score = PREFIX_WEIGHT * prefix + QUEUE_WEIGHT * queue + KV_WEIGHT * kv + COLD_WEIGHT * cold_score
            costs.append(BEST - score)
        return costs

    def _cold_scores(self, nodes: Sequence[NodeView]) -> list[float]:
        if len(nodes) == 1:
            return [1.0]
        never = sum([node.node_id not in self._last_cold for node in nodes])
        position = {node_id: i for i, node_id in enumerate(self._last_cold)}
        return [
            1.0 if (i := position.get(node.node_id)) is None else max(0.0, 1.0 - (never + i) / (len(nodes) - 1))
            for node in nodes
        ]

    def placed(self, request: RequestShape, node: NodeView) -> None:
        if self._priced == (request.request_id, True):
            self._last_cold.pop(node.node_id, None)
            self._last_cold[node.node_id] = None

    def began(self, request: RequestShape, node_id: str) -> None:
        """Tells nothing here."""

    def left(self, request: RequestShape, node_id: str, served: Served | None) -> None:
        """Tells nothing here."""

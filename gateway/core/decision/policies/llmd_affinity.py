"""llm-d's affinity filter: where the prompt is cached, until the wait there is too long; then least tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.accounts import KeepsPrefillAccount, cached_share, uncached_tokens
from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast

STICKY_SHARE = 0.80
MOST_PENALTY_S = 18.0
PEAK_PREFILL_TOKENS_PER_S = 15_928.0
"""Measured for Qwen3-32B on two H100s; the original ships this number for every fleet."""
MOST_TOKENS = 4_194_304


class LlmdAffinity(KeepsPrefillAccount):
    """cost = prompt tokens under way to a first token there + those of this request that are not cached, at most
    4,194,304; nodes that the filter takes out cost that number more, and come after all others.

    The filter keeps the nodes that have at least 0.80 of the prompt's blocks, unless the least in-flight tokens among
    them exceed the least among the rest by more than 18 s at 15,928 tokens/s; without such a node it keeps all.

    Source: llm-d/llm-d-router, filter/prefixcacheaffinity/plugin.go @066c20e (threshold 0.80, exploration 0, penalty
    18,000 ms, 15,928 tokens/s), scorer/tokenload/token_load.go @1b30d10, and its account of tokens in flight,
    dataproducer/inflightload @2f1de8c: the uncached part of the prompt, from dispatch to the first token.

    Its account is the router's own: requests of other gateways are not in it, here as there.
    """

    name: ClassVar[str] = "llmd_affinity"
    cost_unit: ClassVar[str] = "tokens"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        under_way = [self.under_way.tokens(node.node_id) for node in nodes]
        is_sticky = [
            cached_share(request, node.cached_tokens, node.config.block_size_tokens) >= STICKY_SHARE for node in nodes
        ]
        kept = self._kept(is_sticky, under_way)
        return [
            min(float(tokens + uncached_tokens(request, node.cached_tokens)), float(MOST_TOKENS))
            + (0.0 if keep else MOST_TOKENS + 1.0)
            for node, tokens, keep in zip(nodes, under_way, kept, strict=True)
        ]

    def _kept(self, is_sticky: Sequence[bool], under_way: Sequence[int]) -> Sequence[bool]:
        sticky = [tokens for tokens, sticks in zip(under_way, is_sticky, strict=True) if sticks]
        others = [tokens for tokens, sticks in zip(under_way, is_sticky, strict=True) if not sticks]
        everyone = [True] * len(is_sticky)
        if not sticky or not others:
            return everyone
        penalty_s = (min(sticky) - min(others)) / PEAK_PREFILL_TOKENS_PER_S
        return everyone if penalty_s > MOST_PENALTY_S else is_sticky

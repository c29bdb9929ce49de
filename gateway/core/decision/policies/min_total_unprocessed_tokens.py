"""Least work left in tokens (Block's Astrolabe-NoSim)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class MinTotalUnprocessedTokens:
    """cost = sum over the node's requests of max(0, prompt + expected output - computed) + prompt and expected output
    of the new one. Expected is the mean of the length belief."""

    name: ClassVar[str] = "min_total_unprocessed_tokens"
    cost_unit: ClassVar[str] = "tokens"
    needs_forecasts: ClassVar[bool] = False
    default_sample: ClassVar[int] = 0

    def shortlist(self, request: RequestShape, nodes: Sequence[NodeView], rng: random.Random) -> Sequence[NodeView]:
        return nodes

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        new_tokens = request.prompt_tokens + min(request.belief.mean_tokens, request.max_output_tokens)
        return [None if node.load is None else node.load.unprocessed_tokens + new_tokens for node in nodes]

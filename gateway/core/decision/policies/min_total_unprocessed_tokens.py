"""Least work left in tokens (Block's Astrolabe-NoSim)."""

from __future__ import annotations

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

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        new_tokens = request.prompt_tokens + request.expected_tokens
        return [None if node.load is None else node.load.unprocessed_tokens + new_tokens for node in nodes]

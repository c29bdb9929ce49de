"""A policy of one's own in one file: the node that promises the first token soonest.

astrolabe bench compare --simulate --policy llumnix_freeness,bench/examples/soonest_token.py --rate 28 --seeds 3
astrolabe gateway --policy bench/examples/soonest_token.py --node 127.0.0.1:8100
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class SoonestToken:
    """One class with these four members; an instance serves one router and may keep state of its own."""

    name = "soonest_token"
    """Under this name it appears in tables, in `explain` and in SetPolicy."""
    cost_unit = "s"
    needs_forecasts = True
    """Whether nodes are asked for forecasts before `costs` is called."""

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        """One cost per node, the lowest wins; None where a node cannot be priced."""
        return [None if (f := forecasts.get(node.node_id)) is None else f.ttft_s.mean for node in nodes]

"""AIBrix's prefix-cache: the best match among nodes that are not busier than most."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.accounts import cached_share, places
from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast

UNEVEN_FACTOR = 2.0
UNEVEN_GAP_REQUESTS = 8
DEVIATIONS = 1.0


class AibrixPrefix:
    """The longest match, in whole percents of the prompt, among nodes with at most mean + 1 standard deviation of
    requests; of equal ones that with fewer. Where nobody qualifies: the fewest requests.

    Uneven loads (most > 2 x (mean + 1), and most - fewest >= 8) leave only the nodes with the fewest requests to be
    matched. The cost is the place in this order.

    Source: vllm-project/aibrix, pkg/plugins/gateway/algorithms/prefix_cache.go @01de8a5, with its defaults; requests
    are the gateway's own count, the deviation that of a sample (n - 1).
    """

    name: ClassVar[str] = "aibrix_prefix"
    cost_unit: ClassVar[str] = "rank"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        loads = [node.in_flight for node in nodes]
        if not loads:
            return []
        most, fewest, mean = max(loads), min(loads), statistics.fmean(loads)
        is_uneven = most > UNEVEN_FACTOR * (mean + 1) and most - fewest >= UNEVEN_GAP_REQUESTS
        bearable = mean + DEVIATIONS * (statistics.stdev(loads) if len(loads) > 1 else 0.0)
        keys = []
        for node in nodes:
            percent = int(100 * cached_share(request, node.cached_tokens, node.config.block_size_tokens))
            load = node.in_flight
            is_matched = percent > 0 and load <= bearable and (load == fewest or not is_uneven)
            keys.append((0, -percent, load) if is_matched else (1, 0, load))
        return places(keys)

"""The cache_aware policy of SGLang's router, of SMG and of vllm-router: longest match, unless loads are uneven."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.accounts import cached_share, places
from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast

MATCH_ABOVE = 0.3
UNEVEN_ABOVE_REQUESTS = 64
UNEVEN_ABOVE_RATIO = 1.5


class CacheAwareRule:
    """Even loads: the node with the longest match, if that is more than 0.3 of the prompt; else, and wherever loads are
    uneven, the one with the fewest requests of ours. Uneven: most - fewest > 64 and most > 1.5 x fewest.

    The cost is the place in that order: of equal matches the lesser loaded node goes first.

    Source: vllm-project/router, src/policies/cache_aware.rs @16917f4, a descendant of SGLang's router, as is
    smg-project/smg, model_gateway/src/policies/cache_aware.rs @04def28; thresholds as all three ship them on the
    command line (0.3, 64, 1.5).

    Not copied: SGLang's frozen router (0.3.2) sends a miss to the smallest tree, whatever its load, which can end on
    one worker (sgl-project/sglang#14305); its descendants send it to the least loaded, as here. They match characters
    of text, here it is blocks of tokens.
    """

    name: ClassVar[str] = "cache_aware"
    cost_unit: ClassVar[str] = "rank"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        loads = [node.in_flight for node in nodes]
        most, fewest = max(loads, default=0), min(loads, default=0)
        shares = [cached_share(request, node.cached_tokens, node.config.block_size_tokens) for node in nodes]
        is_uneven = most - fewest > UNEVEN_ABOVE_REQUESTS and most > UNEVEN_ABOVE_RATIO * fewest
        if is_uneven or max(shares, default=0.0) <= MATCH_ABOVE:
            return places([(load,) for load in loads])
        return places([(-share, load) for share, load in zip(shares, loads, strict=True)])

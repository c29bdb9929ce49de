"""PlanetServe's overlay forwarding: longest match in the hash radix tree among nodes that are not the slowest."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.accounts import places
from gateway.core.decision.policies.base import NodeView, Served
from gateway.core.events import RequestShape
from simcore.types import Forecast

REMEMBERED_PROMPTS = 10
BATCH_TOKENS = 2048
FIRST_LATENCY_S = 0.071
KEPT_OF_MEAN = 0.875
HIT_PERCENTILE = 80


class PlanetServe:
    """Balance factor of a node = mean latency x ceil(prompt tokens there / 2,048). Nodes where one of the last 10
    prompts begins like this one are hits; of those not above the 80th percentile of the hits' factors the longest
    match wins, then the least factor, then the fewest requests ever. Without a hit: least factor, fewest requests.

    The mean latency moves by 1/8 with each answer. The cost is the place in this order: hits above the percentile come
    with those that are none.

    Source: fffeifang/PlanetServe, eval/workload/workload_measurer_online.py (`--dispatch lb`) @1447489.

    Not copied: there each dispatch takes 2,048 tokens off every node's queue, whether anything was served or not, so
    that factors are 0 unless prompts are long; here a prompt's tokens leave with its request. Latencies begin at
    random near 71 ms there, here at 71 ms. Chunks are KV blocks, not 10 tokens.
    """

    name: ClassVar[str] = "planetserve"
    cost_unit: ClassVar[str] = "rank"
    needs_forecasts: ClassVar[bool] = False

    def __init__(self) -> None:
        self._prompts: dict[str, deque[Sequence[int]]] = {}
        """Per node the block names of its last prompts."""
        self._known: dict[str, Counter[int]] = {}
        """Per node how many of these have each name."""
        self._latency_s: dict[str, float] = {}
        self._tokens: Counter[str] = Counter()
        """Per node prompt tokens of the requests that are there."""
        self._there: dict[tuple[str, str], int] = {}
        self._placed: Counter[str] = Counter()

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        factors = [self._factor(node.node_id) for node in nodes]
        matches = [self._match(request.block_hashes, node.node_id) for node in nodes]
        hits = sorted(factor for factor, match in zip(factors, matches, strict=True) if match)
        most = hits[-(-len(hits) * HIT_PERCENTILE // 100) - 1] if hits else 0.0
        return places(
            [
                (0, -match, factor, self._placed[node.node_id])
                if match and factor <= most
                else (1, 0, factor, self._placed[node.node_id])
                for node, factor, match in zip(nodes, factors, matches, strict=True)
            ]
        )

    def placed(self, request: RequestShape, node: NodeView) -> None:
        node_id = node.node_id
        self._placed[node_id] += 1
        self._there[node_id, request.request_id] = request.prompt_tokens
        self._tokens[node_id] += request.prompt_tokens
        prompts = self._prompts.setdefault(node_id, deque())
        known = self._known.setdefault(node_id, Counter())
        prompts.append(request.block_hashes)
        known.update(request.block_hashes)
        if len(prompts) > REMEMBERED_PROMPTS:
            known.subtract(forgotten := prompts.popleft())
            for name in forgotten:
                if not known[name]:
                    del known[name]

    def began(self, request: RequestShape, node_id: str) -> None:
        """Tells nothing here."""

    def left(self, request: RequestShape, node_id: str, served: Served | None) -> None:
        self._tokens[node_id] -= self._there.pop((node_id, request.request_id), 0)
        if served is not None:
            mean_s = self._latency_s.get(node_id, FIRST_LATENCY_S)
            self._latency_s[node_id] = KEPT_OF_MEAN * mean_s + (1.0 - KEPT_OF_MEAN) * served.e2e_s

    def _factor(self, node_id: str) -> float:
        return self._latency_s.get(node_id, FIRST_LATENCY_S) * -(-self._tokens[node_id] // BATCH_TOKENS)

    def _match(self, names: Sequence[int], node_id: str) -> int:
        """Blocks at the beginning that one of the node's last prompts has. Names chain: a known one means all before
        it are known."""
        known = self._known.get(node_id)
        if not known:
            return 0
        low, high = 0, len(names)
        while low < high:
            middle = (low + high + 1) // 2
            if names[middle - 1] in known:
                low = middle
            else:
                high = middle - 1
        return low

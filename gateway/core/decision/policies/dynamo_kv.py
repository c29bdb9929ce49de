"""The cost of NVIDIA Dynamo's KV router: blocks to prefill there + blocks that sequences hold there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.accounts import PrefillAccount
from gateway.core.decision.policies.base import NodeView, Served
from gateway.core.events import RequestShape
from simcore.types import Forecast

PREFILL_LOAD_SCALE = 1.0
OVERLAP_CREDIT = 1.0


class DynamoKv:
    """cost = 1.0 x max(0, prefill blocks - 1.0 x cached blocks) + decode blocks, the least of them (temperature 0).

    prefill blocks = prompt tokens of this request and the uncached ones of those without a first token, / block size;
    decode blocks = distinct prompt blocks of all requests there + those of this one that none of them has. Blocks of
    answers are not counted (`--router-track-output-blocks` is off), the weight of active requests is 0, as is the
    decay of the credit, and nothing is queued in the router.

    Source: ai-dynamo/dynamo, lib/kv-router/src/scheduling/selector/default.rs @07a6c9c, defaults of release 1.6.1.
    Its softmax is not here: at its default temperature of 0 it is the argmin with ties at random.

    Its account is the router's own: requests of other gateways are not in it, here as there without replica sync.
    """

    name: ClassVar[str] = "dynamo_kv"
    cost_unit: ClassVar[str] = "blocks"
    needs_forecasts: ClassVar[bool] = False

    def __init__(self) -> None:
        self._prefill = PrefillAccount()
        self._held: dict[str, Counter[int]] = {}
        """Per node how many requests there have each named block of a prompt."""
        self._unnamed: Counter[str] = Counter()
        """Per node blocks of prompts that have no name, and are shared with nobody."""
        self._requests: dict[tuple[str, str], tuple[Sequence[int], int]] = {}
        """Per node and request its blocks: the names, and how many have none."""

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        costs: list[float | None] = []
        for node in nodes:
            size = node.config.block_size_tokens
            prefill = (self._prefill.tokens(node.node_id) + request.prompt_tokens) / size
            adjusted = max(0.0, prefill - OVERLAP_CREDIT * node.cached_tokens / size)
            held = self._held.get(node.node_id, Counter())
            new = sum([name not in held for name in request.block_hashes]) + _unnamed(request, size)
            decode = len(held) + self._unnamed[node.node_id] + new
            costs.append(PREFILL_LOAD_SCALE * adjusted + decode)
        return costs

    def placed(self, request: RequestShape, node: NodeView) -> None:
        node_id = node.node_id
        self._prefill.add(request, node)
        self._drop(request, node_id)
        unnamed = _unnamed(request, node.config.block_size_tokens)
        self._requests[node_id, request.request_id] = request.block_hashes, unnamed
        self._held.setdefault(node_id, Counter()).update(request.block_hashes)
        self._unnamed[node_id] += unnamed

    def began(self, request: RequestShape, node_id: str) -> None:
        self._prefill.remove(request, node_id)

    def left(self, request: RequestShape, node_id: str, served: Served | None) -> None:
        self._prefill.remove(request, node_id)
        self._drop(request, node_id)

    def _drop(self, request: RequestShape, node_id: str) -> None:
        names, unnamed = self._requests.pop((node_id, request.request_id), ((), 0))
        held = self._held.get(node_id, Counter())
        for name in names:
            held[name] -= 1
            if not held[name]:
                del held[name]
        self._unnamed[node_id] -= unnamed


def _unnamed(request: RequestShape, block_size_tokens: int) -> int:
    return max(0, -(-request.prompt_tokens // block_size_tokens) - len(request.block_hashes))

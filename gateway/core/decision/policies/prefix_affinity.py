"""Where least is left to compute once what the node has cached of the prompt is taken off."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast

MOST_BLOCKS_PER_NODE = 16_384
"""Names remembered per node at most (about 2 MB), however many blocks it has."""


class PrefixAffinity:
    """cost = the node's unprocessed tokens + prompt tokens that it has not cached + expected output, all in tokens.

    Llumnix' cache-aware dispatch adds tokens of the prefix that are missed to those that wait for prefill; one unit, so
    no weight of cache against load is needed, and a hot prefix leaves its node as soon as the queue there is longer
    than what the cache saves. Without a match it is `min_total_unprocessed_tokens`.

    What a node has cached is this gateway's own account: the block names of the prompts sent there under this policy,
    the oldest forgotten beyond the number of blocks that the node has. Names chain, so a name that is known means that
    all before it were sent there too.
    """

    name: ClassVar[str] = "prefix_affinity"
    cost_unit: ClassVar[str] = "tokens"
    needs_forecasts: ClassVar[bool] = False
    default_sample: ClassVar[int] = 0

    def __init__(self) -> None:
        self._sent: dict[str, OrderedDict[int, None]] = {}
        """Block names per node, oldest first."""
        self._room_blocks: dict[str, int] = {}

    def shortlist(self, request: RequestShape, nodes: Sequence[NodeView], rng: random.Random) -> Sequence[NodeView]:
        return nodes

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        new_tokens = request.prompt_tokens + min(request.belief.mean_tokens, request.max_output_tokens)
        costs: list[float | None] = []
        for node in nodes:
            if request.block_hashes:
                self._room_blocks[node.node_id] = node.config.num_blocks
            if node.load is None:
                costs.append(None)
                continue
            cached_tokens = self.cached_blocks(node.node_id, request) * node.config.block_size_tokens
            costs.append(node.load.unprocessed_tokens + new_tokens - min(cached_tokens, request.prompt_tokens - 1))
        return costs

    def placed(self, request: RequestShape, node_id: str) -> None:
        """The request goes to this node: its blocks will be there."""
        if not request.block_hashes:
            return
        sent = self._sent.setdefault(node_id, OrderedDict())
        # From the end, so that the beginning of a prompt is forgotten last and what is known stays a beginning.
        for name in reversed(request.block_hashes):
            sent[name] = None
            sent.move_to_end(name)
        room = min(self._room_blocks.get(node_id, MOST_BLOCKS_PER_NODE), MOST_BLOCKS_PER_NODE)
        while len(sent) > room:
            sent.popitem(last=False)

    def cached_blocks(self, node_id: str, request: RequestShape) -> int:
        """How many blocks of the prompt's beginning were sent there. By bisection: what is known is a beginning."""
        sent = self._sent.get(node_id)
        names = request.block_hashes
        if not sent or not names or names[0] not in sent:
            return 0
        low, high = 1, len(names)
        while low < high:
            middle = (low + high + 1) // 2
            if names[middle - 1] in sent:
                low = middle
            else:
                high = middle - 1
        return low

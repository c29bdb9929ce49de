"""Which beginnings of prompts went to which node: this gateway's own account of what caches hold. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from simcore.types import EngineConfig

MOST_BLOCKS_PER_NODE = 16_384
"""Names remembered per node at most (about 2 MB), however many blocks it has."""


class PrefixIndex:
    """Names of the prompts' KV blocks (`simcore.prefix`) per node, the oldest forgotten beyond the number of blocks
    that the node has. Names chain, so a name that is known means that all before it were sent there too."""

    def __init__(self) -> None:
        self._sent: dict[str, OrderedDict[int, None]] = {}
        """Block names per node, oldest first."""

    def sent(self, node_id: str, names: Sequence[int], config: EngineConfig) -> None:
        """A prompt with these blocks goes to the node: they will be there."""
        if not names:
            return
        known = self._sent.setdefault(node_id, OrderedDict())
        # From the end, so that the beginning of a prompt is forgotten last and what is known stays a beginning.
        for name in reversed(names):
            known[name] = None
            known.move_to_end(name)
        room = min(config.num_blocks, MOST_BLOCKS_PER_NODE)
        while len(known) > room:
            known.popitem(last=False)

    def forget(self, node_id: str) -> None:
        """The node has left."""
        self._sent.pop(node_id, None)

    def cached_blocks(self, node_id: str, names: Sequence[int]) -> int:
        """How many blocks of the prompt's beginning were sent there. By bisection: what is known is a beginning."""
        known = self._sent.get(node_id)
        if not known or not names or names[0] not in known:
            return 0
        low, high = 1, len(names)
        while low < high:
            middle = (low + high + 1) // 2
            if names[middle - 1] in known:
                low = middle
            else:
                high = middle - 1
        return low

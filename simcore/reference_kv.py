"""KV blocks of one engine, plainly: who holds which block, which block holds whose tokens, which is reused first.

The rules are those of vLLM 0.32 (`BlockPool`, `FreeKVCacheBlockQueue`, `FullAttentionManager`) for one full-attention
group. Freed blocks without a content key go to the *front* of the free queue, in the order freed; freed blocks with a
key (full blocks, when prefix caching is on) go to its *end*; allocation takes from the front and forgets the key. A
request's blocks are freed last block first. Slow and readable: the compiled engine is compared with this.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BlockKey = int | tuple[str, int]
"""What a full block holds: a hash, or (request, index of block) for what no other has. Equal keys, equal content."""


class ReferenceBlocks:
    """The pool of `total` blocks."""

    def __init__(self, total: int, *, caching: bool) -> None:
        self.total = total
        self.caching = caching
        self._free: OrderedDict[int, None] = OrderedDict((i, None) for i in range(total))
        self._references = [0] * total
        self._key_of: dict[int, BlockKey] = {}
        self._by_key: dict[BlockKey, dict[int, None]] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    def free_order(self) -> list[BlockKey | None]:
        """Content keys of the free queue, next to be reused first."""
        return [self._key_of.get(b) for b in self._free]

    def cached_prefix(self, keys: Sequence[BlockKey]) -> list[int]:
        """Blocks that already hold the longest known prefix of `keys`."""
        hit: list[int] = []
        if not self.caching:
            return hit
        for key in keys:
            blocks = self._by_key.get(key)
            if not blocks:
                break
            hit.append(next(iter(blocks)))
        return hit

    def evictable(self, blocks: Sequence[int]) -> int:
        """How many of these blocks stand in the free queue now."""
        return sum(self._references[b] == 0 for b in blocks)

    def touch(self, blocks: Sequence[int]) -> None:
        """Takes cached blocks into use by one more request."""
        for b in blocks:
            if self._references[b] == 0:
                del self._free[b]
            self._references[b] += 1

    def take(self, n: int) -> list[int]:
        """`n` blocks from the front of the free queue; what they held is forgotten. Needs `n <= free`."""
        taken = [self._free.popitem(last=False)[0] for _ in range(n)]
        for b in taken:
            self._forget(b)
            self._references[b] = 1
        return taken

    def set_key(self, block: int, key: BlockKey) -> None:
        """Records that a held block is full and what it holds."""
        self._key_of[block] = key
        self._by_key.setdefault(key, {})[block] = None

    def release(self, blocks: Sequence[int]) -> None:
        """Gives back one request's blocks, listed in the order of its tokens."""
        first: list[int] = []
        last: list[int] = []
        for b in reversed(blocks):
            self._references[b] -= 1
            if self._references[b] == 0:
                (last if b in self._key_of else first).append(b)
        for b in reversed(first):
            self._free[b] = None
            self._free.move_to_end(b, last=False)
        for b in last:
            self._free[b] = None

    def check(self, held: Sequence[Sequence[int]]) -> None:
        """Raises AssertionError unless the blocks in `held` (one list per request) and the free queue are the pool."""
        counts = [0] * self.total
        for blocks in held:
            for b in blocks:
                counts[b] += 1
        assert counts == self._references, "reference counts differ from what requests hold"
        for b in range(self.total):
            assert (counts[b] == 0) == (b in self._free), f"block {b}: held {counts[b]} times, free={b in self._free}"
        for key, members in self._by_key.items():
            assert all(self._key_of.get(b) == key for b in members), f"index of {key} is stale"

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            members = self._by_key[key]
            del members[block]
            if not members:
                del self._by_key[key]

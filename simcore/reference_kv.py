"""KV blocks of one engine, plainly: who holds which block, which block holds whose tokens, which is reused first.

The rules are those of vLLM 0.32 (`BlockPool`, `FreeKVCacheBlockQueue`, `FullAttentionManager`, `SlidingWindowManager`,
`HybridKVCacheCoordinator`). Freed blocks without a content key go to the *front* of the free queue, in the order freed;
freed blocks with a key (full blocks, when prefix caching is on) go to its *end*; allocation takes from the front and
forgets the key. A request's blocks are freed last block first, group by group.

Layers that attend to all tokens and layers that attend to a sliding window keep KV in groups of their own, which take
blocks of one pool for the same tokens. Whenever a request that runs is to get tokens, the blocks of its window groups
that lie wholly before the window of the next token are freed first; what is in flight still reads its own window. Of a
window group's full blocks only those get a key that a later request needs to begin behind the prompt, or behind a
beginning that the other groups know already. A prompt begins where all groups have what its next token attends to.

Slow and readable: the compiled engine is compared with this.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from simcore.types import EngineConfig

BlockKey = int | tuple[str, int]
"""What a full block holds: a hash, or (request, index of block) for what no other has. Equal keys, equal content."""
GroupKey = tuple[int, BlockKey]
"""What is found is a block of one group (its number) with that content."""
LEFT = -1
"""In place of a block that the window has passed."""


class ReferenceBlocks:
    """The pool of `total` blocks."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free: OrderedDict[int, None] = OrderedDict((i, None) for i in range(total))
        self._references = [0] * total
        self._key_of: dict[int, GroupKey] = {}
        self._by_key: dict[GroupKey, dict[int, None]] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    def free_order(self) -> list[GroupKey | None]:
        """Content keys of the free queue, next to be reused first."""
        return [self._key_of.get(b) for b in self._free]

    def find(self, key: GroupKey) -> int | None:
        """The block that got this key first of those that have it."""
        return next(iter(self._by_key.get(key, ())), None)

    def evictable(self, blocks: Sequence[int]) -> int:
        """How many of these blocks stand in the free queue now."""
        return sum(b != LEFT and self._references[b] == 0 for b in blocks)

    def touch(self, blocks: Sequence[int]) -> None:
        """Takes cached blocks into use by one more request."""
        for b in blocks:
            if b == LEFT:
                continue
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

    def set_key(self, block: int, key: GroupKey) -> None:
        """Records that a held block is full and what it holds."""
        self._key_of[block] = key
        self._by_key.setdefault(key, {})[block] = None

    def release(self, blocks: Sequence[int]) -> None:
        """Gives back blocks of one request and group, listed in the order of its tokens."""
        first: list[int] = []
        last: list[int] = []
        for b in reversed(blocks):
            if b == LEFT:
                continue
            self._references[b] -= 1
            if self._references[b] == 0:
                (last if b in self._key_of else first).append(b)
        for b in reversed(first):
            self._free[b] = None
            self._free.move_to_end(b, last=False)
        for b in last:
            self._free[b] = None

    def check(self, held: Sequence[Sequence[int]]) -> None:
        """Raises AssertionError unless the blocks in `held` and the free queue are the pool."""
        counts = [0] * self.total
        for blocks in held:
            for b in blocks:
                if b != LEFT:
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


class ReferenceHolding(msgspec.Struct, kw_only=True, eq=False):
    """What one request has of the KV cache."""

    prompt_tokens: int
    request_id: str
    block_hashes: tuple[int, ...] = ()
    """Hashes of the full blocks of its prompt; beyond them its blocks hold what no other request has."""
    groups: list[list[int]] = []
    """Its blocks in each group, in the order of its tokens; empty while it waits."""
    keyed_blocks: int = 0
    """How many of its leading blocks have got the content keys that they get."""
    known_blocks: int = 0
    """How many of its first blocks other groups had when the window groups had less; 0 if they had not."""

    def key(self, group: int, index: int) -> GroupKey:
        return group, self.block_hashes[index] if index < len(self.block_hashes) else (self.request_id, index)


class Hit(NamedTuple):
    """What a waiting request finds cached."""

    blocks: int
    """So many of its first blocks need no computing."""
    groups: list[list[int]]
    known_blocks: int


class ReferenceKv:
    """Gives requests their blocks in each group and takes them back."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.pool = ReferenceBlocks(config.num_blocks)
        self._windows = config.kv_windows_tokens
        self._reach = -(-(config.window_tokens - 1) // config.block_size_tokens)
        """Blocks before a block's beginning to which its first token attends in window groups."""

    def find(self, held: ReferenceHolding, tokens: int) -> Hit:
        """What is cached of so many tokens. The last one is always computed anew: its logits give the next token."""
        known = (tokens - 1) // self.config.block_size_tokens if self.config.enable_prefix_caching else 0
        full = [g for g, window in enumerate(self._windows) if not window]
        local = [g for g, window in enumerate(self._windows) if window]
        if full:
            known = next((k for k in range(known) if not self._cached(held, full, k)), known)
        blocks = self._end_of_reach(held, local, known) if local else known - min(known, self.config.dropped_blocks)
        groups: list[list[int]] = []
        for g, window in enumerate(self._windows):
            left = max(0, blocks - self._reach) if window else 0
            found = [self.pool.find(held.key(g, k)) for k in range(left, blocks)]
            groups.append([LEFT] * left + [b for b in found if b is not None])
        return Hit(blocks, groups, known if full and blocks < known else 0)

    def admit(self, held: ReferenceHolding, hit: Hit, all_tokens: int, tokens: int, named_tokens: int) -> bool:
        """Gives a waiting request what it has found and blocks for `tokens` tokens; False (and nothing done) unless
        there are blocks for these, and for all that it has now."""
        size, evictable = self.config.block_size_tokens, sum(map(self.pool.evictable, hit.groups))
        rows = -(-all_tokens // size)
        asked = [max(0, (min(rows, self.config.window_blocks) if w else rows) - hit.blocks) for w in self._windows]
        needed = len(self._windows) * max(0, -(-tokens // size) - hit.blocks)
        if max(sum(asked), needed) + evictable > self.pool.free:
            return False
        for blocks in hit.groups:
            self.pool.touch(blocks)
        held.groups, held.keyed_blocks, held.known_blocks = hit.groups, hit.blocks, hit.known_blocks
        return self.grow(held, tokens, 0, named_tokens)

    def grow(self, held: ReferenceHolding, tokens: int, settled_tokens: int, named_tokens: int) -> bool:
        """Gives it blocks for `tokens` tokens; False if they are not there. `settled_tokens` are computed and no longer
        in flight; the first `named_tokens` are known."""
        size = self.config.block_size_tokens
        for blocks, window in zip(held.groups, self._windows, strict=True):
            left = max(0, settled_tokens - window + 1) // size if window else 0
            self.pool.release(blocks[:left])
            blocks[:left] = [LEFT] * left
        missing = -(-tokens // size) - len(held.groups[0])
        if missing * len(self._windows) > self.pool.free:
            return False
        for blocks in held.groups if missing > 0 else ():
            blocks += self.pool.take(missing)
        self.name(held, named_tokens)
        return True

    def name(self, held: ReferenceHolding, tokens: int) -> None:
        """Gives its full blocks up to `tokens` the keys by which their content can be found."""
        size = self.config.block_size_tokens
        full = tokens // size
        if not self.config.enable_prefix_caching or full <= held.keyed_blocks:
            return
        ends = (held.prompt_tokens - 1) // size, held.known_blocks
        for g, window in enumerate(self._windows):
            for k in range(held.keyed_blocks, full):
                if not window or any(end - self._reach <= k < end for end in ends):
                    self.pool.set_key(held.groups[g][k], held.key(g, k))
        held.keyed_blocks = full

    def release(self, held: ReferenceHolding) -> None:
        for blocks in held.groups:
            self.pool.release(blocks)
        held.groups, held.keyed_blocks = [], 0

    def _cached(self, held: ReferenceHolding, groups: Sequence[int], index: int) -> bool:
        return all(self.pool.find(held.key(g, index)) is not None for g in groups)

    def _end_of_reach(self, held: ReferenceHolding, groups: Sequence[int], most: int) -> int:
        """The end of the last blocks within the first `most` that are enough for the token behind them."""
        run = 0
        for k in range(most - 1, -1, -1):
            run = run + 1 if self._cached(held, groups, k) else 0
            if run == self._reach:
                return k + run
        return run

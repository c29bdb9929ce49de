"""The KV cache manager: gives requests their KV blocks and takes them back.

Blocks are counted (`block_counts`) or, where prompts share prefixes, told one from another (`block_pool`). vLLM's
`KVCacheManager` does the same for a real engine.
"""

from __future__ import annotations

from simcore.compiled import block_counts, block_pool
from simcore.compiled import layout as at
from simcore.compiled.layout import Ints, Shared
from simcore.kernel_cache import kernel


@kernel
def fits_now(head: Ints, req: Ints, slot: int) -> bool:
    """The admission rule without shared blocks: all tokens that a waiting request has now must fit the free ones, not
    just its first chunk."""
    whole = min(req[slot, at.PROMPT] + req[slot, at.OUT], head[at.MAX_LEN])
    return whole <= (head[at.FREE] + req[slot, at.ASSUMED_HELD]) * head[at.BLOCK]


@kernel
def names_lag(head: Ints, shared: Shared) -> bool:
    """Whether column `KEYED` is kept: elsewhere all that is computed is named."""
    return head[at.ASYNC] != 0 or head[at.SPECULATIVE] > 0 or shared is not None


@kernel
def room_for(head: Ints, tokens: int) -> int:
    """How many tokens must have room for a slot to compute its first `tokens`."""
    if head[at.LOOKAHEAD] > 0:
        return min(tokens + head[at.LOOKAHEAD], head[at.MAX_LEN])
    return tokens


@kernel
def chunk_after(head: Ints, tokens: int, cached: int, limit: int, budget: int, padded: int) -> int:
    """How many tokens a waiting request that has found `cached` gets at its admission; 0: it is not admitted."""
    n = tokens - cached
    if n == 1 and padded > 0 and (cached > 0 or padded > 1) and cached + 1 + head[at.SPECULATIVE] < head[at.MAX_LEN]:
        n += head[at.SPECULATIVE]
        if n > budget:
            return 0
    if 0 < limit < n:
        n = limit
    return min(n, budget)


@kernel
def name(head: Ints, req: Ints, shared: Shared, slot: int, tokens: int) -> None:
    """The first `tokens` of a running slot are known: their full blocks can be found by content."""
    if shared is not None:
        block_pool.name_blocks(head, req, shared, slot, tokens)
    req[slot, at.KEYED] = tokens


@kernel
def grow(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int, tokens: int) -> bool:
    """Gives a slot blocks for `tokens` tokens; False (and nothing done) if they are not there."""
    block = head[at.BLOCK]
    lacking = tokens - req[slot, at.CAPACITY]
    if lacking > 0:
        n = (lacking + block - 1) // block
        if n > head[at.FREE]:
            return False
        if shared is not None:
            block_pool.take_blocks(head, req, shared, slot, n)
        else:
            block_counts.take(head, req, lists, n)
        req[slot, at.CAPACITY] += n * block
    return True


@kernel
def reuse(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int, limit: int, budget: int, padded: int) -> int:
    """Gives a waiting slot the blocks that still hold its tokens, if all that it has now fits with them, and the chunk
    that it would get (`chunk_after`).

    Returns how many they are; -1 (and nothing done) if it does not fit.
    """
    block = head[at.BLOCK]
    tokens = req[slot, at.PROMPT] + req[slot, at.OUT]
    whole = min(tokens, head[at.MAX_LEN])
    if shared is not None:
        hits, evictable = block_pool.count_hits(head, req, shared, slot)
        if head[at.SPECULATIVE] > 0:
            n = chunk_after(head, tokens, hits * block, limit, budget, padded)
            whole = max(whole, room_for(head, hits * block + n)) if n > 0 else (head[at.TOTAL_BLOCKS] + 1) * block
        if (whole + block - 1) // block - hits + evictable > head[at.FREE]:
            return -1
        block_pool.adopt(head, req, shared, slot, hits)
    else:
        # The last token is always computed anew: its logits give the next token.
        most = (tokens - 1) // block
        if head[at.SPECULATIVE] > 0:
            most = min(most, max(block_counts.kept(req, lists, slot), req[slot, at.ASSUMED]))
            most -= int(head[at.DROPS_BLOCK] > 0 and most > 0)
            n = chunk_after(head, tokens, most * block, limit, budget, padded)
            whole = room_for(head, most * block + n)
            if n == 0 or whole > (head[at.FREE] + req[slot, at.ASSUMED_HELD]) * block:
                return -1
        if not fits_now(head, req, slot):
            return -1
        hits = block_counts.reclaim(head, req, lists, slot, most)
        assumed = min(most, req[slot, at.ASSUMED])
        if assumed > hits:
            block_counts.disown(head, req, lists, slot)
            held = min(assumed - hits, req[slot, at.ASSUMED_HELD])
            block_counts.take(head, req, lists, assumed - hits - held)
            req[slot, at.BORROWED] = held
            hits = assumed
        req[slot, at.ASSUMED] = req[slot, at.ASSUMED_HELD] = 0
    req[slot, at.CAPACITY] = req[slot, at.KEYED] = hits * block
    return hits


@kernel
def release(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int, comes_back: bool) -> None:
    """Frees what a slot holds."""
    if shared is not None:
        block_pool.release_blocks(head, req, shared, slot)
    else:
        held = req[slot, at.CAPACITY] // head[at.BLOCK]
        named = req[slot, at.KEYED] if names_lag(head, shared) else req[slot, at.COMPUTED] + req[slot, at.GRANTED]
        keyed = named // head[at.BLOCK] if head[at.CACHING] else 0
        borrowed = req[slot, at.BORROWED]
        if held > 0:
            block_counts.give_back(head, req, lists, slot if comes_back else -1, held - keyed, max(0, keyed - borrowed))
        req[slot, at.BORROWED] = 0
    req[slot, at.CAPACITY] = req[slot, at.KEYED] = 0

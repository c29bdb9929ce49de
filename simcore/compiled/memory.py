"""What a step does with KV blocks, whichever way they are kept: as counts (`kv`), or, where prompts are shared, one by
one (`blocks`)."""

from __future__ import annotations

from numba import njit

from simcore.compiled import blocks, kv
from simcore.compiled.layout import (
    AHEAD,
    ASSUMED,
    ASSUMED_HELD,
    BLOCK,
    BORROWED,
    CACHING,
    CAPACITY,
    COMPUTED,
    FREE,
    GRANTED,
    KEYED,
    MAX_LEN,
    OUT,
    PROMPT,
    Ints,
    Shared,
)


@njit(nogil=True)
def fits_now(head: Ints, req: Ints, slot: int) -> bool:
    """The admission rule without shared blocks: all tokens that a waiting request has now must fit the free ones, not
    just its first chunk."""
    whole = min(req[slot, PROMPT] + req[slot, OUT], head[MAX_LEN])
    return whole <= (head[FREE] + req[slot, ASSUMED_HELD]) * head[BLOCK]


@njit(nogil=True)
def names_lag(head: Ints, shared: Shared) -> bool:
    """Whether column `KEYED` is kept: elsewhere all that is computed is named."""
    return head[AHEAD] != 0 or shared is not None


@njit(nogil=True)
def name(head: Ints, req: Ints, shared: Shared, slot: int, tokens: int) -> None:
    """The first `tokens` of a running slot are known: their full blocks can be found by content."""
    if shared is not None:
        blocks.name_blocks(head, req, shared, slot, tokens)
    req[slot, KEYED] = tokens


@njit(nogil=True)
def grow(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int, tokens: int) -> bool:
    """Gives a slot blocks for `tokens` tokens; False (and nothing done) if they are not there."""
    block = head[BLOCK]
    lacking = tokens - req[slot, CAPACITY]
    if lacking > 0:
        n = (lacking + block - 1) // block
        if n > head[FREE]:
            return False
        if shared is not None:
            blocks.take_blocks(head, req, shared, slot, n)
        else:
            kv.take(head, req, lists, n)
        req[slot, CAPACITY] += n * block
    return True


@njit(nogil=True)
def reuse(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int) -> int:
    """Gives a waiting slot the blocks that still hold its tokens, if all that it has now fits with them.

    Returns how many they are; -1 (and nothing done) if it does not fit.
    """
    block = head[BLOCK]
    tokens = req[slot, PROMPT] + req[slot, OUT]
    if shared is not None:
        hits, evictable = blocks.count_hits(head, req, shared, slot)
        whole = min(tokens, head[MAX_LEN])
        if (whole + block - 1) // block - hits + evictable > head[FREE]:
            return -1
        blocks.adopt(head, req, shared, slot, hits)
    else:
        if not fits_now(head, req, slot):
            return -1
        # The last token is always computed anew: its logits give the next token.
        most = (tokens - 1) // block
        hits = kv.reclaim(head, req, lists, slot, most)
        assumed = min(most, req[slot, ASSUMED])
        if assumed > hits:
            kv.disown(head, req, lists, slot)
            held = min(assumed - hits, req[slot, ASSUMED_HELD])
            kv.take(head, req, lists, assumed - hits - held)
            req[slot, BORROWED] = held
            hits = assumed
        req[slot, ASSUMED] = req[slot, ASSUMED_HELD] = 0
    req[slot, CAPACITY] = req[slot, KEYED] = hits * block
    return hits


@njit(nogil=True)
def release(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int, comes_back: bool) -> None:
    """Frees what a slot holds."""
    if shared is not None:
        blocks.release_blocks(head, req, shared, slot)
    else:
        held = req[slot, CAPACITY] // head[BLOCK]
        named = req[slot, KEYED] if names_lag(head, shared) else req[slot, COMPUTED] + req[slot, GRANTED]
        keyed = named // head[BLOCK] if head[CACHING] else 0
        borrowed = req[slot, BORROWED]
        if held > 0:
            kv.give_back(head, req, lists, slot if comes_back else -1, held - keyed, max(0, keyed - borrowed))
        req[slot, BORROWED] = 0
    req[slot, CAPACITY] = req[slot, KEYED] = 0

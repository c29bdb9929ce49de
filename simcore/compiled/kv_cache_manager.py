"""The KV cache manager: gives requests their KV blocks and takes them back.

Blocks are counted (`block_counts`) or, where prompts share prefixes, told one from another (`block_pool`). vLLM's
`KVCacheManager` does the same for a real engine.
"""

from __future__ import annotations

from simcore.compiled import block_counts, block_pool, windows
from simcore.compiled import layout as at
from simcore.compiled.block_pool import tells_apart
from simcore.compiled.layout import Arrays, Ints, Shared
from simcore.kernel_cache import kernel


@kernel
def fits_now(head: Ints, req: Ints, slot: int) -> bool:
    """The admission rule without shared blocks and windows: all tokens that a waiting request has now must fit the free
    ones, not just its first chunk."""
    whole = min(req[slot, at.PROMPT] + req[slot, at.OUT], head[at.MAX_LEN])
    return whole <= (head[at.FREE] + req[slot, at.ASSUMED_HELD]) * head[at.BLOCK]


@kernel
def needed_now(head: Ints, req: Ints, slot: int) -> int:
    """The free blocks with which a waiting request fits where some groups have a window, as `fits_now` elsewhere."""
    hits = _assumed(head, req, slot)
    whole = min(req[slot, at.PROMPT] + req[slot, at.OUT], head[at.MAX_LEN])
    return _asked(head, whole, hits) + _found_free(head, req, slot, hits)


@kernel
def _assumed(head: Ints, req: Ints, slot: int) -> int:
    return min(req[slot, at.ASSUMED], (req[slot, at.PROMPT] + req[slot, at.OUT] - 1) // head[at.BLOCK])


@kernel
def _asked(head: Ints, tokens: int, hits: int) -> int:
    """Blocks that so many tokens ask for at admission beside `hits` cached ones of each group."""
    rows, local = (tokens + head[at.BLOCK] - 1) // head[at.BLOCK], head[at.WINDOW_GROUPS]
    return (head[at.GROUPS] - local) * (rows - hits) + local * max(0, min(rows, head[at.WINDOW_BLOCKS]) - hits)


@kernel
def _found_free(head: Ints, req: Ints, slot: int, hits: int) -> int:
    """Counted: cached blocks of a waiting slot that nobody is taken to hold."""
    return max(0, windows.found_blocks(head, hits) - req[slot, at.ASSUMED_HELD])


@kernel
def names_lag(head: Ints, shared: Shared) -> bool:
    """Whether column `KEYED` is kept: elsewhere all that is computed is named."""
    return head[at.ASYNC] != 0 or (shared is not None and (head[at.SPECULATIVE] > 0 or tells_apart(shared)))


@kernel
def room_for(head: Ints, shared: Shared, tokens: int) -> int:
    """How many tokens must have room for a slot to compute its first `tokens`."""
    if shared is not None and head[at.LOOKAHEAD] > 0:
        return min(tokens + head[at.LOOKAHEAD], head[at.MAX_LEN])
    return tokens


@kernel
def chunk_after(head: Ints, shared: Shared, tokens: int, cached: int, limit: int, budget: int, padded: int) -> int:
    """How many tokens a waiting request that has found `cached` gets at its admission; 0: it is not admitted."""
    n = tokens - cached
    if shared is not None and n == 1 and padded > 0 and (cached > 0 or padded > 1):
        drafts = head[at.SPECULATIVE]
        if cached + 1 + drafts < head[at.MAX_LEN]:
            n += drafts
            if n > budget:
                return 0
    if 0 < limit < n:
        n = limit
    return min(n, budget)


@kernel
def name(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int, tokens: int) -> None:
    """The first `tokens` of a running slot are known: their full blocks can be found by content."""
    if shared is not None and tells_apart(shared):
        block_pool.name_blocks(head, req, lists, shared, slot, tokens)
    req[slot, at.KEYED] = tokens


@kernel
def pass_window(head: Ints, req: Ints, lists: Ints, shared: Arrays, slot: int) -> None:
    """Gives back what lies wholly before the window of a running slot's next token. What is in flight is not passed."""
    left = windows.passed(head, req[slot, at.COMPUTED] - lists[at.UNDER_WAY, slot])
    more = left - lists[at.LEFT_BEHIND, slot]
    if more > 0:
        if tells_apart(shared):
            block_pool.leave_blocks(head, lists, shared, slot, left)
        else:
            windows.add_free(head, head[at.WINDOW_GROUPS] * more)
        lists[at.LEFT_BEHIND, slot] = left


@kernel
def grow(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int, tokens: int) -> bool:
    """Gives a slot blocks for `tokens` tokens; False (and nothing done) if they are not there."""
    block = head[at.BLOCK]
    lacking = tokens - req[slot, at.CAPACITY]
    if lacking > 0:
        n = (lacking + block - 1) // block
        if n * head[at.GROUPS] > head[at.FREE]:
            return False
        if shared is not None and tells_apart(shared):
            block_pool.take_blocks(head, req, shared, slot, n)
        else:
            block_counts.take(head, req, lists, n * head[at.GROUPS])
        req[slot, at.CAPACITY] += n * block
    return True


@kernel
def reuse(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int, limit: int, budget: int, padded: int) -> int:
    """Gives a waiting slot the blocks that still hold its tokens, if all that it has now fits with them, and the chunk
    that it would get (`chunk_after`).

    Returns how many of its first blocks need no computing; -1 (and nothing done) if it does not fit.
    """
    block = head[at.BLOCK]
    tokens = req[slot, at.PROMPT] + req[slot, at.OUT]
    most = limit if 0 < limit < budget else budget
    whole = min(tokens, head[at.MAX_LEN])
    if shared is not None and tells_apart(shared):
        hits, evictable, known = block_pool.count_hits(head, req, shared, slot)
        if head[at.SPECULATIVE] > 0:
            n = chunk_after(head, shared, tokens, hits * block, limit, budget, padded)
            room = room_for(head, shared, hits * block + n)
            whole = max(whole, room) if n > 0 else (head[at.TOTAL_BLOCKS] + 1) * block
        if _asked(head, whole, hits) + evictable > head[at.FREE]:
            return -1
        if head[at.WINDOW_GROUPS] > 0:
            # Behind a long beginning a window asks for less than its first chunk needs.
            if _chunk_blocks(head, tokens, hits, most) + evictable > head[at.FREE]:
                return -1
            lists[at.LEFT_BEHIND, slot] = max(0, hits - windows.reach(head))
            lists[at.KNOWN_BEGIN, slot] = known if known > hits else 0
        block_pool.adopt(head, req, lists, shared, slot, hits)
    elif shared is not None and head[at.WINDOW_GROUPS] > 0:
        hits = _assumed(head, req, slot)
        found = _found_free(head, req, slot, hits)
        if max(_asked(head, whole, hits), _chunk_blocks(head, tokens, hits, most)) + found > head[at.FREE]:
            return -1
        head[at.FREE] -= found
        req[slot, at.BORROWED] = req[slot, at.ASSUMED_HELD]
        req[slot, at.ASSUMED] = req[slot, at.ASSUMED_HELD] = 0
        lists[at.LEFT_BEHIND, slot] = max(0, hits - windows.reach(head))
    else:
        # The last token is always computed anew: its logits give the next token.
        full = (tokens - 1) // block
        if shared is not None and head[at.SPECULATIVE] > 0:
            full = min(full, max(block_counts.kept(req, lists, slot), req[slot, at.ASSUMED]))
            full -= int(head[at.DROPS_BLOCK] > 0 and full > 0)
            n = chunk_after(head, shared, tokens, full * block, limit, budget, padded)
            whole = room_for(head, shared, full * block + n)
            if n == 0 or whole > (head[at.FREE] + req[slot, at.ASSUMED_HELD]) * block:
                return -1
        if not fits_now(head, req, slot):
            return -1
        hits = block_counts.reclaim(head, req, lists, slot, full)
        assumed = min(full, req[slot, at.ASSUMED])
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
def _chunk_blocks(head: Ints, tokens: int, hits: int, most: int) -> int:
    """Blocks that the first chunk of `tokens` takes, at most `most` of them, behind `hits` blocks."""
    chunk = min(tokens - hits * head[at.BLOCK], most)
    return head[at.GROUPS] * ((chunk + head[at.BLOCK] - 1) // head[at.BLOCK])


@kernel
def release(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int, comes_back: bool) -> None:
    """Frees what a slot holds."""
    if shared is not None and tells_apart(shared):
        block_pool.release_blocks(head, req, lists, shared, slot)
    elif shared is not None and head[at.WINDOW_GROUPS] > 0:
        held = windows.held_blocks(head, req[slot, at.CAPACITY], lists[at.LEFT_BEHIND, slot])
        windows.add_free(head, max(0, held - req[slot, at.BORROWED]))
        req[slot, at.BORROWED] = 0
    else:
        held = req[slot, at.CAPACITY] // head[at.BLOCK]
        named = req[slot, at.KEYED] if names_lag(head, shared) else req[slot, at.COMPUTED] + req[slot, at.GRANTED]
        keyed = named // head[at.BLOCK] if head[at.CACHING] else 0
        borrowed = req[slot, at.BORROWED]
        if held > 0:
            block_counts.give_back(head, req, lists, slot if comes_back else -1, held - keyed, max(0, keyed - borrowed))
        req[slot, at.BORROWED] = 0
    req[slot, at.CAPACITY] = req[slot, at.KEYED] = 0
    if shared is not None:
        lists[at.LEFT_BEHIND, slot] = 0

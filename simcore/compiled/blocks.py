"""KV blocks one by one: who holds which, what it holds, which is reused first. For prompts that begin alike.

The rules are those of `simcore.reference_kv`. The free queue is a doubly linked list through `PREVIOUS` and `NEXT`; its
ends are the two cells behind the last block. Blocks with a key hang in the bucket of that key in the order in which
they got it, so the first match is the one that vLLM would find.
"""

from __future__ import annotations

from numba import njit

from simcore.compiled.layout import (
    AHEAD,
    ASSUMED,
    ASSUMED_HELD,
    BLOCK,
    BORROWED,
    BUCKETS,
    CACHING,
    CAPACITY,
    CHAIN,
    COMPUTED,
    FREE,
    FRONT,
    HAS_KEY,
    HASHES,
    KEY,
    KEYED,
    N_RUNNING,
    N_WAITING,
    NEXT,
    ORDER,
    OUT,
    OWNED,
    PREVIOUS,
    PROMPT,
    REFS,
    RUNNING,
    SEEN,
    SEG_COUNT,
    SEG_HEAD,
    SEG_OWNER,
    SEG_TAIL,
    SEGMENT,
    TOTAL_BLOCKS,
    Arrays,
    Ints,
)

_ODD_1 = 0x1E3779B97F4A7C15
_ODD_2 = 0x42B2AE3D27D4EB4F


@njit(nogil=True)
def key_of(req: Ints, shared: Arrays, slot: int, index: int) -> int:
    """What block `index` of a slot is found by; beyond its names what nobody else has."""
    if index < req[slot, HASHES]:
        return shared[2][slot, index]
    return (req[slot, ORDER] + 1) * _ODD_1 + index * _ODD_2


@njit(nogil=True)
def _bucket(pool: Ints, key: int) -> int:
    mixed = key ^ (key >> 32)
    return (mixed ^ (mixed >> 16)) & (pool.shape[1] - 1)


@njit(nogil=True)
def find(pool: Ints, key: int) -> int:
    """The block that got this key first of those that have it; -1 if none has."""
    block = pool[BUCKETS, _bucket(pool, key)]
    while block >= 0 and pool[KEY, block] != key:
        block = pool[CHAIN, block]
    return block


@njit(nogil=True)
def _set_key(pool: Ints, block: int, key: int) -> None:
    pool[KEY, block] = key
    pool[HAS_KEY, block] = 1
    pool[CHAIN, block] = -1
    bucket = _bucket(pool, key)
    at = pool[BUCKETS, bucket]
    if at < 0:
        pool[BUCKETS, bucket] = block
        return
    while pool[CHAIN, at] >= 0:
        at = pool[CHAIN, at]
    pool[CHAIN, at] = block


@njit(nogil=True)
def _forget_key(pool: Ints, block: int) -> None:
    pool[HAS_KEY, block] = 0
    bucket = _bucket(pool, pool[KEY, block])
    at = pool[BUCKETS, bucket]
    if at == block:
        pool[BUCKETS, bucket] = pool[CHAIN, block]
        return
    while pool[CHAIN, at] != block:
        at = pool[CHAIN, at]
    pool[CHAIN, at] = pool[CHAIN, block]


@njit(nogil=True)
def _unlink(pool: Ints, block: int) -> None:
    before, after = pool[PREVIOUS, block], pool[NEXT, block]
    pool[NEXT, before] = after
    pool[PREVIOUS, after] = before


@njit(nogil=True)
def link(pool: Ints, block: int, before: int) -> None:
    """Puts a free block behind `before` in the free queue."""
    after = pool[NEXT, before]
    pool[NEXT, before] = block
    pool[PREVIOUS, block] = before
    pool[NEXT, block] = after
    pool[PREVIOUS, after] = block


@njit(nogil=True)
def count_hits(head: Ints, req: Ints, shared: Arrays, slot: int) -> tuple[int, int]:
    """(Leading blocks of a waiting slot that are cached, how many of them stand in the free queue).

    The last token is always computed anew: its logits give the next token.
    """
    pool = shared[0]
    hits = evictable = 0
    if head[CACHING]:
        for index in range((req[slot, PROMPT] + req[slot, OUT] - 1) // head[BLOCK]):
            block = find(pool, key_of(req, shared, slot, index))
            if block < 0:
                break
            hits += 1
            evictable += pool[REFS, block] == 0
    return hits, evictable


@njit(nogil=True)
def known_prefix(pool: Ints, names: Ints) -> tuple[int, int]:
    """(How many of the first names belong to blocks that hold their content now, how many of those somebody holds)."""
    known = held = 0
    while known < len(names):
        block = find(pool, names[known])
        if block < 0:
            break
        known += 1
        held += pool[REFS, block] > 0
    return known, held


@njit(nogil=True)
def adopt(head: Ints, req: Ints, shared: Arrays, slot: int, hits: int) -> None:
    """The slot takes its first `hits` blocks as they were found cached."""
    pool, table, _ = shared
    for index in range(hits):
        block = find(pool, key_of(req, shared, slot, index))
        if pool[REFS, block] == 0:
            _unlink(pool, block)
            head[FREE] -= 1
        pool[REFS, block] += 1
        table[slot, index] = block


@njit(nogil=True)
def take_blocks(head: Ints, req: Ints, shared: Arrays, slot: int, blocks: int) -> None:
    """`blocks` (<= FREE) more for the slot, from the front of the free queue; what they held is forgotten."""
    pool, table, _ = shared
    held = req[slot, CAPACITY] // head[BLOCK]
    front = head[TOTAL_BLOCKS]
    for index in range(held, held + blocks):
        block = pool[NEXT, front]
        _unlink(pool, block)
        if pool[HAS_KEY, block]:
            _forget_key(pool, block)
        pool[REFS, block] = 1
        table[slot, index] = block
    head[FREE] -= blocks


@njit(nogil=True)
def name_blocks(head: Ints, req: Ints, shared: Arrays, slot: int, tokens: int) -> None:
    """From now on the slot's full blocks up to `tokens` can be found by their content."""
    pool, table, _ = shared
    if head[CACHING]:
        for index in range(req[slot, KEYED] // head[BLOCK], tokens // head[BLOCK]):
            _set_key(pool, table[slot, index], key_of(req, shared, slot, index))


@njit(nogil=True)
def release_blocks(head: Ints, req: Ints, shared: Arrays, slot: int) -> None:
    """Gives back a slot's blocks, the last first: those without a key to the front of the free queue, in that order,
    the others to its end."""
    pool, table, _ = shared
    front = head[TOTAL_BLOCKS]
    at = front
    for index in range(req[slot, CAPACITY] // head[BLOCK] - 1, -1, -1):
        block = table[slot, index]
        pool[REFS, block] -= 1
        if pool[REFS, block] > 0:
            continue
        head[FREE] += 1
        if pool[HAS_KEY, block]:
            link(pool, block, pool[PREVIOUS, front + 1])
        else:
            link(pool, block, at)
            at = block


@njit(nogil=True)
def tell_apart(head: Ints, req: Ints, lists: Ints, shared: Arrays) -> None:
    """Turns a state in which blocks are counted (`kv`) into one in which they are told apart. `shared` is empty."""
    pool, table, _ = shared
    block, total = head[BLOCK], head[TOTAL_BLOCKS]
    front = total
    pool[CHAIN, :] = -1
    pool[BUCKETS, :] = -1
    pool[NEXT, front] = front + 1
    pool[PREVIOUS, front + 1] = front
    used = 0
    for i in range(head[N_RUNNING]):
        slot = lists[RUNNING, i]
        if head[AHEAD] == 0:
            req[slot, KEYED] = req[slot, COMPUTED]
        for index in range(req[slot, CAPACITY] // block):
            pool[REFS, used] = 1
            table[slot, index] = used
            if head[CACHING] and index < req[slot, KEYED] // block:
                _set_key(pool, used, key_of(req, shared, slot, index))
            used += 1
    owned = head[OWNED] > 0
    for _ in range(head[FRONT] if owned else head[FREE]):
        link(pool, used, pool[PREVIOUS, front + 1])
        used += 1
    if not owned:
        return
    for segment in range(head[SEG_HEAD], head[SEG_TAIL]):
        owner = lists[SEG_OWNER, segment]
        # A request's blocks were freed the last first.
        for index in range(lists[SEG_COUNT, segment] - 1, -1, -1):
            link(pool, used, pool[PREVIOUS, front + 1])
            if owner >= 0:
                _set_key(pool, used, key_of(req, shared, owner, index))
            used += 1
        if owner >= 0:
            req[owner, SEGMENT] = -1
    head[OWNED] = 0


@njit(nogil=True)
def count_shares(head: Ints, req: Ints, to_req: Ints, source: Ints, shared: Arrays) -> None:
    """Completes a compacted state (`future.compact_state`) in which blocks are only counted: a block that several hold
    is that of the first of them, and what those who wait would find cached now is taken to be there when they come."""
    pool, table, _ = shared
    running = head[N_RUNNING]
    for i in range(running):
        borrowed = 0
        for index in range(req[source[i], CAPACITY] // head[BLOCK]):
            block = table[source[i], index]
            borrowed += pool[SEEN, block]
            pool[SEEN, block] = 1
        to_req[i, BORROWED] = borrowed
    pool[SEEN, :] = 0
    for i in range(running, running + head[N_WAITING]):
        hits, evictable = count_hits(head, req, shared, source[i])
        to_req[i, ASSUMED] = hits
        to_req[i, ASSUMED_HELD] = hits - evictable

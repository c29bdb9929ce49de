"""The block pool: KV blocks one by one, who holds which, what it holds, which is reused first. For shared prefixes.

The rules are those of `simcore.reference_kv`. The free queue is a doubly linked list through `PREVIOUS` and `NEXT`; its
ends are the two cells behind the last block. Blocks with a key hang in the bucket of that key in the order in which
they got it, so the first match is the one that vLLM would find.
"""

from __future__ import annotations

import numpy as np

from simcore.compiled import layout as at
from simcore.compiled.layout import Arrays, Ints
from simcore.compiled.windows import found_blocks, is_window, reach
from simcore.kernel_cache import cached, kernel

_ODD_1 = 0x1E3779B97F4A7C15
_ODD_2 = 0x42B2AE3D27D4EB4F
_ODD_3 = 0x2545F4914F6CDD1D


@kernel
def tells_apart(shared: Arrays) -> bool:
    """Whether there is a pool: blocks are kept one by one, not counted."""
    return len(shared[0]) > 0


@kernel
def key_of(req: Ints, shared: Arrays, slot: int, index: int) -> int:
    """What block `index` of a slot is found by; beyond its names what nobody else has."""
    if index < req[slot, at.HASHES]:
        return shared[2][slot, index]
    return (req[slot, at.ORDER] + 1) * _ODD_1 + index * _ODD_2


@kernel
def _key_in(head: Ints, key: int, group: int) -> int:
    """What a block of a KV cache group is found by."""
    return key ^ ((group - head[at.NAMED_GROUP]) * _ODD_3)


@kernel
def _keep_findable(head: Ints, req: Ints, lists: Ints, shared: Arrays, slot: int, group: int, index: int) -> None:
    """Gives a full block its content key, unless it is of a window group and no later request could begin with it:
    those before the end of the prompt and before the end of what other groups knew at admission are of use."""
    local = is_window(head, group)
    if local:
        ends = reach(head), (req[slot, at.PROMPT] - 1) // head[at.BLOCK], lists[at.KNOWN_BEGIN, slot]
        if not (ends[1] - ends[0] <= index < ends[1] or ends[2] - ends[0] <= index < ends[2]):
            return
    named = index < req[slot, at.HASHES] and group == head[at.NAMED_GROUP]
    block = shared[1][slot, _first_cell(head, shared, group) + index]
    _set_key(shared[0], block, _key_in(head, key_of(req, shared, slot, index), group), 1 if named else 2)


@kernel
def _first_cell(head: Ints, shared: Arrays, group: int) -> int:
    """Where the blocks of a KV cache group begin in a row of the table."""
    return group * (shared[1].shape[1] // head[at.GROUPS])


@kernel
def _bucket(pool: Ints, key: int) -> int:
    mixed = key ^ (key >> 32)
    return (mixed ^ (mixed >> 16)) & (pool.shape[1] - 1)


@kernel
def find(pool: Ints, key: int) -> int:
    """The block that got this key first of those that have it; -1 if none has."""
    block = pool[at.BUCKETS, _bucket(pool, key)]
    while block >= 0 and pool[at.KEY, block] != key:
        block = pool[at.CHAIN, block]
    return block


@kernel
def _set_key(pool: Ints, block: int, key: int, kind: int) -> None:
    pool[at.KEY, block] = key
    pool[at.HAS_KEY, block] = kind
    pool[at.CHAIN, block] = -1
    bucket = _bucket(pool, key)
    place = pool[at.BUCKETS, bucket]
    if place < 0:
        pool[at.BUCKETS, bucket] = block
        return
    while pool[at.CHAIN, place] >= 0:
        place = pool[at.CHAIN, place]
    pool[at.CHAIN, place] = block


@kernel
def _forget_key(pool: Ints, block: int) -> None:
    pool[at.HAS_KEY, block] = 0
    bucket = _bucket(pool, pool[at.KEY, block])
    place = pool[at.BUCKETS, bucket]
    if place == block:
        pool[at.BUCKETS, bucket] = pool[at.CHAIN, block]
        return
    while pool[at.CHAIN, place] != block:
        place = pool[at.CHAIN, place]
    pool[at.CHAIN, place] = pool[at.CHAIN, block]


@kernel
def _unlink(pool: Ints, block: int) -> None:
    before, after = pool[at.PREVIOUS, block], pool[at.NEXT, block]
    pool[at.NEXT, before] = after
    pool[at.PREVIOUS, after] = before


@kernel
def link(pool: Ints, block: int, before: int) -> None:
    """Puts a free block behind `before` in the free queue."""
    after = pool[at.NEXT, before]
    pool[at.NEXT, before] = block
    pool[at.PREVIOUS, block] = before
    pool[at.NEXT, block] = after
    pool[at.PREVIOUS, after] = block


@kernel
def _cached(head: Ints, pool: Ints, key: int, local: bool) -> bool:
    """Whether all window groups, or all others, hold a block with that key."""
    for group in range(head[at.GROUPS]):
        if is_window(head, group) == local and find(pool, _key_in(head, key, group)) < 0:
            return False
    return True


@kernel
def _count_in_groups(head: Ints, pool: Ints, keys: Ints) -> tuple[int, int, int]:
    """`count_hits` where some groups have a window."""
    known = run = 0
    while known < len(keys) and _cached(head, pool, keys[known], False):
        known += 1
    index = known
    while index > 0 and run < reach(head):
        index -= 1
        run = run + 1 if _cached(head, pool, keys[index], True) else 0
    hits = index + run
    evictable = 0
    for group in range(head[at.GROUPS]):
        for k in range(max(0, hits - reach(head)) if is_window(head, group) else 0, hits):
            evictable += pool[at.REFS, find(pool, _key_in(head, keys[k], group))] == 0
    return hits, evictable, known if head[at.WINDOW_GROUPS] < head[at.GROUPS] else hits


@kernel
def count_hits(head: Ints, req: Ints, shared: Arrays, slot: int) -> tuple[int, int, int]:
    """(Leading blocks of a waiting slot that are cached in all groups, as far as the token behind them attends to them;
    how many blocks these are that stand in the free queue; leading blocks that are cached but for window groups).

    The last token is always computed anew: its logits give the next token.
    """
    pool = shared[0]
    hits = evictable = 0
    if head[at.CACHING]:
        most = (req[slot, at.PROMPT] + req[slot, at.OUT] - 1) // head[at.BLOCK]
        if head[at.WINDOW_GROUPS] > 0:
            keys = np.empty(most, np.int64)
            for index in range(most):
                keys[index] = key_of(req, shared, slot, index)
            return _count_in_groups(head, pool, keys)
        while hits < most:
            block = find(pool, key_of(req, shared, slot, hits))
            if block < 0:
                break
            hits += 1
            evictable += pool[at.REFS, block] == 0
        if head[at.DROPS_BLOCK] and hits > 0:
            hits -= 1
            evictable -= pool[at.REFS, find(pool, key_of(req, shared, slot, hits))] == 0
    return hits, evictable, hits


@cached
def known_prefix(head: Ints, pool: Ints, names: Ints) -> tuple[int, int]:
    """(How many of the first names belong to blocks that hold their content now, how many blocks of those somebody
    holds)."""
    if head[at.WINDOW_GROUPS] > 0:
        hits, evictable, _ = _count_in_groups(head, pool, names)
        return hits, found_blocks(head, hits) - evictable
    known = held = 0
    while known < len(names):
        block = find(pool, names[known])
        if block < 0:
            break
        known += 1
        held += pool[at.REFS, block] > 0
    return known, held


@kernel
def adopt(head: Ints, req: Ints, lists: Ints, shared: Arrays, slot: int, hits: int) -> None:
    """The slot takes its first `hits` blocks as they were found cached, but for those that windows have passed."""
    pool, table, _ = shared
    for group in range(head[at.GROUPS]):
        first = _first_cell(head, shared, group)
        for index in range(lists[at.LEFT_BEHIND, slot] if is_window(head, group) else 0, hits):
            block = find(pool, _key_in(head, key_of(req, shared, slot, index), group))
            if pool[at.REFS, block] == 0:
                _unlink(pool, block)
                head[at.FREE] -= 1
            pool[at.REFS, block] += 1
            table[slot, first + index] = block


@kernel
def take_blocks(head: Ints, req: Ints, shared: Arrays, slot: int, blocks: int) -> None:
    """`blocks` (<= FREE, in all) more in each group for the slot, from the front of the free queue; what they held is
    forgotten."""
    pool, table, _ = shared
    held = req[slot, at.CAPACITY] // head[at.BLOCK]
    front = head[at.TOTAL_BLOCKS]
    for group in range(head[at.GROUPS]):
        first = _first_cell(head, shared, group)
        for index in range(held, held + blocks):
            block = pool[at.NEXT, front]
            _unlink(pool, block)
            if pool[at.HAS_KEY, block]:
                _forget_key(pool, block)
            pool[at.REFS, block] = 1
            table[slot, first + index] = block
    head[at.FREE] -= blocks * head[at.GROUPS]


@kernel
def name_blocks(head: Ints, req: Ints, lists: Ints, shared: Arrays, slot: int, tokens: int) -> None:
    """Gives the slot's full blocks up to `tokens` their content keys, by which they can be found from now on."""
    if head[at.CACHING]:
        first, end = req[slot, at.KEYED] // head[at.BLOCK], tokens // head[at.BLOCK]
        for group in range(head[at.GROUPS] if first < end else 0):
            for index in range(first, end):
                _keep_findable(head, req, lists, shared, slot, group, index)


@kernel
def leave_blocks(head: Ints, lists: Ints, shared: Arrays, slot: int, left: int) -> None:
    """Gives back the first `left` blocks of a slot in each window group, where it still holds them."""
    for group in range(head[at.GROUPS]):
        if is_window(head, group):
            first = _first_cell(head, shared, group)
            _release(head, shared, slot, first + lists[at.LEFT_BEHIND, slot], first + left)


@kernel
def release_blocks(head: Ints, req: Ints, lists: Ints, shared: Arrays, slot: int) -> None:
    """Gives back a slot's blocks, group by group."""
    rows = req[slot, at.CAPACITY] // head[at.BLOCK]
    for group in range(head[at.GROUPS]):
        first = _first_cell(head, shared, group)
        left = lists[at.LEFT_BEHIND, slot] if is_window(head, group) else 0
        _release(head, shared, slot, first + left, first + rows)


@kernel
def _release(head: Ints, shared: Arrays, slot: int, begin: int, end: int) -> None:
    """Gives back the blocks in some cells of a slot's table, the last first: those without a key to the front of the
    free queue, in that order, the others to its end."""
    pool, table, _ = shared
    front = head[at.TOTAL_BLOCKS]
    behind = front
    for cell in range(end - 1, begin - 1, -1):
        block = table[slot, cell]
        pool[at.REFS, block] -= 1
        if pool[at.REFS, block] > 0:
            continue
        head[at.FREE] += 1
        if pool[at.HAS_KEY, block]:
            link(pool, block, pool[at.PREVIOUS, front + 1])
        else:
            link(pool, block, behind)
            behind = block


@cached
def store(head: Ints, pool: Ints, names: Ints) -> None:
    """Blocks with these names are cached from now on, as if a request that had computed them had just ended.

    Each takes the place of the free block that would be reused first. Those that are there already stay. Of more than
    there are free blocks, the last are left out.
    """
    front = head[at.TOTAL_BLOCKS]
    for index in range(min(len(names), head[at.FREE]) - 1, -1, -1):
        block = find(pool, names[index])
        if block >= 0 and pool[at.REFS, block] > 0:
            continue
        if block < 0:
            block = pool[at.NEXT, front]
            if pool[at.HAS_KEY, block]:
                _forget_key(pool, block)
            _set_key(pool, block, names[index], 1)
        _unlink(pool, block)
        link(pool, block, pool[at.PREVIOUS, front + 1])


@cached
def build_pool(head: Ints, req: Ints, lists: Ints, shared: Arrays) -> None:
    """Turns a state in which blocks are counted (`block_counts`) into one in which they are kept one by one.

    `shared` is empty before.
    """
    pool, table, _ = shared
    block, total = head[at.BLOCK], head[at.TOTAL_BLOCKS]
    front = total
    pool[at.CHAIN, :] = -1
    pool[at.BUCKETS, :] = -1
    pool[at.NEXT, front] = front + 1
    pool[at.PREVIOUS, front + 1] = front
    used = 0
    for i in range(head[at.N_RUNNING]):
        slot = lists[at.RUNNING, i]
        if head[at.ASYNC] == 0:
            req[slot, at.KEYED] = req[slot, at.COMPUTED]
        for group in range(head[at.GROUPS]):
            first = _first_cell(head, shared, group)
            left = lists[at.LEFT_BEHIND, slot] if is_window(head, group) else 0
            for index in range(left, req[slot, at.CAPACITY] // block):
                pool[at.REFS, used] = 1
                table[slot, first + index] = used
                if head[at.CACHING] and index < req[slot, at.KEYED] // block:
                    _keep_findable(head, req, lists, shared, slot, group, index)
                used += 1
    owned = head[at.OWNED] > 0
    for _ in range(head[at.FRONT] if owned else head[at.FREE]):
        link(pool, used, pool[at.PREVIOUS, front + 1])
        used += 1
    if not owned:
        return
    for segment in range(head[at.SEG_HEAD], head[at.SEG_TAIL]):
        owner = lists[at.SEG_OWNER, segment]
        # A request's blocks were freed the last first.
        for index in range(lists[at.SEG_COUNT, segment] - 1, -1, -1):
            link(pool, used, pool[at.PREVIOUS, front + 1])
            if owner >= 0:
                _set_key(pool, used, key_of(req, shared, owner, index), 1 if index < req[owner, at.HASHES] else 2)
            used += 1
        if owner >= 0:
            req[owner, at.SEGMENT] = -1
    head[at.OWNED] = 0


@kernel
def _begins_with(shared: Arrays, names: Ints, known: int, donor: int, n_names: int) -> int:
    """With how many of the names the donor's prompt begins, if those are more than `known`, else `known`."""
    theirs = shared[2][donor]
    # Names chain: where one is equal, all before it are.
    while known < len(names) and known < n_names and names[known] == theirs[known]:
        known += 1
    return known


@cached
def expected_prefix(
    head: Ints, req: Ints, lists: Ints, shared: Arrays, names: Ints, known: int, ahead: int, priority: int
) -> int:
    """How many of a prompt's first names are cached when it is admitted, of which `known` are now.

    Those of prompts that are computed before it are, too: the ones that run and the first `ahead` that wait, under
    priority scheduling without those that come behind it.
    """
    for i in range(head[at.N_RUNNING]):
        slot = lists[at.RUNNING, i]
        if req[slot, at.KEYED] < req[slot, at.HASHES] * head[at.BLOCK]:
            known = _begins_with(shared, names, known, slot, req[slot, at.HASHES])
    waiting = head[at.N_WAITING]
    for i in range(min(ahead, waiting)):
        slot = lists[at.WAITING, waiting - 1 - i]
        if head[at.BY_PRIORITY] and req[slot, at.PRIORITY] > priority:
            break
        known = _begins_with(shared, names, known, slot, req[slot, at.HASHES])
    return known


@cached
def count_shares(head: Ints, req: Ints, lists: Ints, to_req: Ints, source: Ints, shared: Arrays) -> None:
    """Completes a compacted state (`copying.compact_state`) in which blocks are only counted: a block that several hold
    is that of the first of them, and those who wait are taken to find what is cached now, and what those ahead of them
    leave, who hold it then."""
    pool, table, _ = shared
    running = head[at.N_RUNNING]
    for i in range(running):
        borrowed = 0
        for group in range(head[at.GROUPS]):
            first = _first_cell(head, shared, group)
            left = lists[at.LEFT_BEHIND, source[i]] if is_window(head, group) else 0
            for index in range(left, req[source[i], at.CAPACITY] // head[at.BLOCK]):
                block = table[source[i], first + index]
                borrowed += pool[at.SEEN, block]
                pool[at.SEEN, block] = 1
        to_req[i, at.BORROWED] = borrowed
    pool[at.SEEN, :] = 0
    for i in range(running, running + head[at.N_WAITING]):
        slot = source[i]
        hits, evictable, _ = count_hits(head, req, shared, slot)
        if head[at.DROPS_BLOCK] and hits > 0:
            # `reuse` takes the last one off again.
            hits += 1
        usable = min(req[slot, at.HASHES], (req[slot, at.PROMPT] + req[slot, at.OUT] - 1) // head[at.BLOCK])
        left = hits
        if hits < usable:
            names = shared[2][slot, :usable]
            left = expected_prefix(head, req, lists, shared, names, hits, i - running, req[slot, at.PRIORITY])
        to_req[i, at.ASSUMED] = left
        to_req[i, at.ASSUMED_HELD] = found_blocks(head, left) - (0 if left > hits else evictable)

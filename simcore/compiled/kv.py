"""The free queue of KV blocks, as counts.

Which free block is reused next matters only where a free block still holds tokens of a waiting (preempted) request:
reusing it costs that request a cache hit. So the queue is kept as segments, front (reused next) to back: `FRONT` blocks
of no further use, then segments (owner slot or -1, count). A request's blocks are freed last block first, so what an
owned segment of `count` blocks still holds is exactly the first `count` blocks of its owner. With no owned segment
the queue is just the number `FREE`.
"""

from __future__ import annotations

from numba import njit

from simcore.compiled.layout import (
    FREE,
    FRONT,
    OWNED,
    SEG_COUNT,
    SEG_HEAD,
    SEG_OWNER,
    SEG_TAIL,
    SEGMENT,
    Ints,
)


@njit(nogil=True)
def take(head: Ints, req: Ints, lists: Ints, blocks: int) -> None:
    """Removes `blocks` (<= FREE) from the front; requests whose old blocks go lose that hit."""
    head[FREE] -= blocks
    if head[OWNED] == 0:
        return
    from_front = min(blocks, head[FRONT])
    head[FRONT] -= from_front
    left = blocks - from_front
    at = head[SEG_HEAD]
    while left > 0:
        used = min(left, lists[SEG_COUNT, at])
        left -= used
        lists[SEG_COUNT, at] -= used
        if lists[SEG_COUNT, at] == 0:
            owner = lists[SEG_OWNER, at]
            if owner >= 0:
                lists[SEG_OWNER, at] = -1
                req[owner, SEGMENT] = -1
                head[OWNED] -= 1
            at += 1
    head[SEG_HEAD] = at


@njit(nogil=True)
def give_back(head: Ints, req: Ints, lists: Ints, owner: int, unkeyed: int, keyed: int) -> None:
    """Frees one request's blocks: those without content key to the front, the rest to the back.

    `owner` is the slot that may want the keyed blocks again, -1 if nobody will.
    """
    if keyed == 0:
        owner = -1
    if owner >= 0 and head[OWNED] == 0:
        head[FRONT] = head[FREE]
        head[SEG_HEAD] = 0
        head[SEG_TAIL] = 0
    head[FREE] += unkeyed + keyed
    if owner < 0 and head[OWNED] == 0:
        return
    head[FRONT] += unkeyed
    if keyed == 0:
        return
    last = head[SEG_TAIL] - 1
    if owner < 0 and last >= head[SEG_HEAD] and lists[SEG_OWNER, last] < 0:
        lists[SEG_COUNT, last] += keyed
        return
    if head[SEG_TAIL] == lists.shape[1]:
        _compact(head, req, lists)
    at = head[SEG_TAIL]
    lists[SEG_OWNER, at] = owner
    lists[SEG_COUNT, at] = keyed
    head[SEG_TAIL] = at + 1
    if owner >= 0:
        req[owner, SEGMENT] = at
        head[OWNED] += 1


@njit(nogil=True)
def reclaim(head: Ints, req: Ints, lists: Ints, owner: int, most: int) -> int:
    """Takes a request's own old blocks, at most `most`, out of the free queue; returns how many there were."""
    at = req[owner, SEGMENT]
    if at < 0:
        return 0
    blocks = min(most, lists[SEG_COUNT, at])
    lists[SEG_COUNT, at] -= blocks
    head[FREE] -= blocks
    disown(head, req, lists, owner)
    return blocks


@njit(nogil=True)
def disown(head: Ints, req: Ints, lists: Ints, owner: int) -> None:
    """The request will not come back for its old blocks."""
    at = req[owner, SEGMENT]
    if at >= 0:
        lists[SEG_OWNER, at] = -1
        req[owner, SEGMENT] = -1
        head[OWNED] -= 1


@njit(nogil=True)
def _compact(head: Ints, req: Ints, lists: Ints) -> None:
    to = 0
    for at in range(head[SEG_HEAD], head[SEG_TAIL]):
        count = lists[SEG_COUNT, at]
        owner = lists[SEG_OWNER, at]
        if count == 0:
            continue
        if owner < 0 and to > 0 and lists[SEG_OWNER, to - 1] < 0:
            lists[SEG_COUNT, to - 1] += count
            continue
        lists[SEG_OWNER, to] = owner
        lists[SEG_COUNT, to] = count
        if owner >= 0:
            req[owner, SEGMENT] = to
        to += 1
    head[SEG_HEAD] = 0
    head[SEG_TAIL] = to

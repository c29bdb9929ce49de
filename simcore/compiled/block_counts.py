"""The free queue of KV blocks kept as counts, for prompts that share nothing.

Which free block is reused next matters only where a free block still holds tokens of a waiting (preempted) request:
reusing it costs that request a cache hit. So the queue is kept as segments, front (reused next) to back: `FRONT` blocks
of no further use, then segments (owner slot or -1, count). A request's blocks are freed last block first, so what an
owned segment of `count` blocks still holds is exactly the first `count` blocks of its owner. With no owned segment
the queue is just the number `FREE`.
"""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.compiled.layout import Ints
from simcore.kernel_cache import kernel


@kernel
def take(head: Ints, req: Ints, lists: Ints, blocks: int) -> None:
    """Removes `blocks` (<= FREE) from the front; requests whose old blocks go lose that hit."""
    head[at.FREE] -= blocks
    if head[at.OWNED] == 0:
        return
    from_front = min(blocks, head[at.FRONT])
    head[at.FRONT] -= from_front
    left = blocks - from_front
    segment = head[at.SEG_HEAD]
    while left > 0:
        used = min(left, lists[at.SEG_COUNT, segment])
        left -= used
        lists[at.SEG_COUNT, segment] -= used
        if lists[at.SEG_COUNT, segment] == 0:
            owner = lists[at.SEG_OWNER, segment]
            if owner >= 0:
                lists[at.SEG_OWNER, segment] = -1
                req[owner, at.SEGMENT] = -1
                head[at.OWNED] -= 1
            segment += 1
    head[at.SEG_HEAD] = segment


@kernel
def give_back(head: Ints, req: Ints, lists: Ints, owner: int, unkeyed: int, keyed: int) -> None:
    """Frees one request's blocks: those without content key to the front, the rest to the back.

    `owner` is the slot that may want the keyed blocks again, -1 if nobody will.
    """
    if keyed == 0:
        owner = -1
    if owner >= 0 and head[at.OWNED] == 0:
        head[at.FRONT] = head[at.FREE]
        head[at.SEG_HEAD] = 0
        head[at.SEG_TAIL] = 0
    head[at.FREE] += unkeyed + keyed
    if owner < 0 and head[at.OWNED] == 0:
        return
    head[at.FRONT] += unkeyed
    if keyed == 0:
        return
    last = head[at.SEG_TAIL] - 1
    if owner < 0 and last >= head[at.SEG_HEAD] and lists[at.SEG_OWNER, last] < 0:
        lists[at.SEG_COUNT, last] += keyed
        return
    if head[at.SEG_TAIL] == lists.shape[1]:
        _compact(head, req, lists)
    segment = head[at.SEG_TAIL]
    lists[at.SEG_OWNER, segment] = owner
    lists[at.SEG_COUNT, segment] = keyed
    head[at.SEG_TAIL] = segment + 1
    if owner >= 0:
        req[owner, at.SEGMENT] = segment
        head[at.OWNED] += 1


@kernel
def kept(req: Ints, lists: Ints, owner: int) -> int:
    """How many of a waiting request's own old blocks are still in the free queue."""
    segment = req[owner, at.SEGMENT]
    return lists[at.SEG_COUNT, segment] if segment >= 0 else 0


@kernel
def reclaim(head: Ints, req: Ints, lists: Ints, owner: int, most: int) -> int:
    """Takes a request's own old blocks, at most `most`, out of the free queue; returns how many there were."""
    segment = req[owner, at.SEGMENT]
    if segment < 0:
        return 0
    blocks = min(most, lists[at.SEG_COUNT, segment])
    lists[at.SEG_COUNT, segment] -= blocks
    head[at.FREE] -= blocks
    disown(head, req, lists, owner)
    return blocks


@kernel
def disown(head: Ints, req: Ints, lists: Ints, owner: int) -> None:
    """The request will not come back for its old blocks."""
    segment = req[owner, at.SEGMENT]
    if segment >= 0:
        lists[at.SEG_OWNER, segment] = -1
        req[owner, at.SEGMENT] = -1
        head[at.OWNED] -= 1


@kernel
def _compact(head: Ints, req: Ints, lists: Ints) -> None:
    to = 0
    for segment in range(head[at.SEG_HEAD], head[at.SEG_TAIL]):
        count = lists[at.SEG_COUNT, segment]
        owner = lists[at.SEG_OWNER, segment]
        if count == 0:
            continue
        if owner < 0 and to > 0 and lists[at.SEG_OWNER, to - 1] < 0:
            lists[at.SEG_COUNT, to - 1] += count
            continue
        lists[at.SEG_OWNER, to] = owner
        lists[at.SEG_COUNT, to] = count
        if owner >= 0:
            req[owner, at.SEGMENT] = to
        to += 1
    head[at.SEG_HEAD] = 0
    head[at.SEG_TAIL] = to

"""KV cache groups: some layers attend to all tokens, others to a sliding window of `WINDOW` tokens, and each group
takes blocks of its own for the same tokens. The rules in words: `simcore.reference_kv`.

Counted, a request holds `GROUPS` blocks for each block of its tokens, less one in each window group for each that lies
wholly before its window. While it decodes that is known from its computed tokens alone.
"""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.compiled.layout import Ints
from simcore.kernel_cache import kernel


@kernel
def is_window(head: Ints, group: int) -> bool:
    return (head[at.WINDOW_MASK] >> group) & 1 != 0


@kernel
def asked_blocks(head: Ints, tokens: int) -> int:
    """Blocks that so many tokens take, as they are counted at admission (`EngineConfig.blocks_for`)."""
    rows = (tokens + head[at.BLOCK] - 1) // head[at.BLOCK]
    windows = head[at.WINDOW_GROUPS]
    return (head[at.GROUPS] - windows) * rows + windows * min(rows, head[at.WINDOW_BLOCKS])


@kernel
def reach(head: Ints) -> int:
    """Blocks before a block's beginning to which its first token attends in a window group."""
    return (head[at.WINDOW] - 1 + head[at.BLOCK] - 1) // head[at.BLOCK]


@kernel
def found_blocks(head: Ints, hits: int) -> int:
    """Blocks of all groups that a request takes over whose first `hits` blocks are cached."""
    windows = head[at.WINDOW_GROUPS]
    return (head[at.GROUPS] - windows) * hits + windows * min(hits, reach(head))


@kernel
def passed(head: Ints, settled: int) -> int:
    """Leading blocks that the window has passed when so many tokens are computed and no longer in flight."""
    return max(0, settled - head[at.WINDOW] + 1) // head[at.BLOCK]


@kernel
def passed_decoding(head: Ints, computed: int) -> int:
    """Those that a request has given back whose last two steps were of one token, with `computed` tokens, those in
    flight among them."""
    return passed(head, computed - 1 - head[at.ASYNC])


@kernel
def held_blocks(head: Ints, tokens: int, left: int) -> int:
    """Blocks held for so many tokens when `left` of each window group are given back."""
    return head[at.GROUPS] * ((tokens + head[at.BLOCK] - 1) // head[at.BLOCK]) - head[at.WINDOW_GROUPS] * left


@kernel
def add_free(head: Ints, blocks: int) -> None:
    """Counted blocks are free again. What is taken to be shared may be given back by each who held it."""
    head[at.FREE] = min(head[at.TOTAL_BLOCKS], head[at.FREE] + blocks)


@kernel
def gives_back(head: Ints, req: Ints, slot: int, step: int) -> bool:
    """Whether a decoding slot gives back a block of each window group in a phase's step number `step`, from 1 on."""
    behind = req[slot, at.COMPUTED] + step - head[at.WINDOW] - head[at.ASYNC]
    return behind > 0 and behind % head[at.BLOCK] == 0


@kernel
def steps_in_room(
    head: Ints, req: Ints, lists: Ints, running: int, done: int, steps: int, awaited: int
) -> tuple[int, int, int]:
    """(How many of the next `steps` decoding steps fit, blocks that they take less those that they give back, fewest
    free behind a step of them) when `done` steps of the phase are over.

    A step fits if its blocks are there before any is given back in it, and if behind it fewer than `awaited` are free,
    with which somebody would be admitted: others are run one by one.
    """
    block, groups, windows = head[at.BLOCK], head[at.GROUPS], head[at.WINDOW_GROUPS]
    per_slack, per_step = lists[at.PER_SLACK], lists[at.PER_LEFT]
    free = head[at.FREE]
    lowest = 1 << 62
    for k in range(steps):
        if k % block == 0:
            for j in range(block):
                per_step[j] = 0
            for i in range(running):
                slot = lists[at.RUNNING, i]
                behind = req[slot, at.COMPUTED] + done + k + 1 - head[at.WINDOW] - head[at.ASYNC]
                if lists[at.LEFT, i] > done and behind > 0:
                    per_step[(k + block - behind % block) % block] += 1
        blocks = groups * per_slack[(done + k) % block]
        behind_it = free + windows * per_step[k % block] - blocks
        if blocks > free or behind_it >= awaited:
            return k, head[at.FREE] - free, lowest
        free = behind_it
        lowest = min(lowest, free)
    return steps, head[at.FREE] - free, lowest

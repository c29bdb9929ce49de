"""Many decoding steps of a synchronous engine at once, while nobody can be admitted: only counts change.

In such a phase every running request decodes: each of D requests gets one token a step. Over n steps the KV tokens read
are the arithmetic series n*S + D*n*(n-1)/2 (S = context tokens in the first step), and a request whose last block has
room for `slack` more tokens takes a new block at steps slack+1, slack+1+B, ... So a phase needs no look at single
requests between completions: `left[i]` counts the steps to the end of running request i from the start of the phase,
`per_slack[k]` how many had slack k then. The phase ends when somebody may be admitted, or before a step whose blocks do
not suffice.

Most phases are over with the first completion, for which one look through the running list is enough. In one that goes
on all are put in the order of their ends; that is nearly the order in which they end without the candidate, so sorting
by insertion touches each about once.
"""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.compiled.block_counts import give_back, take
from simcore.compiled.headroom import note_free, note_room
from simcore.compiled.kv_cache_manager import fits_now, needed_now
from simcore.compiled.layout import Floats, Ints, Shared
from simcore.compiled.windows import add_free, held_blocks, passed_decoding, steps_in_room
from simcore.cost.step_time import dense_seconds, waited_s
from simcore.kernel_cache import kernel


@kernel
def admissible(head: Ints, req: Ints, lists: Ints, sequences: int) -> bool:
    """Whether the first waiting request may be admitted beside that many decoding ones, where no group has a window."""
    waiting = head[at.N_WAITING]
    if waiting == 0 or sequences >= head[at.MAX_SEQS] or sequences >= head[at.BUDGET]:
        return False
    return fits_now(head, req, lists[at.WAITING, waiting - 1])


@kernel
def blocks_for(per_slack: Ints, block: int, sequences: int, done: int, steps: int) -> int:
    """New blocks that the next `steps` steps take when `done` steps of the phase are over."""
    # In n steps of the phase all take a block for each full round, and in the rest those whose room that uses up.
    before, after = done // block, (done + steps) // block
    blocks = (after - before) * sequences
    for k in range(done + steps - after * block):
        blocks += per_slack[k]
    for k in range(done - before * block):
        blocks -= per_slack[k]
    return blocks


@kernel
def steps_that_fit(per_slack: Ints, block: int, sequences: int, done: int, free: int) -> int:
    """Most steps that `free` blocks carry."""
    rounds = free // sequences
    free -= rounds * sequences
    k = done % block
    for extra in range(block):
        free -= per_slack[k]
        if free < 0:
            return rounds * block + extra
        k += 1
        if k == block:
            k = 0
    return (rounds + 1) * block


@kernel
def awaited_blocks(head: Ints, req: Ints, lists: Ints, sequences: int) -> int:
    """The free blocks with which the first waiting request would be admitted, as windows give some back; more than
    there are where nobody can be."""
    waiting = head[at.N_WAITING]
    if waiting == 0 or sequences >= head[at.MAX_SEQS] or sequences >= head[at.BUDGET]:
        return head[at.TOTAL_BLOCKS] + 1
    return needed_now(head, req, lists[at.WAITING, waiting - 1])


@kernel
def steps_ahead(per_slack: Ints, block: int, sequences: int, done: int, steps: int, free: int) -> tuple[int, int]:
    """(How many of the next `steps` steps `free` blocks carry, blocks that these take)."""
    blocks = blocks_for(per_slack, block, sequences, done, steps)
    if blocks > free:
        steps = steps_that_fit(per_slack, block, sequences, done, free)
        blocks = blocks_for(per_slack, block, sequences, done, steps)
    return steps, blocks


@kernel
def ending_next(lists: Ints, running: int, end: int) -> int:
    """Puts the indexes of those with `end` steps left into `BY_END`, in the order of the running list; how many."""
    n = 0
    for i in range(running):
        if lists[at.LEFT, i] == end:
            lists[at.BY_END, n] = i
            n += 1
    return n


@kernel
def _insert(lists: Ints, n: int, i: int) -> int:
    left, by_end = lists[at.LEFT], lists[at.BY_END]
    place, mine = n, left[i]
    while place > 0 and (left[by_end[place - 1]] > mine or (left[by_end[place - 1]] == mine and by_end[place - 1] > i)):
        by_end[place] = by_end[place - 1]
        place -= 1
    by_end[place] = i
    return n + 1


@kernel
def sort_by_end(lists: Ints, running: int, done: int, candidate: int, ended: Ints) -> int:
    """Puts the indexes of those with more than `done` steps left into `BY_END`, those that end first in front, of
    several at once in the order of the running list. Returns how many they are.

    `ended`: the order of ends without the candidate, to begin from; with candidate -1 it is not known yet. A candidate
    that is one of the base's own is in it.
    """
    left, position = lists[at.LEFT], lists[at.POSITION]
    n = 0
    if candidate < 0:
        for i in range(running):
            if left[i] > done:
                n = _insert(lists, n, i)
        return n
    for k in range(ended[at.N_ENDED] + int(candidate >= ended[at.N_ENDED])):
        slot = ended[at.FIRST_ENDED + k] if k < ended[at.N_ENDED] else candidate
        i = position[slot]
        if i < running and lists[at.RUNNING, i] == slot and left[i] > done:
            n = _insert(lists, n, i)
    return n


@kernel
def note_end(ended: Ints, candidate: int, slot: int) -> None:
    """Keeps the order of ends without a candidate."""
    if candidate < 0:
        ended[at.FIRST_ENDED + ended[at.N_ENDED]] = slot
        ended[at.N_ENDED] += 1


@kernel
def free_all(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int, held: int, named: int) -> None:
    """Frees the blocks of a request for good: those of `held` tokens, of which the first `named` can be found."""
    block = head[at.BLOCK]
    blocks = (held + block - 1) // block
    if shared is not None and head[at.WINDOW_GROUPS] > 0:
        blocks = held_blocks(head, held, passed_decoding(head, held))
        add_free(head, max(0, blocks - req[slot, at.BORROWED]))
        return
    if head[at.OWNED] == 0 and req[slot, at.BORROWED] == 0:
        # No free block is worth telling from another.
        head[at.FREE] += blocks
        return
    keyed = named // block if head[at.CACHING] else 0
    give_back(head, req, lists, -1, blocks - keyed, max(0, keyed - req[slot, at.BORROWED]))


@kernel
def still_running(lists: Ints, running: int, done: int) -> int:
    """Takes those that have ended out of the running list; how many are left."""
    kept = 0
    for i in range(running):
        if lists[at.LEFT, i] > done:
            lists[at.RUNNING, kept] = lists[at.RUNNING, i]
            kept += 1
    return kept


@kernel
def decode_sync(
    head: Ints,
    req: Ints,
    lists: Ints,
    shared: Shared,
    packed: Floats,
    now_s: float,
    candidate: int,
    ends: Floats,
    progress: Floats,
    headroom: Floats,
    rows: int,
    ended: Ints,
    limited: bool,
) -> tuple[int, float, int, bool, int]:
    """Runs the phase that begins now, if one does. Finish times go to `ends`, free blocks to `progress` and, without a
    candidate, to `headroom`. `ended`: see `sort_by_end`.

    Returns (steps, time after them, fewest free blocks until the candidate ended, whether it ended, rows of the
    `headroom`); 0 steps if the next one is not of this kind, and then nothing has changed.

    `limited`: some wait for a LoRA adapter's place, and nobody can be admitted now; the phase ends with the first
    request that does, whoever that lets in.
    """
    running = sequences = head[at.N_RUNNING]
    lowest = head[at.FREE]
    block = head[at.BLOCK]
    passing = shared is not None and head[at.WINDOW_GROUPS] > 0
    if (
        sequences == 0
        or sequences > head[at.BUDGET]
        or (not limited and not passing and admissible(head, req, lists, sequences))
    ):
        return 0, now_s, lowest, False, rows
    left = lists[at.LEFT]
    per_slack = lists[at.PER_SLACK]
    for k in range(block):
        per_slack[k] = 0
    kv = 0
    next_end = req[lists[at.RUNNING, 0], at.FINAL]
    for i in range(sequences):
        slot = lists[at.RUNNING, i]
        computed = req[slot, at.COMPUTED]
        out = req[slot, at.OUT]
        if out == 0 or req[slot, at.PROMPT] + out - computed != 1:
            return 0, now_s, lowest, False, rows
        if shared is not None and passing and lists[at.LEFT_BEHIND, slot] != passed_decoding(head, computed):
            return 0, now_s, lowest, False, rows
        kv += computed + 1
        left[i] = req[slot, at.FINAL] - out
        lists[at.POSITION, slot] = i
        next_end = min(next_end, left[i])
        per_slack[req[slot, at.CAPACITY] - computed] += 1
    done = nth = 0
    in_order = 0
    gone = False
    while sequences > 0:
        free = head[at.FREE]
        if shared is not None and passing:
            awaited = awaited_blocks(head, req, lists, sequences)
            if awaited <= free:
                break
            steps, blocks, fewest = steps_in_room(head, req, lists, running, done, next_end - done, awaited)
        else:
            steps, blocks = steps_ahead(per_slack, block, sequences, done, next_end - done, free)
            fewest = free - blocks
        enough = steps == next_end - done
        if steps == 0:
            break
        per_step = packed[0] + dense_seconds(packed, sequences) + packed[3] * sequences
        began_s = now_s
        now_s += steps * per_step + packed[2] * (steps * kv + 0.5 * sequences * steps * (steps - 1.0))
        short_s = packed[9] + packed[10] * sequences - (per_step + packed[2] * kv)
        if short_s > 0.0:
            now_s += waited_s(short_s, packed[2] * sequences, steps)
        kv += steps * sequences
        done += steps
        take(head, req, lists, blocks)
        note_free(progress, began_s, now_s, free, fewest)
        if candidate < 0:
            newcomer = head[at.N_WAITING] == 0 and sequences < head[at.MAX_SEQS] and sequences < head[at.BUDGET]
            rows = note_room(headroom, rows, began_s, fewest if newcomer else -1)
        if not gone:
            lowest = min(lowest, fewest)
        if not enough:
            break
        at_once = in_order if in_order > 0 else ending_next(lists, running, next_end)
        while nth < at_once and left[lists[at.BY_END, nth]] == next_end:
            slot = lists[at.RUNNING, lists[at.BY_END, nth]]
            ends[slot] = now_s
            note_end(ended, candidate, slot)
            gone = gone or slot == candidate
            computed = req[slot, at.COMPUTED]
            per_slack[req[slot, at.CAPACITY] - computed] -= 1
            computed += done
            kv -= computed + 1
            free_all(head, req, lists, shared, slot, computed, computed)
            sequences -= 1
            nth += 1
        if limited or sequences == 0 or (not passing and admissible(head, req, lists, sequences)):
            break
        if in_order == 0:
            in_order = sort_by_end(lists, running, done, candidate, ended)
            nth = 0
        next_end = left[lists[at.BY_END, nth]]
    head[at.N_RUNNING] = still_running(lists, running, done)
    for i in range(sequences):
        slot = lists[at.RUNNING, i]
        computed = req[slot, at.COMPUTED] + done
        req[slot, at.OUT] += done
        req[slot, at.COMPUTED] = computed
        req[slot, at.CAPACITY] = (computed + block - 1) // block * block
        if shared is not None and passing:
            lists[at.LEFT_BEHIND, slot] = passed_decoding(head, computed)
    return done, now_s, lowest, gone, rows

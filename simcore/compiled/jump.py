"""Many steps at once while every running request decodes and nobody can be admitted: only counts change.

In such a phase each of D requests gets one token a step. Over n steps the KV tokens read are the arithmetic series
n*S + D*n*(n-1)/2 (S = context tokens in the first step), and a request whose last block has room for `slack` more
tokens takes a new block at steps slack+1, slack+1+B, ... So a phase needs no look at single requests between
completions: `left[i]` counts the steps to the end of running request i from the start of the phase, `per_slack[k]` how
many had slack k then. The phase ends when somebody may be admitted, or before a step whose blocks do not suffice.
"""

from __future__ import annotations

from numba import njit

from simcore.compiled.course import note_free, note_stretch
from simcore.compiled.kv import give_back, take
from simcore.compiled.layout import (
    BLOCK,
    BORROWED,
    BUDGET,
    CACHING,
    CAPACITY,
    COMPUTED,
    FINAL,
    FREE,
    LEFT,
    MAX_SEQS,
    N_RUNNING,
    N_WAITING,
    OUT,
    PER_SLACK,
    PROMPT,
    RUNNING,
    WAITING,
    Floats,
    Ints,
)
from simcore.compiled.memory import fits_now
from simcore.cost.step_time import dense_seconds


@njit(nogil=True)
def admissible(head: Ints, req: Ints, lists: Ints, sequences: int) -> bool:
    """Whether the first waiting request may be admitted beside that many decoding ones."""
    waiting = head[N_WAITING]
    if waiting == 0 or sequences >= head[MAX_SEQS] or sequences >= head[BUDGET]:
        return False
    return fits_now(head, req, lists[WAITING, waiting - 1])


@njit(nogil=True)
def blocks_for(per_slack: Ints, block: int, sequences: int, done: int, steps: int) -> int:
    """New blocks that the next `steps` steps take when `done` steps of the phase are over."""
    rounds = steps // block
    blocks = rounds * sequences
    k = done % block
    for _ in range(steps - rounds * block):
        blocks += per_slack[k]
        k += 1
        if k == block:
            k = 0
    return blocks


@njit(nogil=True)
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


@njit(nogil=True)
def decode_phase(
    head: Ints,
    req: Ints,
    lists: Ints,
    packed: Floats,
    now_s: float,
    candidate: int,
    ends: Floats,
    progress: Floats,
    course: Floats,
    rows: int,
) -> tuple[int, float, int, bool, int]:
    """Runs the phase that begins now, if one does. Finish times go to `ends`, free blocks to `progress` and, without a
    candidate, to the course.

    Returns (steps, time after them, fewest free blocks until the candidate ended, whether it ended, rows of the
    course); 0 steps if the next one is not of this kind, and then nothing has changed.
    """
    sequences = head[N_RUNNING]
    lowest = head[FREE]
    block = head[BLOCK]
    if sequences == 0 or sequences > head[BUDGET] or admissible(head, req, lists, sequences):
        return 0, now_s, lowest, False, rows
    left = lists[LEFT]
    per_slack = lists[PER_SLACK]
    for k in range(block):
        per_slack[k] = 0
    kv = 0
    next_end = req[lists[RUNNING, 0], FINAL]
    for i in range(sequences):
        slot = lists[RUNNING, i]
        computed = req[slot, COMPUTED]
        out = req[slot, OUT]
        if out == 0 or req[slot, PROMPT] + out - computed != 1:
            return 0, now_s, lowest, False, rows
        kv += computed + 1
        left[i] = req[slot, FINAL] - out
        next_end = min(next_end, left[i])
        per_slack[req[slot, CAPACITY] - computed] += 1
    done = 0
    ended = False
    while sequences > 0:
        steps = next_end - done
        blocks = blocks_for(per_slack, block, sequences, done, steps)
        enough = blocks <= head[FREE]
        if not enough:
            steps = steps_that_fit(per_slack, block, sequences, done, head[FREE])
            if steps == 0:
                break
            blocks = blocks_for(per_slack, block, sequences, done, steps)
        per_step = packed[0] + dense_seconds(packed, sequences) + packed[3] * sequences
        began_s = now_s
        now_s += steps * per_step + packed[2] * (steps * kv + 0.5 * sequences * steps * (steps - 1.0))
        kv += steps * sequences
        done += steps
        free = head[FREE]
        take(head, req, lists, blocks)
        note_free(progress, began_s, now_s, free, head[FREE])
        if candidate < 0:
            newcomer = head[N_WAITING] == 0 and sequences < head[MAX_SEQS] and sequences < head[BUDGET]
            rows = note_stretch(course, rows, began_s, head[FREE] if newcomer else -1)
        if not ended:
            lowest = min(lowest, head[FREE])
        if not enough:
            break
        kept = 0
        next_end = 1 << 62
        for i in range(sequences):
            slot = lists[RUNNING, i]
            if left[i] > done:
                left[kept] = left[i]
                lists[RUNNING, kept] = slot
                kept += 1
                next_end = min(next_end, left[i])
                continue
            ends[slot] = now_s
            ended = ended or slot == candidate
            per_slack[req[slot, CAPACITY] - req[slot, COMPUTED]] -= 1
            computed = req[slot, COMPUTED] + done
            kv -= computed + 1
            keyed = computed // block if head[CACHING] else 0
            unkeyed = (computed + block - 1) // block - keyed
            give_back(head, req, lists, -1, unkeyed, max(0, keyed - req[slot, BORROWED]))
        sequences = kept
        if admissible(head, req, lists, sequences):
            break
    head[N_RUNNING] = sequences
    for i in range(sequences):
        slot = lists[RUNNING, i]
        computed = req[slot, COMPUTED] + done
        req[slot, OUT] += done
        req[slot, COMPUTED] = computed
        req[slot, CAPACITY] = (computed + block - 1) // block * block
    return done, now_s, lowest, ended, rows

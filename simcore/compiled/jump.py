"""Many steps at once while every running request decodes and nobody can be admitted: only counts change.

In such a phase each of D requests gets one token a step, so after n steps each has n tokens more, the KV tokens read
are the arithmetic series n*S + D*n*(n-1)/2 (S = context tokens in the first step), and a request whose last block has
room for `slack` more tokens takes a new block at steps slack+1, slack+1+B, ... The phase ends with the first
completion or with the step for which blocks do not suffice.
"""

from __future__ import annotations

from numba import njit

from simcore.compiled.kv import take
from simcore.compiled.layout import (
    BLOCK,
    BUDGET,
    CAPACITY,
    COMPUTED,
    FINAL,
    FINISHED,
    FREE,
    MAX_SEQS,
    N_RUNNING,
    N_WAITING,
    OUT,
    PROMPT,
    RUNNING,
    WAITING,
    Ints,
)
from simcore.compiled.step import fits_now, free_blocks_of, note


@njit(nogil=True)
def _steps_that_fit(free: int, per_slack: Ints, block: int, sequences: int) -> int:
    """Most steps that `free` blocks carry; `per_slack[k]` sequences take a block at steps k+1, k+1+block, ..."""
    rounds = free // sequences
    left = free - rounds * sequences
    for k in range(block):
        left -= per_slack[k]
        if left < 0:
            return rounds * block + k
    return rounds * block + block


@njit(nogil=True)
def jump(head: Ints, req: Ints, lists: Ints, log: Ints, per_slack: Ints) -> tuple[int, int, int, int, int]:
    """Runs as many steps as can be told at once.

    `per_slack` is scratch of at least block-size cells. Returns (steps, log rows, sequences, KV tokens read in the
    first step, fewest free blocks); 0 steps if the next one is not of this kind, and then nothing has changed.
    """
    sequences = head[N_RUNNING]
    free = head[FREE]
    block = head[BLOCK]
    if sequences == 0 or sequences > head[BUDGET]:
        return 0, 0, 0, 0, free
    waiting = head[N_WAITING]
    room = sequences < head[MAX_SEQS] and sequences < head[BUDGET]
    if waiting > 0 and room and fits_now(head, req, lists[WAITING, waiting - 1]):
        return 0, 0, 0, 0, free
    steps = req[lists[RUNNING, 0], FINAL]
    kv = 0
    for i in range(sequences):
        slot = lists[RUNNING, i]
        computed = req[slot, COMPUTED]
        out = req[slot, OUT]
        if out == 0 or req[slot, PROMPT] + out - computed != 1:
            return 0, 0, 0, 0, free
        steps = min(steps, req[slot, FINAL] - out)
        kv += computed + 1
    if sequences * ((steps + block - 1) // block) > free:
        per_slack[:block] = 0
        for i in range(sequences):
            slot = lists[RUNNING, i]
            per_slack[req[slot, CAPACITY] - req[slot, COMPUTED]] += 1
        steps = min(steps, _steps_that_fit(free, per_slack, block, sequences))
        if steps == 0:
            return 0, 0, 0, 0, free
    taken = 0
    for i in range(sequences):
        slot = lists[RUNNING, i]
        req[slot, OUT] += steps
        req[slot, COMPUTED] += steps
        lacking = req[slot, COMPUTED] - req[slot, CAPACITY]
        if lacking > 0:
            blocks = (lacking + block - 1) // block
            req[slot, CAPACITY] += blocks * block
            taken += blocks
    take(head, req, lists, taken)
    lowest = head[FREE]
    n_log = kept = 0
    for i in range(sequences):
        slot = lists[RUNNING, i]
        if req[slot, OUT] >= req[slot, FINAL]:
            n_log = note(log, n_log, FINISHED, slot)
            free_blocks_of(head, req, lists, slot, req[slot, COMPUTED], False)
        else:
            lists[RUNNING, kept] = slot
            kept += 1
    head[N_RUNNING] = kept
    return steps, n_log, sequences, kv, lowest

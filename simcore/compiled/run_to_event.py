"""Runs a simulated node to its next event, and keeps the states on the way: what a trace tells.

A row of `states` is the summary of one state (`STATE_`...), and `told_s` when it is told: at the next multiple of an
interval. A state that a later one has overtaken by then is overwritten by it.
"""

from __future__ import annotations

import math

from numba import njit

from simcore.compiled import step
from simcore.compiled.layout import (
    AHEAD,
    COMPUTED,
    FLYING,
    FREE,
    N_BEFORE,
    N_RUNNING,
    N_WAITING,
    PLAN_GREW,
    PREEMPTED_TOTAL,
    PROMPT,
    RUNNING,
    STATE_BLOCKS,
    STATE_FREE,
    STATE_MARK,
    STATE_PREEMPTED,
    STATE_RUNNING,
    STATE_SEQ,
    STATE_TOKENS,
    STATE_WAITING,
    WAITING,
    WATCH_ALL,
    Floats,
    Ints,
    Shared,
)
from simcore.compiled.load import measure
from simcore.cost import step_time


@njit(nogil=True)
def _expected_tokens(head: Ints, req: Ints, lists: Ints, totals: Ints) -> int:
    """Tokens not processed yet with `totals` by slot as the lengths of answers."""
    tokens = 0
    for row, counter in ((RUNNING, N_RUNNING), (WAITING, N_WAITING)):
        for i in range(head[counter]):
            slot = lists[row, i]
            tokens += max(0, req[slot, PROMPT] + totals[slot] - req[slot, COMPUTED])
    return tokens


@njit(nogil=True)
def keep(
    head: Ints,
    req: Ints,
    lists: Ints,
    totals: Ints,
    told_s: Floats,
    states: Ints,
    row: int,
    seq: int,
    mark: int,
    state_s: float,
    interval_s: float,
) -> int:
    """Keeps the summary of a state that came about at `state_s` in row `row`, or in the one before if that has not been
    told by then. Lengths are known if `totals` is empty. Returns the rows used."""
    if row > 0 and told_s[row - 1] >= state_s:
        row -= 1
    told_s[row] = math.ceil(state_s / interval_s) * interval_s if interval_s > 0.0 else state_s
    running = head[N_BEFORE] if head[AHEAD] else head[N_RUNNING]
    blocks, tokens = measure(head, req, lists)
    state = states[row]
    state[STATE_SEQ] = seq
    state[STATE_RUNNING] = running
    state[STATE_WAITING] = head[N_RUNNING] + head[N_WAITING] - running
    state[STATE_FREE] = head[FREE] + head[PLAN_GREW]
    state[STATE_BLOCKS] = blocks
    state[STATE_TOKENS] = _expected_tokens(head, req, lists, totals) if len(totals) else tokens
    state[STATE_PREEMPTED] = head[PREEMPTED_TOTAL]
    state[STATE_MARK] = mark
    return row + 1


@njit(nogil=True)
def run(
    head: Ints,
    req: Ints,
    lists: Ints,
    shared: Shared,
    log: Ints,
    packed: Floats,
    totals: Ints,
    told_s: Floats,
    states: Ints,
    row: int,
    seq: int,
    mark: int,
    watched: int,
    next_s: float,
    until_s: float,
    keep_from_s: float,
    interval_s: float,
) -> tuple[int, int, int, float, float]:
    """Steps that begin before `until_s`, the first at `next_s`, to the end of the first that leaves a log row or has
    begun with slot `watched`; of any with WATCH_ALL; or while there are rows of states.

    The states as they stand before steps from `keep_from_s` on are kept, from `row` on. Returns (log rows, steps, rows
    of states used, begin and end of the last step).
    """
    steps = n_log = 0
    began_s = next_s
    while next_s < until_s and row < len(told_s) and (head[N_RUNNING] + head[N_WAITING] > 0 or head[FLYING]):
        if next_s >= keep_from_s:
            row = keep(head, req, lists, totals, told_s, states, row, seq + steps, mark, next_s, interval_s)
        began_s = next_s
        n_log, prefill, work, prefill_seqs, decode, read, _ = step.step(head, req, lists, shared, log, False)
        next_s += step_time.step_seconds(packed, prefill + decode, work, read, prefill_seqs + decode)
        steps += 1
        if n_log > 0 or watched == WATCH_ALL or (watched >= 0 and req[watched, COMPUTED] > 0):
            break
    return n_log, steps, row, began_s, next_s

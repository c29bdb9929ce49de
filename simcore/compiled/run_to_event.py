"""Runs a simulated node to its next event, and keeps the states on the way: what a trace publishes.

A row of `states` is the summary of one state (`STATE_`...), and `published_s` when the trace publishes it: at the next
multiple of an interval. A state that a later one has overtaken by then is overwritten by it.
"""

from __future__ import annotations

import math

from simcore.compiled import layout as at
from simcore.compiled import step
from simcore.compiled.layout import Floats, Ints, Shared
from simcore.compiled.load import measure
from simcore.cost import step_time
from simcore.kernel_cache import cached, kernel


@kernel
def _expected_tokens(head: Ints, req: Ints, lists: Ints, totals: Ints) -> int:
    """Tokens not processed yet with `totals` by slot as the lengths of answers."""
    tokens = 0
    for row, counter in ((at.RUNNING, at.N_RUNNING), (at.WAITING, at.N_WAITING)):
        for i in range(head[counter]):
            slot = lists[row, i]
            tokens += max(0, req[slot, at.PROMPT] + totals[slot] - req[slot, at.COMPUTED])
    return tokens


@cached
def keep(
    head: Ints,
    req: Ints,
    lists: Ints,
    totals: Ints,
    published_s: Floats,
    states: Ints,
    row: int,
    seq: int,
    mark: int,
    state_s: float,
    interval_s: float,
) -> int:
    """Keeps the summary of a state that came about at `state_s` in row `row`, or in the one before if that has not been
    published by then. Lengths are known if `totals` is empty. Returns the rows used."""
    if row > 0 and published_s[row - 1] >= state_s:
        row -= 1
    published_s[row] = math.ceil(state_s / interval_s) * interval_s if interval_s > 0.0 else state_s
    running = head[at.N_BEFORE] if head[at.ASYNC] else head[at.N_RUNNING]
    blocks, tokens, prefill = measure(head, req, lists)
    state = states[row]
    state[at.STATE_SEQ] = seq
    state[at.STATE_RUNNING] = running
    state[at.STATE_WAITING] = head[at.N_RUNNING] + head[at.N_WAITING] - running
    state[at.STATE_FREE] = head[at.FREE] + head[at.PLAN_GREW]
    state[at.STATE_BLOCKS] = blocks
    state[at.STATE_TOKENS] = _expected_tokens(head, req, lists, totals) if len(totals) else tokens
    state[at.STATE_PREFILL] = prefill
    state[at.STATE_PREEMPTED] = head[at.PREEMPTED_TOTAL]
    state[at.STATE_MARK] = mark
    return row + 1


@cached
def run(
    head: Ints,
    req: Ints,
    lists: Ints,
    shared: Shared,
    log: Ints,
    packed: Floats,
    totals: Ints,
    published_s: Floats,
    states: Ints,
    counters: tuple[int, int, int, int],
    times_s: tuple[float, float, float, float],
) -> tuple[int, int, int, float, float]:
    """Steps that begin before `until_s`, the first at `next_s`, to the end of the first that leaves a log row or has
    begun with slot `watched`; of any with WATCH_ALL; or while there are rows of states.

    `counters` are (row, seq, mark, watched), `times_s` (next_s, until_s, keep_from_s, interval_s). The states as they
    stand before steps from `keep_from_s` on are kept, from `row` on. Returns (log rows, steps, rows of states used,
    begin and end of the last step).
    """
    row, seq, mark, watched = counters
    next_s, until_s, keep_from_s, interval_s = times_s
    steps = n_log = 0
    began_s = next_s
    while (
        next_s < until_s
        and row < len(published_s)
        and (head[at.N_RUNNING] + head[at.N_WAITING] > 0 or head[at.IN_FLIGHT])
    ):
        if next_s >= keep_from_s:
            row = keep(head, req, lists, totals, published_s, states, row, seq + steps, mark, next_s, interval_s)
        began_s = next_s
        n_log, prefill, work, prefill_seqs, decode, read, _ = step.step(head, req, lists, shared, log, False)
        next_s += step_time.step_seconds(packed, prefill + decode, work, read, prefill_seqs + decode, prefill_seqs)
        steps += 1
        if n_log > 0 or watched == at.WATCH_ALL or (watched >= 0 and req[watched, at.COMPUTED] > 0):
            break
    return n_log, steps, row, began_s, next_s

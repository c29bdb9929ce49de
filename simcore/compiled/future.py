"""One what-if: a copy of the base state, perhaps with a candidate, run until everybody has finished.

base    the node compacted: slots 0..n-1 are its requests, in the order running, waiting from front to back
finals  int64 (scenarios, n)       total output tokens of each request in each scenario
ends    float64 (scenarios, n)     finish times without the candidate: the memoised baseline
"""

from __future__ import annotations

from numba import njit

from simcore.compiled.jump import jump
from simcore.compiled.layout import (
    FINAL,
    FINISHED,
    FIRST_TOKEN,
    FREE,
    FRONT,
    KIND,
    N_COLS,
    N_HEAD,
    N_RUNNING,
    N_WAITING,
    ORDER,
    OUT,
    OWNED,
    PREEMPTED,
    PRIORITY,
    PROMPT,
    RUNNING,
    SCRATCH,
    SEG_COUNT,
    SEG_HEAD,
    SEG_OWNER,
    SEG_TAIL,
    SEGMENT,
    SLOT,
    TOTAL_BLOCKS,
    WAITING,
    Floats,
    Ints,
)
from simcore.compiled.step import enqueue, step
from simcore.cost.step_time import dense_seconds, step_seconds
from simcore.scenarios import OVERDUE_TOKENS


@njit(nogil=True)
def copy_state(head: Ints, req: Ints, lists: Ints, to_head: Ints, to_req: Ints, to_lists: Ints) -> None:
    """Copies a compacted state: slots 0..n-1 only."""
    for i in range(N_HEAD):
        to_head[i] = head[i]
    for slot in range(head[N_RUNNING] + head[N_WAITING]):
        for column in range(N_COLS):
            to_req[slot, column] = req[slot, column]
    for i in range(head[N_RUNNING]):
        to_lists[RUNNING, i] = lists[RUNNING, i]
    for i in range(head[N_WAITING]):
        to_lists[WAITING, i] = lists[WAITING, i]
    if head[OWNED] > 0:
        for i in range(head[SEG_HEAD], head[SEG_TAIL]):
            to_lists[SEG_OWNER, i] = lists[SEG_OWNER, i]
            to_lists[SEG_COUNT, i] = lists[SEG_COUNT, i]


@njit(nogil=True)
def compact_state(
    head: Ints, req: Ints, lists: Ints, to_head: Ints, to_req: Ints, to_lists: Ints, source: Ints
) -> None:
    """Copies any state into a compacted one. `source[i]` becomes the old slot of new slot i."""
    for i in range(N_HEAD):
        to_head[i] = head[i]
    running, waiting = head[N_RUNNING], head[N_WAITING]
    for i in range(running):
        source[i] = lists[RUNNING, i]
        to_lists[RUNNING, i] = i
    for i in range(waiting):
        source[running + i] = lists[WAITING, waiting - 1 - i]
        to_lists[WAITING, waiting - 1 - i] = running + i
    for slot in range(running + waiting):
        for column in range(N_COLS):
            to_req[slot, column] = req[source[slot], column]
    if head[OWNED] == 0:
        return
    to = 0
    for i in range(head[SEG_HEAD], head[SEG_TAIL]):
        if lists[SEG_COUNT, i] == 0:
            continue
        to_lists[SEG_COUNT, to] = lists[SEG_COUNT, i]
        to_lists[SEG_OWNER, to] = -1
        if lists[SEG_OWNER, i] >= 0:
            slot = running
            while source[slot] != lists[SEG_OWNER, i]:
                slot += 1
            to_lists[SEG_OWNER, to] = slot
            to_req[slot, SEGMENT] = to
        to += 1
    to_head[SEG_HEAD] = 0
    to_head[SEG_TAIL] = to


@njit(nogil=True)
def admit_candidate(head: Ints, req: Ints, lists: Ints, slot: int, prompt: int, priority: int, order: int) -> None:
    """A new request at its place in the waiting queue."""
    for column in range(N_COLS):
        req[slot, column] = 0
    req[slot, PROMPT] = prompt
    req[slot, PRIORITY] = priority
    req[slot, ORDER] = order
    req[slot, SEGMENT] = -1
    enqueue(head, req, lists, slot, False)


@njit(nogil=True)
def run(
    head: Ints,
    req: Ints,
    lists: Ints,
    log: Ints,
    packed: Floats,
    start_s: float,
    candidate: int,
    ends: Floats,
    jumping: bool,
) -> tuple[float, int, int]:
    """Runs the state until nothing is left; `ends[slot]` gets every slot's finish time.

    Returns (time of the candidate's first token, preemptions until the candidate ended, fewest free blocks until
    then); with candidate -1, until the very end. Fewest free blocks -1: the state cannot go on (a request that never
    fits), and times are worth nothing.
    """
    now_s = start_s
    first_s = 0.0
    preemptions = 0
    headroom = head[FREE]
    pending = True
    while head[N_RUNNING] + head[N_WAITING] > 0:
        steps = n_log = 0
        lowest = head[FREE]
        if jumping:
            steps, n_log, sequences, kv, lowest = jump(head, req, lists, log, lists[SCRATCH])
            if steps > 0:
                per_step = packed[0] + dense_seconds(packed, sequences) + packed[3] * sequences
                now_s += steps * per_step + packed[2] * (steps * kv + 0.5 * sequences * steps * (steps - 1.0))
        if steps == 0:
            if head[N_RUNNING] == 0:
                # With nobody running all blocks are free; a trace that says otherwise would stall for ever.
                head[FRONT] += head[TOTAL_BLOCKS] - head[FREE]
                head[FREE] = head[TOTAL_BLOCKS]
            n_log, prefill, work, prefill_seqs, decode, kv, lowest = step(head, req, lists, log, False)
            if prefill_seqs + decode == 0 and n_log == 0:
                return first_s, preemptions, -1
            now_s += step_seconds(packed, prefill + decode, work, kv, prefill_seqs + decode)
        if pending:
            headroom = min(headroom, lowest)
        for i in range(n_log):
            kind = log[i, KIND]
            slot = log[i, SLOT]
            if kind == FINISHED:
                ends[slot] = now_s
                if slot == candidate:
                    pending = False
            elif kind == PREEMPTED:
                if pending:
                    preemptions += 1
            elif kind == FIRST_TOKEN and slot == candidate:
                first_s = now_s
    return first_s, preemptions, headroom


@njit(nogil=True)
def draw_finals(req: Ints, slots: int, atoms: Ints, strata: Ints, rows: Ints, scenarios: int, finals: Ints) -> None:
    """Fills `finals[s, slot]`: total output tokens of each slot in each scenario, given what it has produced.

    `atoms[row]` is (number of atoms, longest output allowed, atoms ascending...), `strata[row]` the permutation,
    `rows[slot]` the row of a slot. Same rule as `simcore.scenarios.final_lengths`.
    """
    for slot in range(slots):
        row = rows[slot]
        n = atoms[row, 0]
        out = req[slot, OUT]
        ceiling = max(atoms[row, 1], out + 1)
        gone = 0
        while gone < n and atoms[row, 2 + gone] <= out:
            gone += 1
        left = n - gone
        for s in range(scenarios):
            if left == 0:
                final = out + OVERDUE_TOKENS
            else:
                final = atoms[row, 2 + gone + (2 * strata[row, s] + 1) * left // (2 * scenarios)]
            finals[s, slot] = min(ceiling, final)


@njit(nogil=True)
def set_finals(req: Ints, slots: int, finals: Ints, scenario: int) -> None:
    for slot in range(slots):
        req[slot, FINAL] = finals[scenario, slot]

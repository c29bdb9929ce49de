"""One what-if: a copy of the base state, perhaps with a candidate, run until everybody has finished.

base    the node compacted: slots 0..n-1 are its requests, in the order running, waiting from front to back
finals  int64 (scenarios, n)       total output tokens of each request in each scenario
ends    float64 (scenarios, n)     finish times without the candidate: the memoised baseline
"""

from __future__ import annotations

from numba import njit

from simcore.compiled.course import complete, note_free, note_stretch
from simcore.compiled.jump import decode_phase, note_end
from simcore.compiled.jump_ahead import decode_phase_ahead
from simcore.compiled.layout import (
    AHEAD,
    ASSUMED,
    ASSUMED_HELD,
    BANK,
    BASE,
    BLOCK,
    BUDGET,
    C_CACHED,
    C_CACHED_HELD,
    C_HASHES,
    C_MAX_OUT,
    C_PRIORITY,
    C_PROMPT,
    FINAL,
    FINISHED,
    FIRST_TOKEN,
    FLYING,
    FREE,
    FRONT,
    HASHES,
    KIND,
    MAX_OUT,
    MAX_SEQS,
    N_BEFORE,
    N_COLS,
    N_ENDED,
    N_HEAD,
    N_PLAN,
    N_PROGRESS,
    N_RUNNING,
    N_WAITING,
    NOW,
    ORDER,
    OUT,
    OWNED,
    PLAN_CACHED,
    PLAN_PREFILL,
    PLAN_PREFILL_SEQS,
    PLAN_SLOT,
    PLAN_TOKENS,
    PREEMPTED,
    PRIORITY,
    PROMPT,
    ROOM,
    RUNNING,
    SCRATCH_STATE,
    SEG_COUNT,
    SEG_HEAD,
    SEG_OWNER,
    SEG_TAIL,
    SEGMENT,
    SLOT,
    SO_FAR_HEADROOM,
    SO_FAR_PATH,
    SO_FAR_PREEMPTIONS,
    TOTAL_BLOCKS,
    WAITING,
    Floats,
    Ints,
    Shared,
)
from simcore.compiled.plan import enqueue
from simcore.compiled.step import step
from simcore.cost.step_time import step_seconds
from simcore.scenarios import OVERDUE_TOKENS


@njit(nogil=True)
def copy_state(heads: Ints, reqs: Ints, lists3: Ints, source: int, target: int, slots: int) -> None:
    """Copies a state of which only the slots 0..slots-1 are in use."""
    head, req, lists = heads[source], reqs[source], lists3[source]
    to_head, to_req, to_lists = heads[target], reqs[target], lists3[target]
    for i in range(N_HEAD):
        to_head[i] = head[i]
    for slot in range(slots):
        for column in range(N_COLS):
            to_req[slot, column] = req[slot, column]
    for i in range(head[N_RUNNING]):
        to_lists[RUNNING, i] = lists[RUNNING, i]
    for i in range(head[N_WAITING]):
        to_lists[WAITING, i] = lists[WAITING, i]
    to_head[N_BEFORE] = 0
    bank = head[BANK]
    for i in range(head[N_PLAN]):
        to_lists[PLAN_SLOT + bank, i] = lists[PLAN_SLOT + bank, i]
        to_lists[PLAN_TOKENS + bank, i] = lists[PLAN_TOKENS + bank, i]
        to_lists[PLAN_CACHED + bank, i] = lists[PLAN_CACHED + bank, i]
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
    # Those of the step in flight stand in the running list in the same order.
    bank = head[BANK]
    n_plan = slot = 0
    for i in range(head[N_PLAN]):
        if lists[PLAN_SLOT + bank, i] < 0:
            continue
        while source[slot] != lists[PLAN_SLOT + bank, i]:
            slot += 1
        to_lists[PLAN_SLOT + bank, n_plan] = slot
        to_lists[PLAN_TOKENS + bank, n_plan] = lists[PLAN_TOKENS + bank, i]
        to_lists[PLAN_CACHED + bank, n_plan] = lists[PLAN_CACHED + bank, i]
        n_plan += 1
    to_head[N_PLAN] = n_plan
    to_head[N_BEFORE] = 0
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
def admit_candidate(head: Ints, req: Ints, lists: Ints, slot: int, candidate: Ints, final: int) -> None:
    """A new request (`candidate`: C_PROMPT...) at its place in the waiting queue."""
    for column in range(N_COLS):
        req[slot, column] = 0
    req[slot, PROMPT] = candidate[C_PROMPT]
    req[slot, PRIORITY] = candidate[C_PRIORITY]
    req[slot, MAX_OUT] = max(final, candidate[C_MAX_OUT])
    req[slot, ASSUMED] = candidate[C_CACHED]
    req[slot, ASSUMED_HELD] = candidate[C_CACHED_HELD]
    req[slot, HASHES] = candidate[C_HASHES]
    req[slot, FINAL] = final
    req[slot, ORDER] = 1 << 62
    req[slot, SEGMENT] = -1
    enqueue(head, req, lists, slot, False)


@njit(nogil=True)
def may_empty_queue(head: Ints, req: Ints, lists: Ints) -> bool:
    """Whether the next step might admit everybody who waits and still have budget for one more.

    An engine that plans ahead makes two plans in its first step.
    """
    if head[OWNED] > 0:
        return True
    budget = 2 * head[BUDGET] if head[AHEAD] and head[FLYING] == 0 else head[BUDGET]
    tokens = 0
    for i in range(head[N_WAITING]):
        slot = lists[WAITING, i]
        tokens += req[slot, PROMPT] + req[slot, OUT] - req[slot, ASSUMED] * head[BLOCK]
        if tokens >= budget:
            return False
    return True


@njit(nogil=True)
def _keep(
    heads: Ints,
    reqs: Ints,
    lists: Ints,
    checkpoint: int,
    slots: int,
    progress: Floats,
    now_s: float,
    preemptions: float,
    headroom: float,
) -> None:
    copy_state(heads, reqs, lists, SCRATCH_STATE, checkpoint, slots)
    progress[checkpoint, NOW] = now_s
    progress[checkpoint, SO_FAR_PREEMPTIONS] = preemptions
    progress[checkpoint, SO_FAR_HEADROOM] = headroom
    for i in range(SO_FAR_PATH, N_PROGRESS):
        progress[checkpoint, i] = progress[SCRATCH_STATE, i]


@njit(nogil=True)
def run(
    heads: Ints,
    reqs: Ints,
    lists: Ints,
    shared: Shared,
    log: Ints,
    packed: Floats,
    progress: Floats,
    candidate: int,
    ends: Floats,
    checkpoint: int,
    jumping: bool,
    course: Floats,
    ended: Ints,
) -> tuple[float, int]:
    """Runs the scratch state until nothing is left; `ends[slot]` gets every slot's finish time.

    `progress[SCRATCH_STATE]` has the start time and what was counted before; afterwards the end, the preemptions and
    the fewest free blocks until the candidate ended (with candidate -1: in all). Returns the time of the candidate's
    first token and the rows of `course`, which is filled with candidate -1 only; -1 if the state cannot go on (a
    request that never fits), and then times are worth nothing. `ended` gets the order of all ends with candidate -1;
    with one it is what a run without it has left there.

    `checkpoint` > 0 is where to keep the state as it was before the first step in which a request behind all others
    could be admitted: until then such a candidate changes nothing (FCFS). If nobody waits nothing is kept, and the
    time there stays negative. Where blocks are told apart (`shared`) every step is run and nothing kept.
    """
    head, req, queues = heads[SCRATCH_STATE], reqs[SCRATCH_STATE], lists[SCRATCH_STATE]
    now_s = progress[SCRATCH_STATE, NOW]
    preemptions = progress[SCRATCH_STATE, SO_FAR_PREEMPTIONS]
    headroom = progress[SCRATCH_STATE, SO_FAR_HEADROOM]
    first_s = 0.0
    pending = True
    rows = 0
    going_on = False
    watching = checkpoint > 0 and head[N_WAITING] > 0
    if candidate < 0:
        ended[N_ENDED] = 0
    if checkpoint > 0:
        progress[checkpoint, NOW] = -1.0
    slots = heads[BASE, N_RUNNING] + heads[BASE, N_WAITING]
    while head[N_RUNNING] + head[N_WAITING] > 0:
        if shared is None:
            if jumping:
                if head[AHEAD]:
                    steps, now_s, lowest, gone, rows = decode_phase_ahead(
                        head, req, queues, packed, now_s, candidate, ends, progress[SCRATCH_STATE], course, rows, ended
                    )
                else:
                    steps, now_s, lowest, gone, rows = decode_phase(
                        head, req, queues, packed, now_s, candidate, ends, progress[SCRATCH_STATE], course, rows, ended
                    )
                if steps > 0:
                    going_on = False
                    if pending:
                        headroom = min(headroom, lowest)
                    pending = pending and not gone
                    continue
            if head[N_RUNNING] == 0 and head[FREE] < head[TOTAL_BLOCKS]:
                # With nobody running all blocks are free; a trace that says otherwise would stall for ever.
                head[FRONT] += head[TOTAL_BLOCKS] - head[FREE]
                head[FREE] = head[TOTAL_BLOCKS]
        kept = watching and may_empty_queue(head, req, queues)
        if kept:
            _keep(heads, reqs, lists, checkpoint, slots, progress, now_s, preemptions, headroom)
        n_log, prefill, work, prefill_seqs, decode, kv, lowest = step(head, req, queues, shared, log, False)
        if prefill_seqs + decode == 0 and n_log == 0:
            return -1.0, rows
        began_s = now_s
        now_s += step_seconds(packed, prefill + decode, work, kv, prefill_seqs + decode)
        note_free(progress[SCRATCH_STATE], began_s, now_s, lowest, lowest)
        if candidate < 0:
            seated = prefill_seqs + decode
            if head[AHEAD]:
                # Whoever comes meets the plan made in this step, and those who ended behind it.
                prefill, prefill_seqs = head[PLAN_PREFILL], head[PLAN_PREFILL_SEQS]
                seated = decode = head[N_RUNNING]
                for i in range(n_log):
                    if log[i, KIND] == FINISHED:
                        seated += 1
                        decode += 1
            newcomer = head[N_WAITING] == 0 and seated < head[MAX_SEQS] and prefill + decode < head[BUDGET]
            room = lowest if newcomer else -1
            # Stretches as `jump` makes them: steps that only decode are one until somebody ends.
            decodes = prefill_seqs == 0 and (n_log == 0 or log[0, KIND] != PREEMPTED)
            if going_on and decodes:
                course[rows - 1, ROOM] = min(course[rows - 1, ROOM], room)
            else:
                rows = note_stretch(course, rows, began_s, room)
            going_on = decodes and n_log == 0
        if pending:
            headroom = min(headroom, lowest)
        for i in range(n_log):
            kind = log[i, KIND]
            slot = log[i, SLOT]
            if kind == FINISHED:
                ends[slot] = now_s
                note_end(ended, candidate, slot)
                pending = pending and slot != candidate
            elif kind == PREEMPTED:
                if pending:
                    preemptions += 1
            elif kind == FIRST_TOKEN and slot == candidate:
                first_s = now_s
        if watching and head[N_WAITING] == 0:
            watching = False
            if not kept:
                _keep(heads, reqs, lists, checkpoint, slots, progress, now_s, preemptions, headroom)
    progress[SCRATCH_STATE, NOW] = now_s
    progress[SCRATCH_STATE, SO_FAR_PREEMPTIONS] = preemptions
    progress[SCRATCH_STATE, SO_FAR_HEADROOM] = headroom
    if candidate < 0:
        rows = complete(course, rows, now_s, head[TOTAL_BLOCKS])
    return first_s, rows


@njit(nogil=True)
def summarise(values: Floats, n: int, out: Floats, at: int) -> None:
    """Mean, median and 90th percentile (linear between order statistics) of the first `n` values; sorts them."""
    total = 0.0
    for i in range(n):
        x = values[i]
        total += x
        j = i
        while j > 0 and values[j - 1] > x:
            values[j] = values[j - 1]
            j -= 1
        values[j] = x
    out[at] = total / n
    for k, q in ((1, 0.5), (2, 0.9)):
        place = q * (n - 1)
        low = int(place)
        high = min(low + 1, n - 1)
        out[at + k] = values[low] + (place - low) * (values[high] - values[low])


@njit(nogil=True)
def draw_finals(req: Ints, slots: int, atoms: Ints, strata: Ints, rows: Ints, scenarios: int, finals: Ints) -> int:
    """Fills `finals[s, slot]`: total output tokens of each slot in each scenario, given what it has produced.

    `atoms[row]` is (number of atoms, longest output allowed, atoms ascending...), `strata[row]` the permutation,
    `rows[slot]` the row of a slot. Same rule as `simcore.scenarios.final_lengths`. Returns how many scenarios there
    are: 1 when every length is known.
    """
    known = True
    for slot in range(slots):
        row = rows[slot]
        known = known and atoms[row, 2] == atoms[row, 1 + atoms[row, 0]]
    if known:
        scenarios = 1
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
            elif known:
                final = atoms[row, 2 + gone]
            else:
                final = atoms[row, 2 + gone + (2 * strata[row, s] + 1) * left // (2 * scenarios)]
            finals[s, slot] = min(ceiling, final)
    return scenarios

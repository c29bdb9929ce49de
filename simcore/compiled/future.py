"""One what-if: a copy of the base state, perhaps with a candidate, run until everybody has finished.

base    the node compacted: slots 0..n-1 are its requests, in the order running, waiting from front to back
finals  int64 (scenarios, n)       total output tokens of each request in each scenario
ends    float64 (scenarios, n)     finish times without the candidate: the memoised baseline
"""

from __future__ import annotations

from numba import njit

from simcore.compiled import layout as at
from simcore.compiled.course import complete, note_free, note_stretch
from simcore.compiled.jump import decode_phase, note_end
from simcore.compiled.jump_ahead import decode_phase_ahead
from simcore.compiled.layout import Floats, Ints, Shared
from simcore.compiled.plan import enqueue
from simcore.compiled.step import step
from simcore.cost.step_time import step_seconds
from simcore.scenarios import OVERDUE_TOKENS


@njit(nogil=True)
def copy_state(heads: Ints, reqs: Ints, lists3: Ints, source: int, target: int, slots: int) -> None:
    """Copies a state of which only the slots 0..slots-1 are in use."""
    head, req, lists = heads[source], reqs[source], lists3[source]
    to_head, to_req, to_lists = heads[target], reqs[target], lists3[target]
    for i in range(at.N_HEAD):
        to_head[i] = head[i]
    for slot in range(slots):
        for column in range(at.N_COLS):
            to_req[slot, column] = req[slot, column]
    for i in range(head[at.N_RUNNING]):
        to_lists[at.RUNNING, i] = lists[at.RUNNING, i]
    for i in range(head[at.N_WAITING]):
        to_lists[at.WAITING, i] = lists[at.WAITING, i]
    to_head[at.N_BEFORE] = 0
    bank = head[at.BANK]
    for i in range(head[at.N_PLAN]):
        to_lists[at.PLAN_SLOT + bank, i] = lists[at.PLAN_SLOT + bank, i]
        to_lists[at.PLAN_TOKENS + bank, i] = lists[at.PLAN_TOKENS + bank, i]
        to_lists[at.PLAN_CACHED + bank, i] = lists[at.PLAN_CACHED + bank, i]
    if head[at.OWNED] > 0:
        for i in range(head[at.SEG_HEAD], head[at.SEG_TAIL]):
            to_lists[at.SEG_OWNER, i] = lists[at.SEG_OWNER, i]
            to_lists[at.SEG_COUNT, i] = lists[at.SEG_COUNT, i]


@njit(nogil=True)
def compact_state(
    head: Ints, req: Ints, lists: Ints, to_head: Ints, to_req: Ints, to_lists: Ints, source: Ints
) -> None:
    """Copies any state into a compacted one. `source[i]` becomes the old slot of new slot i."""
    for i in range(at.N_HEAD):
        to_head[i] = head[i]
    running, waiting = head[at.N_RUNNING], head[at.N_WAITING]
    for i in range(running):
        source[i] = lists[at.RUNNING, i]
        to_lists[at.RUNNING, i] = i
    for i in range(waiting):
        source[running + i] = lists[at.WAITING, waiting - 1 - i]
        to_lists[at.WAITING, waiting - 1 - i] = running + i
    for slot in range(running + waiting):
        for column in range(at.N_COLS):
            to_req[slot, column] = req[source[slot], column]
    # Those of the step in flight stand in the running list in the same order.
    bank = head[at.BANK]
    n_plan = slot = 0
    for i in range(head[at.N_PLAN]):
        if lists[at.PLAN_SLOT + bank, i] < 0:
            continue
        while source[slot] != lists[at.PLAN_SLOT + bank, i]:
            slot += 1
        to_lists[at.PLAN_SLOT + bank, n_plan] = slot
        to_lists[at.PLAN_TOKENS + bank, n_plan] = lists[at.PLAN_TOKENS + bank, i]
        to_lists[at.PLAN_CACHED + bank, n_plan] = lists[at.PLAN_CACHED + bank, i]
        n_plan += 1
    to_head[at.N_PLAN] = n_plan
    to_head[at.N_BEFORE] = 0
    if head[at.OWNED] == 0:
        return
    to = 0
    for i in range(head[at.SEG_HEAD], head[at.SEG_TAIL]):
        if lists[at.SEG_COUNT, i] == 0:
            continue
        to_lists[at.SEG_COUNT, to] = lists[at.SEG_COUNT, i]
        to_lists[at.SEG_OWNER, to] = -1
        if lists[at.SEG_OWNER, i] >= 0:
            slot = running
            while source[slot] != lists[at.SEG_OWNER, i]:
                slot += 1
            to_lists[at.SEG_OWNER, to] = slot
            to_req[slot, at.SEGMENT] = to
        to += 1
    to_head[at.SEG_HEAD] = 0
    to_head[at.SEG_TAIL] = to


@njit(nogil=True)
def admit_candidate(head: Ints, req: Ints, lists: Ints, slot: int, candidate: Ints, final: int) -> None:
    """A new request (`candidate`: C_PROMPT...) at its place in the waiting queue."""
    for column in range(at.N_COLS):
        req[slot, column] = 0
    req[slot, at.PROMPT] = candidate[at.C_PROMPT]
    req[slot, at.PRIORITY] = candidate[at.C_PRIORITY]
    req[slot, at.MAX_OUT] = max(final, candidate[at.C_MAX_OUT])
    req[slot, at.ASSUMED] = candidate[at.C_CACHED]
    req[slot, at.ASSUMED_HELD] = candidate[at.C_CACHED_HELD]
    req[slot, at.HASHES] = candidate[at.C_HASHES]
    req[slot, at.FINAL] = final
    req[slot, at.ORDER] = 1 << 62
    req[slot, at.SEGMENT] = -1
    enqueue(head, req, lists, slot, False)


@njit(nogil=True)
def may_empty_queue(head: Ints, req: Ints, lists: Ints) -> bool:
    """Whether the next step might admit everybody who waits and still have budget for one more.

    An engine that plans ahead makes two plans in its first step.
    """
    if head[at.OWNED] > 0:
        return True
    budget = 2 * head[at.BUDGET] if head[at.AHEAD] and head[at.FLYING] == 0 else head[at.BUDGET]
    tokens = 0
    for i in range(head[at.N_WAITING]):
        slot = lists[at.WAITING, i]
        tokens += req[slot, at.PROMPT] + req[slot, at.OUT] - req[slot, at.ASSUMED] * head[at.BLOCK]
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
    copy_state(heads, reqs, lists, at.SCRATCH_STATE, checkpoint, slots)
    progress[checkpoint, at.NOW] = now_s
    progress[checkpoint, at.SO_FAR_PREEMPTIONS] = preemptions
    progress[checkpoint, at.SO_FAR_HEADROOM] = headroom
    for i in range(at.SO_FAR_PATH, at.N_PROGRESS):
        progress[checkpoint, i] = progress[at.SCRATCH_STATE, i]


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
    head, req, queues = heads[at.SCRATCH_STATE], reqs[at.SCRATCH_STATE], lists[at.SCRATCH_STATE]
    so_far = progress[at.SCRATCH_STATE]
    now_s = so_far[at.NOW]
    preemptions = so_far[at.SO_FAR_PREEMPTIONS]
    headroom = so_far[at.SO_FAR_HEADROOM]
    first_s = 0.0
    pending = True
    rows = 0
    going_on = False
    watching = checkpoint > 0 and head[at.N_WAITING] > 0
    if candidate < 0:
        ended[at.N_ENDED] = 0
    if checkpoint > 0:
        progress[checkpoint, at.NOW] = -1.0
    slots = heads[at.BASE, at.N_RUNNING] + heads[at.BASE, at.N_WAITING]
    while head[at.N_RUNNING] + head[at.N_WAITING] > 0:
        if shared is None:
            if jumping:
                if head[at.AHEAD]:
                    steps, now_s, lowest, gone, rows = decode_phase_ahead(
                        head,
                        req,
                        queues,
                        packed,
                        now_s,
                        candidate,
                        ends,
                        so_far,
                        course,
                        rows,
                        ended,
                    )
                else:
                    steps, now_s, lowest, gone, rows = decode_phase(
                        head,
                        req,
                        queues,
                        packed,
                        now_s,
                        candidate,
                        ends,
                        so_far,
                        course,
                        rows,
                        ended,
                    )
                if steps > 0:
                    going_on = False
                    if pending:
                        headroom = min(headroom, lowest)
                    pending = pending and not gone
                    continue
            if head[at.N_RUNNING] == 0 and head[at.FREE] < head[at.TOTAL_BLOCKS]:
                # With nobody running all blocks are free; a trace that says otherwise would stall for ever.
                head[at.FRONT] += head[at.TOTAL_BLOCKS] - head[at.FREE]
                head[at.FREE] = head[at.TOTAL_BLOCKS]
        kept = watching and may_empty_queue(head, req, queues)
        if kept:
            _keep(heads, reqs, lists, checkpoint, slots, progress, now_s, preemptions, headroom)
        n_log, prefill, work, prefill_seqs, decode, kv, lowest = step(head, req, queues, shared, log, False)
        if prefill_seqs + decode == 0 and n_log == 0:
            return -1.0, rows
        began_s = now_s
        now_s += step_seconds(packed, prefill + decode, work, kv, prefill_seqs + decode)
        note_free(so_far, began_s, now_s, lowest, lowest)
        if candidate < 0:
            seated = prefill_seqs + decode
            if head[at.AHEAD]:
                # Whoever comes meets the plan made in this step, and those who ended behind it.
                prefill, prefill_seqs = head[at.PLAN_PREFILL], head[at.PLAN_PREFILL_SEQS]
                seated = decode = head[at.N_RUNNING]
                for i in range(n_log):
                    if log[i, at.KIND] == at.FINISHED:
                        seated += 1
                        decode += 1
            newcomer = head[at.N_WAITING] == 0 and seated < head[at.MAX_SEQS] and prefill + decode < head[at.BUDGET]
            room = lowest if newcomer else -1
            # Stretches as `jump` makes them: steps that only decode are one until somebody ends.
            decodes = prefill_seqs == 0 and (n_log == 0 or log[0, at.KIND] != at.PREEMPTED)
            if going_on and decodes:
                course[rows - 1, at.ROOM] = min(course[rows - 1, at.ROOM], room)
            else:
                rows = note_stretch(course, rows, began_s, room)
            going_on = decodes and n_log == 0
        if pending:
            headroom = min(headroom, lowest)
        for i in range(n_log):
            kind = log[i, at.KIND]
            slot = log[i, at.SLOT]
            if kind == at.FINISHED:
                ends[slot] = now_s
                note_end(ended, candidate, slot)
                pending = pending and slot != candidate
            elif kind == at.PREEMPTED:
                if pending:
                    preemptions += 1
            elif kind == at.FIRST_TOKEN and slot == candidate:
                first_s = now_s
        if watching and head[at.N_WAITING] == 0:
            watching = False
            if not kept:
                _keep(heads, reqs, lists, checkpoint, slots, progress, now_s, preemptions, headroom)
    so_far[at.NOW] = now_s
    so_far[at.SO_FAR_PREEMPTIONS] = preemptions
    so_far[at.SO_FAR_HEADROOM] = headroom
    if candidate < 0:
        rows = complete(course, rows, now_s, head[at.TOTAL_BLOCKS])
    return first_s, rows


@njit(nogil=True)
def summarise(values: Floats, n: int, out: Floats, column: int) -> None:
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
    out[column] = total / n
    for k, q in ((1, 0.5), (2, 0.9)):
        place = q * (n - 1)
        low = int(place)
        high = min(low + 1, n - 1)
        out[column + k] = values[low] + (place - low) * (values[high] - values[low])


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
        out = req[slot, at.OUT]
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

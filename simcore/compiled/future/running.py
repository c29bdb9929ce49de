"""One future: the base state, perhaps with a candidate, run until everybody has finished."""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.compiled.adapter_slots import may_let_in
from simcore.compiled.block_pool import tells_apart
from simcore.compiled.decode_async import decode_async
from simcore.compiled.decode_sync import decode_sync, note_end
from simcore.compiled.draft_tokens import lose_drafts
from simcore.compiled.future.copying import copy_state
from simcore.compiled.headroom import complete, note_free, note_room
from simcore.compiled.layout import Floats, Ints, Shared
from simcore.compiled.plan import enqueue
from simcore.compiled.step import remove, step
from simcore.cost.step_time import step_seconds
from simcore.kernel_cache import kernel


@kernel
def start(
    heads: Ints,
    reqs: Ints,
    lists: Ints,
    shared: Shared,
    base_shared: Shared,
    progress: Floats,
    start_s: float,
    finals: Ints,
    scenario: int,
    checkpoint: int,
) -> None:
    """Sets up the scratch state from the checkpoint of that scenario, if there is one, else from the base."""
    slots = heads[at.BASE, at.N_RUNNING] + heads[at.BASE, at.N_WAITING]
    if checkpoint > 0 and progress[checkpoint, at.NOW] >= 0.0:
        copy_state(heads, reqs, lists, shared, checkpoint, at.SCRATCH_STATE, slots)
        for i in range(at.N_PROGRESS):
            progress[at.SCRATCH_STATE, i] = progress[checkpoint, i]
        return
    copy_state(heads, reqs, lists, shared, at.BASE, at.SCRATCH_STATE, slots)
    if shared is not None and base_shared is not None:
        shared[0][:, :] = base_shared[0]
        shared[1][:slots] = base_shared[1][:slots]
    for slot in range(slots):
        reqs[at.SCRATCH_STATE, slot, at.FINAL] = finals[scenario, slot]
    progress[at.SCRATCH_STATE, at.NOW] = start_s
    progress[at.SCRATCH_STATE, at.SO_FAR_PREEMPTIONS] = 0
    for i in range(at.SO_FAR_HEADROOM, at.N_PROGRESS):
        progress[at.SCRATCH_STATE, i] = heads[at.BASE, at.FREE]


@kernel
def admit_candidate(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int, candidate: Ints, final: int) -> None:
    """A new request (`candidate`: C_PROMPT...) at its place in the waiting queue."""
    for column in range(at.N_COLS):
        req[slot, column] = 0
    req[slot, at.PROMPT] = candidate[at.C_PROMPT]
    req[slot, at.PRIORITY] = candidate[at.C_PRIORITY]
    req[slot, at.MAX_OUT] = max(final, candidate[at.C_MAX_OUT])
    req[slot, at.ASSUMED] = candidate[at.C_CACHED]
    req[slot, at.ASSUMED_HELD] = candidate[at.C_CACHED_HELD]
    req[slot, at.HASHES] = candidate[at.C_HASHES]
    lists[at.ADAPTER_OF, slot] = candidate[at.C_ADAPTER]
    if shared is not None and head[at.SPECULATIVE] > 0:
        lists[at.DRAWN, slot] = 0
        lose_drafts(lists, slot)
    req[slot, at.FINAL] = final
    req[slot, at.ORDER] = candidate[at.C_ORDER]
    req[slot, at.SEGMENT] = -1
    enqueue(head, req, lists, slot, False)


@kernel
def leave(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int, held_by_others: int, unused: int) -> None:
    """Takes a request out as an abort does. `held_by_others`: how many of its blocks stay held, where they are only
    counted; `unused` is a slot that nobody has, to be run with as the candidate."""
    left = max(0, held_by_others - req[slot, at.BORROWED])
    req[slot, at.BORROWED] += left
    for i in range(head[at.N_RUNNING]):
        heir = lists[at.RUNNING, i]
        if heir != slot and left > 0:
            given = min(left, req[heir, at.BORROWED])
            req[heir, at.BORROWED] -= given
            left -= given
    remove(head, req, lists, shared, slot)
    req[unused, at.COMPUTED] = 0


@kernel
def may_empty_queue(head: Ints, req: Ints, lists: Ints) -> bool:
    """Whether the next step might admit everybody who waits and still have budget for one more.

    An engine that plans ahead makes two plans in its first step.
    """
    if head[at.OWNED] > 0:
        return True
    budget = 2 * head[at.BUDGET] if head[at.ASYNC] and head[at.IN_FLIGHT] == 0 else head[at.BUDGET]
    tokens = 0
    for i in range(head[at.N_WAITING]):
        slot = lists[at.WAITING, i]
        tokens += req[slot, at.PROMPT] + req[slot, at.OUT] - req[slot, at.ASSUMED] * head[at.BLOCK]
        if tokens >= budget:
            return False
    return True


@kernel
def _keep(
    heads: Ints,
    reqs: Ints,
    lists: Ints,
    shared: Shared,
    checkpoint: int,
    slots: int,
    progress: Floats,
    now_s: float,
    preemptions: float,
    lowest_so_far: float,
) -> None:
    copy_state(heads, reqs, lists, shared, at.SCRATCH_STATE, checkpoint, slots)
    progress[checkpoint, at.NOW] = now_s
    progress[checkpoint, at.SO_FAR_PREEMPTIONS] = preemptions
    progress[checkpoint, at.SO_FAR_HEADROOM] = lowest_so_far
    for i in range(at.SO_FAR_PATH, at.N_PROGRESS):
        progress[checkpoint, i] = progress[at.SCRATCH_STATE, i]


@kernel
def _note_preemptions(ended: Ints, told: int, preemptions: float, capacity: int) -> int:
    """Of those that have ended since `told` had: how many preemptions there have been. Returns how many have ended."""
    for k in range(told, ended[at.N_ENDED]):
        ended[at.FIRST_ENDED + capacity + k] = int(preemptions)
    return ended[at.N_ENDED]


@kernel
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
    headroom: Floats,
    ended: Ints,
) -> tuple[float, int]:
    """Runs the scratch state until nothing is left; `ends[slot]` gets every slot's finish time.

    `progress[SCRATCH_STATE]` has the start time and what was counted before; afterwards the end, the preemptions and
    the fewest free blocks until the candidate ended (with candidate -1: in all). Returns the time of the candidate's
    next token and the rows of `headroom`, which is filled with candidate -1 only; -1 if the state cannot go on (a
    request that never fits), and then times are worth nothing. `ended` gets the order of all ends with candidate -1;
    with one it is what a run without it has left there. With candidate -1 the progress tells of the first preemption
    and of the first that waited, too. With a candidate that is one of the base's own the run is over
    when its next token has come.

    `checkpoint` > 0 is where to keep the state as it was before the first step in which a request behind all others
    could be admitted: until then such a candidate changes nothing (FCFS). If nobody waits nothing is kept, and the
    time there stays negative. Where blocks are told apart (`shared`) every step is run and nothing kept.
    """
    head, req, queues = heads[at.SCRATCH_STATE], reqs[at.SCRATCH_STATE], lists[at.SCRATCH_STATE]
    so_far = progress[at.SCRATCH_STATE]
    now_s = so_far[at.NOW]
    preemptions = so_far[at.SO_FAR_PREEMPTIONS]
    lowest_so_far = so_far[at.SO_FAR_HEADROOM]
    first_s = 0.0
    pending = True
    told = 0
    awaited = candidate >= 0
    produced = req[candidate, at.OUT] if awaited else 0
    rows = 0
    going_on = False
    watching = checkpoint > 0 and head[at.N_WAITING] > 0
    first = -1
    if candidate < 0:
        ended[at.N_ENDED] = 0
        so_far[at.FIRST_PREEMPTED] = so_far[at.HEAD_STARTS] = -1.0
        if head[at.N_WAITING] > 0:
            first = queues[at.WAITING, head[at.N_WAITING] - 1]
    if checkpoint > 0:
        progress[checkpoint, at.NOW] = -1.0
    counted = shared is None or not tells_apart(shared)
    if shared is not None and head[at.SPECULATIVE] > 0:
        # How far drafts bring each request changes from step to step.
        jumping = False
    slots = heads[at.BASE, at.N_RUNNING] + heads[at.BASE, at.N_WAITING]
    alone = awaited and candidate < slots
    while head[at.N_RUNNING] + head[at.N_WAITING] > 0 and (awaited or not alone):
        if counted:
            # A phase of many steps would not tell when its next token came.
            limited = head[at.MAX_LORAS] > 0 and head[at.N_WAITING] > 0
            let_in = limited and may_let_in(head, req, queues, shared)
            if shared is not None and head[at.WINDOW_GROUPS] > 0 and limited:
                # Blocks that windows give back within a phase may let in one who is not the first.
                let_in = True
            if jumping and not let_in and not (awaited and req[candidate, at.COMPUTED] > 0):
                if head[at.ASYNC]:
                    steps, now_s, lowest, gone, rows = decode_async(
                        head,
                        req,
                        queues,
                        shared,
                        packed,
                        now_s,
                        candidate,
                        ends,
                        so_far,
                        headroom,
                        rows,
                        ended,
                        limited,
                    )
                else:
                    steps, now_s, lowest, gone, rows = decode_sync(
                        head,
                        req,
                        queues,
                        shared,
                        packed,
                        now_s,
                        candidate,
                        ends,
                        so_far,
                        headroom,
                        rows,
                        ended,
                        limited,
                    )
                if steps > 0:
                    if candidate < 0:
                        told = _note_preemptions(ended, told, preemptions, len(req))
                    going_on = False
                    if pending:
                        lowest_so_far = min(lowest_so_far, lowest)
                    pending = pending and not gone
                    continue
            if head[at.N_RUNNING] == 0 and head[at.FREE] < head[at.TOTAL_BLOCKS]:
                # With nobody running all blocks are free; a trace that says otherwise would stall for ever.
                head[at.FRONT] += head[at.TOTAL_BLOCKS] - head[at.FREE]
                head[at.FREE] = head[at.TOTAL_BLOCKS]
        kept = watching and may_empty_queue(head, req, queues)
        if kept:
            _keep(heads, reqs, lists, shared, checkpoint, slots, progress, now_s, preemptions, lowest_so_far)
        n_log, prefill, work, prefill_seqs, decode, kv, lowest = step(head, req, queues, shared, log, False)
        if prefill_seqs + decode == 0 and n_log == 0:
            return -1.0, rows
        began_s = now_s
        now_s += step_seconds(packed, prefill + decode, work, kv, prefill_seqs + decode, prefill_seqs)
        note_free(so_far, began_s, now_s, lowest, lowest)
        if candidate < 0:
            seated = prefill_seqs + decode
            if head[at.ASYNC]:
                # Whoever comes meets the plan made in this step, and those who ended behind it.
                prefill, prefill_seqs = head[at.PLAN_PREFILL], head[at.PLAN_PREFILL_SEQS]
                seated = decode = head[at.N_RUNNING]
                for i in range(n_log):
                    if log[i, at.KIND] == at.FINISHED:
                        seated += 1
                        decode += 1
            newcomer = head[at.N_WAITING] == 0 and seated < head[at.MAX_SEQS] and prefill + decode < head[at.BUDGET]
            room = lowest if newcomer else -1
            # Stretches as `decode_sync` makes them: steps that only decode are one until somebody ends.
            decodes = prefill_seqs == 0 and (n_log == 0 or log[0, at.KIND] != at.PREEMPTED)
            if going_on and decodes:
                headroom[rows - 1, at.ROOM] = min(headroom[rows - 1, at.ROOM], room)
            else:
                rows = note_room(headroom, rows, began_s, room)
            going_on = decodes and n_log == 0
        if pending:
            lowest_so_far = min(lowest_so_far, lowest)
        for i in range(n_log):
            kind = log[i, at.KIND]
            slot = log[i, at.SLOT]
            if kind == at.FINISHED:
                ends[slot] = now_s
                note_end(ended, candidate, slot)
                pending = pending and slot != candidate
            elif kind == at.PREEMPTED and pending:
                preemptions += 1
        if candidate < 0:
            told = _note_preemptions(ended, told, preemptions, len(req))
            if so_far[at.FIRST_PREEMPTED] < 0.0 and preemptions > 0:
                so_far[at.FIRST_PREEMPTED] = began_s
            if first >= 0 and req[first, at.COMPUTED] > 0:
                so_far[at.HEAD_STARTS] = began_s
                first = -1
        if awaited and req[candidate, at.OUT] > produced:
            first_s, awaited = now_s, False
        if watching and head[at.N_WAITING] == 0:
            watching = False
            if not kept:
                _keep(heads, reqs, lists, shared, checkpoint, slots, progress, now_s, preemptions, lowest_so_far)
    so_far[at.NOW] = now_s
    so_far[at.SO_FAR_PREEMPTIONS] = preemptions
    so_far[at.SO_FAR_HEADROOM] = lowest_so_far
    if candidate < 0:
        rows = complete(headroom, rows, now_s, head[at.TOTAL_BLOCKS])
    return first_s, rows

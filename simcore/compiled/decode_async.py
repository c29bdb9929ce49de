"""Many steps of an asynchronous engine at once: `decode_sync` where a step is planned before the last has come back
(`step.step_async`).

At the start of the phase a token of every running request is in flight. Step s plans batch s, then ends batch s - 1, so
times lag by one batch: `in_flight` below is the batch that the next step will end. With `left` tokens to come from the
start on, a request ends in step `left` and frees seat and blocks behind that step's plan. If its limit ends it, that
plan leaves it out already; if it ends of itself, the plan has it once more, for nothing.
"""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.compiled.block_counts import take
from simcore.compiled.decode_sync import (
    admissible,
    awaited_blocks,
    ending_next,
    free_all,
    note_end,
    sort_by_end,
    steps_ahead,
    still_running,
)
from simcore.compiled.headroom import note_free, note_room
from simcore.compiled.layout import Floats, Ints, Shared
from simcore.compiled.windows import gives_back, passed_decoding, steps_in_room
from simcore.cost.step_time import dense_seconds, step_seconds, waited_s
from simcore.kernel_cache import kernel


@kernel
def _ends_of_itself(head: Ints, req: Ints, slot: int) -> bool:
    return req[slot, at.FINAL] < min(req[slot, at.MAX_OUT], head[at.MAX_LEN] - req[slot, at.PROMPT])


@kernel
def _giving_back(head: Ints, req: Ints, lists: Ints, running: int, step: int) -> int:
    """How many give back a block of each window group in the phase's step number `step`, in which somebody ends: its
    plan leaves out those whose limit ends them."""
    n = 0
    for i in range(running):
        slot = lists[at.RUNNING, i]
        planned = lists[at.LEFT, i] > step or (lists[at.LEFT, i] == step and _ends_of_itself(head, req, slot))
        n += planned and gives_back(head, req, slot, step)
    return n


@kernel
def decode_async(
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
    """As `decode_sync`."""
    running = sequences = head[at.N_RUNNING]
    lowest = head[at.FREE]
    block = head[at.BLOCK]
    passing = shared is not None and head[at.WINDOW_GROUPS] > 0
    if (
        sequences == 0
        or head[at.IN_FLIGHT] == 0
        or sequences > head[at.BUDGET]
        or (not limited and not passing and admissible(head, req, lists, sequences))
    ):
        return 0, now_s, lowest, False, rows
    left = lists[at.LEFT]
    per_slack = lists[at.PER_SLACK]
    for k in range(block):
        per_slack[k] = 0
    kv = 0
    next_end = 1 << 62
    for i in range(sequences):
        slot = lists[at.RUNNING, i]
        if req[slot, at.OUT] == 0 or req[slot, at.PENDING] == 0:
            return 0, now_s, lowest, False, rows
        computed = req[slot, at.COMPUTED]
        if shared is not None and passing and lists[at.LEFT_BEHIND, slot] != passed_decoding(head, computed):
            return 0, now_s, lowest, False, rows
        kv += computed + 1
        left[i] = req[slot, at.FINAL] - req[slot, at.OUT]
        lists[at.POSITION, slot] = i
        next_end = min(next_end, left[i])
        per_slack[req[slot, at.CAPACITY] - computed] += 1
    in_flight_s = step_seconds(
        packed,
        head[at.PLAN_PREFILL] + head[at.PLAN_DECODE],
        0.5 * head[at.PLAN_WORK2],
        head[at.PLAN_KV],
        head[at.PLAN_PREFILL_SEQS] + head[at.PLAN_DECODE],
        head[at.PLAN_PREFILL_SEQS],
    )
    in_flight, in_flight_kv = head[at.PLAN_DECODE], head[at.PLAN_KV]
    done = nth = awaited = 0
    in_order = 0
    gone = False
    while sequences > 0:
        began_s = now_s
        free = head[at.FREE]
        # Steps whose plans have everybody: up to the one before somebody ends.
        if shared is not None and passing:
            awaited = awaited_blocks(head, req, lists, sequences)
            if awaited <= free:
                break
            steps, blocks, fewest = steps_in_room(head, req, lists, running, done, next_end - 1 - done, awaited)
        else:
            steps, blocks = steps_ahead(per_slack, block, sequences, done, next_end - 1 - done, free)
            fewest = free - blocks
        enough = steps == next_end - 1 - done
        if steps > 0:
            per_step = packed[0] + dense_seconds(packed, sequences) + packed[3] * sequences
            more = steps - 1
            now_s += in_flight_s + more * per_step + packed[2] * (more * kv + 0.5 * sequences * more * (more - 1.0))
            in_flight, in_flight_kv = sequences, kv + more * sequences
            in_flight_s = per_step + packed[2] * in_flight_kv
            host_s = packed[9] + packed[10] * sequences
            short_s = host_s - (per_step + packed[2] * kv)
            if short_s > 0.0:
                now_s += waited_s(short_s, packed[2] * sequences, more)
                in_flight_s = max(in_flight_s, host_s)
            kv += steps * sequences
            done += steps
            take(head, req, lists, blocks)
        # The step in which somebody ends, if its plan finds the blocks. It leaves some out already, and their LoRA
        # adapters with them: whom that lets in is for a single step to say.
        ending = enough and not limited
        if ending:
            planned = sequences
            planned_kv = kv
            at_once = in_order if in_order > 0 else ending_next(lists, running, next_end)
            for k in range(nth, at_once):
                if left[lists[at.BY_END, k]] != next_end:
                    break
                slot = lists[at.RUNNING, lists[at.BY_END, k]]
                if not _ends_of_itself(head, req, slot):
                    per_slack[req[slot, at.CAPACITY] - req[slot, at.COMPUTED]] -= 1
                    planned -= 1
                    planned_kv -= req[slot, at.COMPUTED] + next_end
            blocks = head[at.GROUPS] * per_slack[done % block]
            given_back = 0
            if shared is not None and passing:
                given_back = head[at.WINDOW_GROUPS] * _giving_back(head, req, lists, running, next_end)
            if blocks > head[at.FREE] or (passing and head[at.FREE] + given_back - blocks >= awaited):
                ending = False
            else:
                now_s += in_flight_s
                in_flight, in_flight_kv = planned, planned_kv
                in_flight_s = packed[0] + dense_seconds(packed, planned) + packed[3] * planned + packed[2] * planned_kv
                in_flight_s = max(in_flight_s, packed[9] + packed[10] * planned)
                kv += sequences
                done += 1
                take(head, req, lists, blocks - given_back)
                fewest = min(fewest, head[at.FREE])
        if steps > 0 or ending:
            note_free(progress, began_s, now_s, free, fewest)
            if candidate < 0:
                newcomer = head[at.N_WAITING] == 0 and sequences < head[at.MAX_SEQS] and sequences < head[at.BUDGET]
                rows = note_room(headroom, rows, began_s, fewest if newcomer else -1)
            if not gone:
                lowest = min(lowest, fewest)
        if not ending:
            break
        while nth < at_once and left[lists[at.BY_END, nth]] == next_end:
            slot = lists[at.RUNNING, lists[at.BY_END, nth]]
            ends[slot] = now_s
            note_end(ended, candidate, slot)
            gone = gone or slot == candidate
            # All but its last token is known and named; for a step for nothing it holds one token more.
            known = req[slot, at.COMPUTED] + done - 1
            held = known
            if _ends_of_itself(head, req, slot):
                per_slack[req[slot, at.CAPACITY] - req[slot, at.COMPUTED]] -= 1
                held += 1
            kv -= known + 2
            free_all(head, req, lists, shared, slot, held, max(known, req[slot, at.KEYED]))
            sequences -= 1
            nth += 1
        if sequences == 0 or (not passing and admissible(head, req, lists, sequences)):
            break
        if in_order == 0:
            in_order = sort_by_end(lists, running, done, candidate, ended)
            nth = 0
        next_end = left[lists[at.BY_END, nth]]
    if done > 0:
        still_running(lists, running, done)
        _leave(head, req, lists, shared, sequences, done, in_flight, in_flight_kv)
    return done, now_s, lowest, gone, rows


@kernel
def _leave(
    head: Ints, req: Ints, lists: Ints, shared: Shared, sequences: int, done: int, in_flight: int, in_flight_kv: int
) -> None:
    """Writes the state after `done` steps: everybody that is left is in the batch in flight."""
    block, bank = head[at.BLOCK], head[at.BANK]
    head[at.N_RUNNING] = sequences
    for i in range(sequences):
        slot = lists[at.RUNNING, i]
        computed = req[slot, at.COMPUTED] + done
        req[slot, at.OUT] += done
        req[slot, at.COMPUTED] = computed
        req[slot, at.KEYED] = max(req[slot, at.KEYED], computed - 1)
        req[slot, at.CAPACITY] = (computed + block - 1) // block * block
        if shared is not None and head[at.WINDOW_GROUPS] > 0:
            lists[at.LEFT_BEHIND, slot] = passed_decoding(head, computed)
            lists[at.UNDER_WAY, slot] = 1
        lists[at.PLAN_SLOT + bank, i] = slot
        lists[at.PLAN_TOKENS + bank, i] = 2 * 1 + 1
        lists[at.PLAN_CACHED + bank, i] = 0
    head[at.N_PLAN] = sequences
    head[at.N_BEFORE] = 0
    head[at.IN_FLIGHT] = in_flight > 0
    head[at.PLAN_PREFILL] = head[at.PLAN_WORK2] = head[at.PLAN_PREFILL_SEQS] = head[at.PLAN_GREW] = 0
    head[at.PLAN_DECODE] = in_flight
    head[at.PLAN_KV] = in_flight_kv
    head[at.PLAN_LOWEST] = head[at.FREE]

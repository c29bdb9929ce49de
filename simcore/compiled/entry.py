"""What Python calls. These are the only kernels with a cache on disk.

numba decides from the file of a cached function alone whether its cache is stale; it does not see a change in a
function it calls or in a constant of another module. Each entry point therefore closes over a fingerprint of all code
and constants under it, which is part of numba's cache key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numba import njit

from simcore.compiled import blocks, course, future, jump, jump_ahead, kv, load, memory, plan, run_to_event, step
from simcore.compiled.layout import (
    AHEAD,
    BASE,
    BLOCK,
    BY_PRIORITY,
    C_FINALS,
    C_HASHES,
    C_PROMPT,
    C_SCENARIOS,
    CLEAR,
    E2E,
    FINAL,
    FIRST_CHECKPOINT,
    FLYING,
    FREE,
    HARM,
    HEADROOM,
    HEADROOM_PATH,
    LOG_ROWS_EACH,
    LONG_PREFILL,
    N_FORECAST,
    N_PROGRESS,
    N_RUNNING,
    N_WAITING,
    NOW,
    PREEMPTION_COUNT,
    PREEMPTION_SHARE,
    SCRATCH_STATE,
    SO_FAR_HEADROOM,
    SO_FAR_PREEMPTIONS,
    TOTAL_BLOCKS,
    TPOT,
    TTFT,
    Arrays,
    Floats,
    Ints,
    Shared,
)
from simcore.cost import step_time
from simcore.kernel_cache import cached

_MODULES = (blocks, course, kv, memory, plan, step, load, run_to_event, jump, jump_ahead, future, step_time)


def _fingerprint() -> int:
    """Changes when any kernel, or any number a kernel takes from its module, changes."""
    value = 0
    for module in _MODULES:
        for name, function in sorted(vars(module).items()):
            source = getattr(function, "py_func", None)
            if source is None:
                continue
            code = source.__code__
            numbers = [(n, v) for n in code.co_names if isinstance(v := source.__globals__.get(n), int | float | tuple)]
            value = crc32(repr((name, code.co_code, code.co_consts, code.co_names, numbers)).encode(), value)
    return value


class Entries(NamedTuple):
    """The compiled entry points; see the functions in `_compile`."""

    step: Callable[..., Any]
    plan_ahead: Callable[..., Any]
    advance: Callable[..., Any]
    measure: Callable[..., Any]
    keep: Callable[..., Any]
    run: Callable[..., Any]
    enqueue: Callable[..., Any]
    remove: Callable[..., Any]
    tell_apart: Callable[..., Any]
    known_prefix: Callable[..., Any]
    count_shares: Callable[..., Any]
    take_node: Callable[..., Any]
    forecast: Callable[..., Any]


@njit(nogil=True)
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
    slots = heads[BASE, N_RUNNING] + heads[BASE, N_WAITING]
    if checkpoint > 0 and progress[checkpoint, NOW] >= 0.0:
        future.copy_state(heads, reqs, lists, checkpoint, SCRATCH_STATE, slots)
        for i in range(N_PROGRESS):
            progress[SCRATCH_STATE, i] = progress[checkpoint, i]
        return
    future.copy_state(heads, reqs, lists, BASE, SCRATCH_STATE, slots)
    if shared is not None and base_shared is not None:
        shared[0][:, :] = base_shared[0]
        shared[1][:slots] = base_shared[1][:slots]
    for slot in range(slots):
        reqs[SCRATCH_STATE, slot, FINAL] = finals[scenario, slot]
    progress[SCRATCH_STATE, NOW] = start_s
    progress[SCRATCH_STATE, SO_FAR_PREEMPTIONS] = 0
    for i in range(SO_FAR_HEADROOM, N_PROGRESS):
        progress[SCRATCH_STATE, i] = heads[BASE, FREE]


def _compile(fingerprint: int) -> Entries:
    @cached
    def one_step(
        head: Ints, req: Ints, lists: Ints, shared: Shared, log: Ints
    ) -> tuple[int, int, float, int, int, int, int]:
        """`step.step`, with everything scheduled in the log."""
        assert fingerprint >= 0
        return step.step(head, req, lists, shared, log, True)

    @cached
    def plan_ahead(head: Ints, req: Ints, lists: Ints, log: Ints) -> None:
        """`step.plan_ahead` for a state that was told without the step that its engine has in flight."""
        assert fingerprint >= 0
        if head[AHEAD] and head[FLYING] == 0 and head[N_RUNNING] > 0:
            step.plan_ahead(head, req, lists, None, log, int(np.int64(0)))

    @cached
    def advance(
        head: Ints,
        req: Ints,
        lists: Ints,
        shared: Shared,
        log: Ints,
        times_s: Floats,
        packed: Floats,
        next_s: float,
        until_s: float,
    ) -> tuple[int, int, float]:
        """Steps that begin before `until_s`, the first at `next_s`, until the log might overflow in one more.

        Returns (log rows, steps, end of the last step). `times_s` gets the time of each log row.
        """
        assert fingerprint >= 0
        n_log = steps = 0
        while next_s < until_s and (head[N_RUNNING] + head[N_WAITING] > 0 or head[FLYING]):
            if n_log + LOG_ROWS_EACH * (head[N_RUNNING] + head[N_WAITING]) > log.shape[0]:
                break
            n, prefill, work, prefill_seqs, decode, read, _ = step.step(head, req, lists, shared, log[n_log:], False)
            next_s += step_time.step_seconds(packed, prefill + decode, work, read, prefill_seqs + decode)
            for i in range(n_log, n_log + n):
                times_s[i] = next_s
            n_log += n
            steps += 1
        return n_log, steps, next_s

    @cached
    def measure(head: Ints, req: Ints, lists: Ints) -> tuple[int, int]:
        """`load.measure`."""
        assert fingerprint >= 0
        return load.measure(head, req, lists)

    @cached
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
        """`run_to_event.keep`."""
        assert fingerprint >= 0
        return run_to_event.keep(head, req, lists, totals, told_s, states, row, seq, mark, state_s, interval_s)

    @cached
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
        at: tuple[int, int, int, int],
        times_s: tuple[float, float, float, float],
    ) -> tuple[int, int, int, float, float]:
        """`run_to_event.run`; `at` is (row, seq, mark, watched), `times_s` its four times."""
        assert fingerprint >= 0
        return run_to_event.run(head, req, lists, shared, log, packed, totals, told_s, states, *at, *times_s)

    @cached
    def enqueue(head: Ints, req: Ints, lists: Ints, slot: int) -> None:
        """`plan.enqueue` at the back."""
        assert fingerprint >= 0
        plan.enqueue(head, req, lists, slot, False)

    @cached
    def remove(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int) -> None:
        """`step.remove`."""
        assert fingerprint >= 0
        step.remove(head, req, lists, shared, slot)

    @cached
    def tell_apart(head: Ints, req: Ints, lists: Ints, shared: Arrays) -> None:
        """`blocks.tell_apart`."""
        assert fingerprint >= 0
        blocks.tell_apart(head, req, lists, shared)

    @cached
    def known_prefix(pool: Ints, names: Ints) -> tuple[int, int]:
        """`blocks.known_prefix`."""
        assert fingerprint >= 0
        return blocks.known_prefix(pool, names)

    @cached
    def count_shares(head: Ints, req: Ints, to_req: Ints, source: Ints, shared: Arrays) -> None:
        """`blocks.count_shares`."""
        assert fingerprint >= 0
        blocks.count_shares(head, req, to_req, source, shared)

    @cached
    def take_node(
        head: Ints,
        req: Ints,
        lists: Ints,
        to_heads: Ints,
        to_reqs: Ints,
        to_lists: Ints,
        source: Ints,
        node_rows: Ints,
        atoms: Ints,
        strata: Ints,
        rows: Ints,
        scenarios: int,
        finals: Ints,
    ) -> int:
        """`future.compact_state` of a node into the base state, then `future.draw_finals` with `node_rows`
        by the node's slots."""
        assert fingerprint >= 0
        future.compact_state(head, req, lists, to_heads[BASE], to_reqs[BASE], to_lists[BASE], source)
        n = head[N_RUNNING] + head[N_WAITING]
        for slot in range(n):
            rows[slot] = node_rows[source[slot]]
        return future.draw_finals(to_reqs[BASE], n, atoms, strata, rows, scenarios, finals)

    @cached
    def forecast(
        heads: Ints,
        reqs: Ints,
        lists: Ints,
        shared: Shared,
        base_shared: Shared,
        hashes: Ints,
        log: Ints,
        packed: Floats,
        start_s: float,
        finals: Ints,
        base_scenarios: int,
        base_done: bool,
        candidates: Ints,
        n_candidates: int,
        progress: Floats,
        ends: Floats,
        courses: Floats,
        course_rows: Ints,
        ended: Ints,
        samples: Floats,
        out: Floats,
        jumping: bool,
    ) -> bool:
        """One row of `out` (layout TTFT...) per candidate. `base_done`: the baseline is in `ends`, the courses and
        the checkpoints.

        `samples` is scratch (5, scenarios), `ends` (scenarios + 1, slots), `progress` (states, N_PROGRESS), `courses`
        (scenarios, most rows, N_COURSE_COLS), `ended` (scenarios, 1 + slots). Where the node tells blocks apart,
        `shared` is scratch like `base_shared` with the names of both, in which the first unused row takes those of a
        candidate from `hashes` (candidates, most names). False if some future could not go on.
        """
        assert fingerprint >= 0
        base = heads[BASE]
        n = base[N_RUNNING] + base[N_WAITING]
        skipping = jumping and shared is None and base[BY_PRIORITY] == 0 and base[LONG_PREFILL] == 0
        # Not literals: a kernel would be compiled once more for each.
        none, nobody = int(np.int64(0)), int(np.int64(-1))
        fine = True
        if not base_done:
            for s in range(base_scenarios):
                start(heads, reqs, lists, shared, base_shared, progress, start_s, finals, s, none)
                checkpoint = FIRST_CHECKPOINT + s if skipping else 0
                first_s, course_rows[s] = future.run(
                    heads,
                    reqs,
                    lists,
                    shared,
                    log,
                    packed,
                    progress,
                    nobody,
                    ends[s],
                    checkpoint,
                    jumping,
                    courses[s],
                    ended[s],
                )
                fine = fine and first_s >= 0.0
        mine = ends[ends.shape[0] - 1]
        for c in range(n_candidates):
            candidate = candidates[c]
            scenarios = candidate[C_SCENARIOS]
            preemptions = preempting = 0.0
            if shared is not None:
                for i in range(candidate[C_HASHES]):
                    shared[2][n, i] = hashes[c, i]
            for i in range(HEADROOM, N_FORECAST):
                out[c, i] = base[TOTAL_BLOCKS]
            for s in range(scenarios):
                final = candidate[C_FINALS + s]
                of = min(s, base_scenarios - 1)
                for slot in range(n):
                    mine[slot] = ends[of, slot]
                checkpoint = FIRST_CHECKPOINT + of if skipping else 0
                start(heads, reqs, lists, shared, base_shared, progress, start_s, finals, of, checkpoint)
                future.admit_candidate(
                    heads[SCRATCH_STATE],
                    reqs[SCRATCH_STATE],
                    lists[SCRATCH_STATE],
                    n,
                    candidate,
                    final,
                )
                first_s, _ = future.run(
                    heads, reqs, lists, shared, log, packed, progress, n, mine, none, jumping, courses[of], ended[of]
                )
                fine = fine and first_s >= 0.0
                harm_s = 0.0
                for slot in range(n):
                    harm_s += mine[slot] - ends[of, slot]
                samples[0, s] = first_s
                samples[1, s] = (mine[n] - first_s) / (final - 1) if final > 1 else 0.0
                samples[2, s] = mine[n]
                samples[3, s] = harm_s
                blocks = (candidate[C_PROMPT] + final - 1 + base[BLOCK] - 1) // base[BLOCK]
                samples[4, s] = course.clear_from(courses[of], course_rows[of], blocks)
                mine_so_far = progress[SCRATCH_STATE]
                preemptions += mine_so_far[SO_FAR_PREEMPTIONS]
                preempting += mine_so_far[SO_FAR_PREEMPTIONS] > 0
                out[c, HEADROOM] = min(out[c, HEADROOM], mine_so_far[SO_FAR_HEADROOM])
                course.read_path(mine_so_far, out[c, HEADROOM_PATH:])
            future.summarise(samples[0], scenarios, out[c], TTFT)
            future.summarise(samples[1], scenarios, out[c], TPOT)
            future.summarise(samples[2], scenarios, out[c], E2E)
            future.summarise(samples[3], scenarios, out[c], HARM)
            future.summarise(samples[4], scenarios, out[c], CLEAR)
            out[c, PREEMPTION_COUNT] = preemptions / scenarios
            out[c, PREEMPTION_SHARE] = preempting / scenarios
        return fine

    made = (one_step, plan_ahead, advance, measure, keep, run, enqueue, remove, tell_apart, known_prefix, count_shares)
    return Entries(*made, take_node, forecast)


ENTRIES = _compile(_fingerprint())

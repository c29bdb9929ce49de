"""What Python calls. These are the only kernels with a cache on disk.

numba decides from the file of a cached function alone whether its cache is stale; it does not see a change in a
function it calls or in a constant of another module. Each entry point therefore closes over a fingerprint of all code
and numbers under it (`fingerprint`), which is part of numba's cache key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from simcore.compiled import block_pool, load, plan, run_to_event, step
from simcore.compiled import layout as at
from simcore.compiled.fingerprint import fingerprint_of
from simcore.compiled.future import copying, drawing, forecasts
from simcore.compiled.layout import Arrays, Floats, Ints, Shared
from simcore.cost import step_time
from simcore.kernel_cache import cached


class Entries(NamedTuple):
    """The compiled entry points; see the functions in `_compile`."""

    step: Callable[..., Any]
    plan_in_flight: Callable[..., Any]
    advance: Callable[..., Any]
    measure: Callable[..., Any]
    keep: Callable[..., Any]
    run: Callable[..., Any]
    enqueue: Callable[..., Any]
    remove: Callable[..., Any]
    build_pool: Callable[..., Any]
    store: Callable[..., Any]
    known_prefix: Callable[..., Any]
    expected_prefix: Callable[..., Any]
    count_shares: Callable[..., Any]
    take_node: Callable[..., Any]
    forecast: Callable[..., Any]


def _compile(fingerprint: int) -> Entries:
    @cached
    def one_step(
        head: Ints, req: Ints, lists: Ints, shared: Shared, log: Ints
    ) -> tuple[int, int, float, int, int, int, int]:
        """`step.step`, with everything scheduled in the log."""
        assert fingerprint >= 0
        return step.step(head, req, lists, shared, log, True)

    @cached
    def plan_in_flight(head: Ints, req: Ints, lists: Ints, log: Ints) -> None:
        """`step.plan_in_flight` for a state that was told without the step that its engine has in flight."""
        assert fingerprint >= 0
        if head[at.ASYNC] and head[at.IN_FLIGHT] == 0 and head[at.N_RUNNING] > 0:
            step.plan_in_flight(head, req, lists, None, log, int(np.int64(0)))

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
        while next_s < until_s and (head[at.N_RUNNING] + head[at.N_WAITING] > 0 or head[at.IN_FLIGHT]):
            if n_log + at.LOG_ROWS_EACH * (head[at.N_RUNNING] + head[at.N_WAITING]) > log.shape[0]:
                break
            n, prefill, work, prefill_seqs, decode, read, _ = step.step(head, req, lists, shared, log[n_log:], False)
            next_s += step_time.step_seconds(packed, prefill + decode, work, read, prefill_seqs + decode, prefill_seqs)
            for i in range(n_log, n_log + n):
                times_s[i] = next_s
            n_log += n
            steps += 1
        return n_log, steps, next_s

    @cached
    def measure(head: Ints, req: Ints, lists: Ints) -> tuple[int, int, int]:
        """`load.measure`."""
        assert fingerprint >= 0
        return load.measure(head, req, lists)

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
        """`run_to_event.keep`."""
        assert fingerprint >= 0
        return run_to_event.keep(head, req, lists, totals, published_s, states, row, seq, mark, state_s, interval_s)

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
        """`run_to_event.run`; `counters` are (row, seq, mark, watched), `times_s` its four times."""
        assert fingerprint >= 0
        return run_to_event.run(head, req, lists, shared, log, packed, totals, published_s, states, *counters, *times_s)

    @cached
    def enqueue(head: Ints, req: Ints, lists: Ints, slot: int, numbers: tuple[int, int, int, int, int]) -> None:
        """`plan.enqueue` at the back, of a new request: tokens of its prompt, of its answer, the most of its answer;
        priority; order of arrival."""
        assert fingerprint >= 0
        prompt, final, max_out, priority, order = numbers
        row = req[slot]
        row[:] = 0
        row[at.PROMPT], row[at.FINAL], row[at.MAX_OUT] = prompt, final, max(max_out, final)
        row[at.PRIORITY], row[at.ORDER], row[at.SEGMENT] = priority, order, -1
        plan.enqueue(head, req, lists, slot, False)

    @cached
    def remove(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int) -> None:
        """`step.remove`."""
        assert fingerprint >= 0
        step.remove(head, req, lists, shared, slot)

    @cached
    def build_pool(head: Ints, req: Ints, lists: Ints, shared: Arrays) -> None:
        """`block_pool.build_pool`."""
        assert fingerprint >= 0
        block_pool.build_pool(head, req, lists, shared)

    @cached
    def store(head: Ints, pool: Ints, names: Ints) -> None:
        """`block_pool.store`."""
        assert fingerprint >= 0
        block_pool.store(head, pool, names)

    @cached
    def known_prefix(pool: Ints, names: Ints) -> tuple[int, int]:
        """`block_pool.known_prefix`."""
        assert fingerprint >= 0
        return block_pool.known_prefix(pool, names)

    @cached
    def expected_prefix(
        head: Ints, req: Ints, lists: Ints, shared: Arrays, names: Ints, known: int, ahead: int, priority: int
    ) -> int:
        """`block_pool.expected_prefix`."""
        assert fingerprint >= 0
        return block_pool.expected_prefix(head, req, lists, shared, names, known, ahead, priority)

    @cached
    def count_shares(head: Ints, req: Ints, lists: Ints, to_req: Ints, source: Ints, shared: Arrays) -> None:
        """`block_pool.count_shares`."""
        assert fingerprint >= 0
        block_pool.count_shares(head, req, lists, to_req, source, shared)

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
        """`copying.compact_state` of a node into the base state, then `drawing.draw_finals` with `node_rows`
        by the node's slots."""
        assert fingerprint >= 0
        copying.compact_state(head, req, lists, to_heads[at.BASE], to_reqs[at.BASE], to_lists[at.BASE], source)
        n = head[at.N_RUNNING] + head[at.N_WAITING]
        for slot in range(n):
            rows[slot] = node_rows[source[slot]]
        return drawing.draw_finals(to_reqs[at.BASE], n, atoms, strata, rows, scenarios, finals)

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
        headrooms: Floats,
        headroom_rows: Ints,
        ended: Ints,
        samples: Floats,
        out: Floats,
        jumping: bool,
    ) -> bool:
        """`forecasts.forecast`."""
        assert fingerprint >= 0
        return forecasts.forecast(
            heads,
            reqs,
            lists,
            shared,
            base_shared,
            hashes,
            log,
            packed,
            start_s,
            finals,
            base_scenarios,
            base_done,
            candidates,
            n_candidates,
            progress,
            ends,
            headrooms,
            headroom_rows,
            ended,
            samples,
            out,
            jumping,
        )

    made = (
        one_step,
        plan_in_flight,
        advance,
        measure,
        keep,
        run,
        enqueue,
        remove,
        build_pool,
        store,
        known_prefix,
        expected_prefix,
        count_shares,
    )
    return Entries(*made, take_node, forecast)


ENTRIES = _compile(fingerprint_of(_compile))

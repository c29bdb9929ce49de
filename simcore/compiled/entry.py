"""What Python calls: kernels that are kept compiled on disk (`simcore.kernel_cache`), gathered under one name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from simcore.compiled import adapter_slots, block_pool, draft_tokens, load, plan, run_to_event, step
from simcore.compiled import layout as at
from simcore.compiled.future import copying, drawing, forecasts
from simcore.compiled.layout import Floats, Ints, Shared
from simcore.cost import step_time
from simcore.kernel_cache import cached


class Entries(NamedTuple):
    """The kernels; see each."""

    step: Callable[..., Any]
    complete_state: Callable[..., Any]
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


@cached
def complete_state(head: Ints, req: Ints, lists: Ints, shared: Shared, log: Ints) -> None:
    """Adds what a trace does not tell: drafts of those that decode, and the step that its engine has in flight."""
    if shared is not None and head[at.SPECULATIVE] > 0:
        draft_tokens.take_up_drafts(head, req, lists)
    if head[at.ASYNC] and head[at.IN_FLIGHT] == 0 and head[at.N_RUNNING] > 0:
        step.plan_in_flight(head, req, lists, shared, log, 0)


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
def enqueue(head: Ints, req: Ints, lists: Ints, slot: int, numbers: tuple[int, int, int, int, int, int]) -> None:
    """`plan.enqueue` at the back, of a new request: tokens of its prompt, of its answer, the most of its answer;
    priority; order of arrival; number of its LoRA adapter."""
    prompt, final, max_out, priority, order, adapter = numbers
    row = req[slot]
    row[:] = 0
    row[at.PROMPT], row[at.FINAL], row[at.MAX_OUT] = prompt, final, max(max_out, final)
    row[at.PRIORITY], row[at.ORDER], row[at.SEGMENT] = priority, order, -1
    lists[at.ADAPTER_OF, slot] = adapter
    lists[at.DRAWN, slot] = 0
    draft_tokens.lose_drafts(lists, slot)
    plan.enqueue(head, req, lists, slot, False)


@cached
def take_node(
    head: Ints,
    req: Ints,
    lists: Ints,
    shared: Shared,
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
    copying.compact_state(head, req, lists, shared, to_heads[at.BASE], to_reqs[at.BASE], to_lists[at.BASE], source)
    if head[at.MAX_LORAS] > 0:
        adapter_slots.lift_idle_limit(to_heads[at.BASE], to_lists[at.BASE])
    n = head[at.N_RUNNING] + head[at.N_WAITING]
    for slot in range(n):
        rows[slot] = node_rows[source[slot]]
    return drawing.draw_finals(to_reqs[at.BASE], n, atoms, strata, rows, scenarios, finals)


ENTRIES = Entries(
    step=step.step,
    complete_state=complete_state,
    advance=advance,
    measure=load.measure,
    keep=run_to_event.keep,
    run=run_to_event.run,
    enqueue=enqueue,
    remove=step.remove,
    build_pool=block_pool.build_pool,
    store=block_pool.store,
    known_prefix=block_pool.known_prefix,
    expected_prefix=block_pool.expected_prefix,
    count_shares=block_pool.count_shares,
    take_node=take_node,
    forecast=forecasts.forecast,
)

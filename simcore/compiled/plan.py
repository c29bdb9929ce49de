"""What one step will do: who runs on, who is preempted, who is admitted. The rules in words: `simcore.reference`."""

from __future__ import annotations

from numba import njit

from simcore.compiled.layout import (
    AHEAD,
    BEFORE,
    BLOCK,
    BUDGET,
    BY_PRIORITY,
    CACHED,
    CAPACITY,
    COMPUTED,
    GRANTED,
    KEYED,
    KIND,
    LONG_PREFILL,
    MAX_LEN,
    MAX_OUT,
    MAX_SEQS,
    N_RUNNING,
    N_WAITING,
    ORDER,
    OUT,
    PENDING,
    PREEMPTED,
    PREEMPTED_TOTAL,
    PREEMPTIONS,
    PRIORITY,
    PROMPT,
    RUNNING,
    SLOT,
    TOKENS,
    WAITING,
    Ints,
    Shared,
)
from simcore.compiled.memory import grow, name, names_lag, release, reuse


@njit(nogil=True)
def before(req: Ints, a: int, b: int) -> bool:
    """Whether slot `a` comes before slot `b` under priority scheduling."""
    if req[a, PRIORITY] != req[b, PRIORITY]:
        return req[a, PRIORITY] < req[b, PRIORITY]
    return req[a, ORDER] < req[b, ORDER]


@njit(nogil=True)
def enqueue(head: Ints, req: Ints, lists: Ints, slot: int, front: bool) -> None:
    """Puts a slot into the waiting queue: front, back, or where its priority says."""
    n = head[N_WAITING]
    at = n if front else 0
    if head[BY_PRIORITY]:
        at = n
        while at > 0 and before(req, lists[WAITING, at - 1], slot):
            at -= 1
    for i in range(n, at, -1):
        lists[WAITING, i] = lists[WAITING, i - 1]
    lists[WAITING, at] = slot
    head[N_WAITING] = n + 1


@njit(nogil=True)
def note(log: Ints, n: int, kind: int, slot: int) -> int:
    log[n, KIND] = kind
    log[n, SLOT] = slot
    return n + 1


@njit(nogil=True)
def _victim(head: Ints, req: Ints, lists: Ints) -> int:
    """Index in the running list of the request to preempt."""
    last = head[N_RUNNING] - 1
    if head[BY_PRIORITY]:
        for i in range(last):
            if before(req, lists[RUNNING, last], lists[RUNNING, i]):
                last = i
    return last


@njit(nogil=True)
def _preempt(head: Ints, req: Ints, lists: Ints, shared: Shared, at: int) -> int:
    """Puts the running request at that index back to waiting; the tokens that it had been granted."""
    victim = lists[RUNNING, at]
    head[N_RUNNING] -= 1
    for j in range(at, head[N_RUNNING]):
        lists[RUNNING, j] = lists[RUNNING, j + 1]
    granted = req[victim, GRANTED]
    release(head, req, lists, shared, victim, True)
    req[victim, GRANTED] = 0
    req[victim, BEFORE] = req[victim, COMPUTED]
    req[victim, COMPUTED] = 0
    req[victim, PENDING] = 0
    req[victim, PREEMPTIONS] += 1
    head[PREEMPTED_TOTAL] += 1
    enqueue(head, req, lists, victim, True)
    return granted


@njit(nogil=True)
def _make_room(
    head: Ints, req: Ints, lists: Ints, shared: Shared, log: Ints, n_log: int, i: int, tokens: int
) -> tuple[bool, int, int, int]:
    """Gives the running request at index `i` blocks for `tokens` tokens, preempting while they are not there.

    Returns (whether it still runs, its index, budget won back, log rows).
    """
    slot = lists[RUNNING, i]
    budget = 0
    while not grow(head, req, lists, shared, slot, tokens):
        at = _victim(head, req, lists)
        victim = lists[RUNNING, at]
        budget += _preempt(head, req, lists, shared, at)
        n_log = note(log, n_log, PREEMPTED, victim)
        if at < i:
            i -= 1
        if victim == slot:
            return False, i, budget, n_log
    return True, i, budget, n_log


@njit(nogil=True)
def _continue_running(
    head: Ints, req: Ints, lists: Ints, shared: Shared, log: Ints, n_log: int, limit: int
) -> tuple[int, int]:
    """Tokens for those already running. Returns the budget left and the log rows, which tell of preemptions."""
    budget = head[BUDGET]
    ahead = head[AHEAD] != 0
    naming = names_lag(head, shared)
    longest = head[MAX_LEN] - 1
    i = 0
    while i < head[N_RUNNING] and budget > 0:
        slot = lists[RUNNING, i]
        computed = req[slot, COMPUTED]
        n = req[slot, PROMPT] + req[slot, OUT] - computed
        if ahead:
            pending = req[slot, PENDING]
            n += pending
            # Whoever may produce no more when the token in flight has come is not planned for again.
            if pending > 0 and req[slot, OUT] + 1 >= req[slot, MAX_OUT]:
                n = 0
        if 0 < limit < n:
            n = limit
        n = min(n, budget, longest - computed)
        if n <= 0:
            i += 1
            continue
        if computed + n > req[slot, CAPACITY]:
            alive, i, back, n_log = _make_room(head, req, lists, shared, log, n_log, i, computed + n)
            budget += back
            if not alive:
                break
        if naming:
            known = min(computed + n, req[slot, PROMPT] + req[slot, OUT])
            if known > req[slot, KEYED]:
                name(head, req, shared, slot, known)
        req[slot, GRANTED] = n
        req[slot, CACHED] = 0
        budget -= n
        i += 1
    return budget, n_log


@njit(nogil=True)
def _admit(head: Ints, req: Ints, lists: Ints, shared: Shared, budget: int, limit: int) -> None:
    while head[N_WAITING] > 0 and budget > 0 and head[N_RUNNING] < head[MAX_SEQS]:
        slot = lists[WAITING, head[N_WAITING] - 1]
        hits = reuse(head, req, lists, shared, slot)
        if hits < 0:
            break
        cached = hits * head[BLOCK]
        n = req[slot, PROMPT] + req[slot, OUT] - cached
        if 0 < limit < n:
            n = limit
        n = min(n, budget)
        grow(head, req, lists, shared, slot, cached + n)
        name(head, req, shared, slot, cached + n)
        req[slot, COMPUTED] = cached
        req[slot, GRANTED] = n
        req[slot, CACHED] = cached
        head[N_WAITING] -= 1
        lists[RUNNING, head[N_RUNNING]] = slot
        head[N_RUNNING] += 1
        budget -= n


@njit(nogil=True)
def plan(head: Ints, req: Ints, lists: Ints, shared: Shared, log: Ints, n_log: int) -> int:
    """Grants tokens (column `GRANTED`), preempts, admits. Returns the log rows; new ones tell of preemptions."""
    limit = head[LONG_PREFILL]
    if head[N_RUNNING] + head[N_WAITING] <= 1:
        limit = 0
    first = n_log
    budget, n_log = _continue_running(head, req, lists, shared, log, n_log, limit)
    if n_log == first:
        _admit(head, req, lists, shared, budget, limit)
    for i in range(first, n_log):
        log[i, TOKENS] = 0
    return n_log

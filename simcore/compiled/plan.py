"""What one step will do: who runs on, who is preempted, who is admitted. The rules in words: `simcore.reference`."""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.compiled.adapter_slots import add_adapter, is_kept_out, planned_adapters
from simcore.compiled.draft_tokens import lose_drafts, padding
from simcore.compiled.kv_cache_manager import (
    chunk_after,
    grow,
    name,
    names_lag,
    pass_window,
    release,
    reuse,
    room_for,
)
from simcore.compiled.layout import Ints, Shared
from simcore.kernel_cache import kernel


@kernel
def before(req: Ints, a: int, b: int) -> bool:
    """Whether slot `a` comes before slot `b` under priority scheduling."""
    if req[a, at.PRIORITY] != req[b, at.PRIORITY]:
        return req[a, at.PRIORITY] < req[b, at.PRIORITY]
    return req[a, at.ORDER] < req[b, at.ORDER]


@kernel
def enqueue(head: Ints, req: Ints, lists: Ints, slot: int, front: bool) -> None:
    """Puts a slot into the waiting queue: front, back, or where its priority says."""
    n = head[at.N_WAITING]
    place = n if front else 0
    if head[at.BY_PRIORITY]:
        place = n
        while place > 0 and before(req, lists[at.WAITING, place - 1], slot):
            place -= 1
    for i in range(n, place, -1):
        lists[at.WAITING, i] = lists[at.WAITING, i - 1]
    lists[at.WAITING, place] = slot
    head[at.N_WAITING] = n + 1


@kernel
def note(log: Ints, n: int, kind: int, slot: int) -> int:
    log[n, at.KIND] = kind
    log[n, at.SLOT] = slot
    return n + 1


@kernel
def _victim(head: Ints, req: Ints, lists: Ints) -> int:
    """Index in the running list of the request to preempt."""
    last = head[at.N_RUNNING] - 1
    if head[at.BY_PRIORITY]:
        for i in range(last):
            if before(req, lists[at.RUNNING, last], lists[at.RUNNING, i]):
                last = i
    return last


@kernel
def _preempt(head: Ints, req: Ints, lists: Ints, shared: Shared, index: int) -> int:
    """Puts the running request at that index back to waiting; the tokens that it had been granted."""
    victim = lists[at.RUNNING, index]
    head[at.N_RUNNING] -= 1
    for j in range(index, head[at.N_RUNNING]):
        lists[at.RUNNING, j] = lists[at.RUNNING, j + 1]
    granted = req[victim, at.GRANTED]
    release(head, req, lists, shared, victim, True)
    req[victim, at.GRANTED] = 0
    req[victim, at.BEFORE] = req[victim, at.COMPUTED]
    req[victim, at.COMPUTED] = 0
    req[victim, at.PENDING] = 0
    if shared is not None and head[at.SPECULATIVE] > 0:
        lose_drafts(lists, victim)
    req[victim, at.PREEMPTIONS] += 1
    head[at.PREEMPTED_TOTAL] += 1
    enqueue(head, req, lists, victim, True)
    return granted


@kernel
def _make_room(
    head: Ints, req: Ints, lists: Ints, shared: Shared, log: Ints, n_log: int, i: int, tokens: int
) -> tuple[bool, int, int, int]:
    """Gives the running request at index `i` blocks for `tokens` tokens, preempting while they are not there.

    Returns (whether it still runs, its index, budget won back, log rows).
    """
    slot = lists[at.RUNNING, i]
    budget = 0
    if shared is not None and head[at.WINDOW_GROUPS] > 0:
        pass_window(head, req, lists, shared, slot)
    while not grow(head, req, lists, shared, slot, tokens):
        index = _victim(head, req, lists)
        victim = lists[at.RUNNING, index]
        budget += _preempt(head, req, lists, shared, index)
        n_log = note(log, n_log, at.PREEMPTED, victim)
        if index < i:
            i -= 1
        if victim == slot:
            return False, i, budget, n_log
    return True, i, budget, n_log


@kernel
def _continue_running(
    head: Ints, req: Ints, lists: Ints, shared: Shared, log: Ints, n_log: int, limit: int
) -> tuple[int, int]:
    """Tokens for those already running. Returns the budget left and the log rows, which tell of preemptions."""
    budget = head[at.BUDGET]
    asynchronous = head[at.ASYNC] != 0
    speculative = shared is not None and head[at.SPECULATIVE] > 0
    naming = names_lag(head, shared)
    passing = shared is not None and head[at.WINDOW_GROUPS] > 0
    longest = head[at.MAX_LEN] - 1
    i = 0
    while i < head[at.N_RUNNING] and budget > 0:
        slot = lists[at.RUNNING, i]
        computed = req[slot, at.COMPUTED]
        n = req[slot, at.PROMPT] + req[slot, at.OUT] - computed
        if shared is not None and speculative:
            n += max(0, lists[at.DRAFTS, slot])
        if asynchronous:
            pending = req[slot, at.PENDING]
            n += pending
            # Whoever may produce no more when the token in flight has come is not planned for again.
            if pending > 0 and req[slot, at.OUT] + 1 >= req[slot, at.MAX_OUT]:
                n = 0
        if 0 < limit < n:
            n = limit
        n = min(n, budget, longest - computed)
        if n <= 0:
            i += 1
            continue
        room = room_for(head, shared, computed + n)
        if passing or room > req[slot, at.CAPACITY]:
            alive, i, back, n_log = _make_room(head, req, lists, shared, log, n_log, i, room)
            budget += back
            if not alive:
                if head[at.BY_PRIORITY] and head[at.RULES_OF_0_33]:
                    continue
                break
        if naming:
            known = min(computed + n, req[slot, at.PROMPT] + req[slot, at.OUT])
            if known > req[slot, at.KEYED]:
                name(head, req, lists, shared, slot, known)
        req[slot, at.GRANTED] = n
        req[slot, at.CACHED] = 0
        budget -= n
        i += 1
    return budget, n_log


@kernel
def _admit(head: Ints, req: Ints, lists: Ints, shared: Shared, budget: int, limit: int) -> None:
    limited = head[at.MAX_LORAS] > 0 and head[at.N_WAITING] > 0
    adapters = planned_adapters(head, req, lists) if limited else 0
    padded = 0
    if shared is not None and head[at.SPECULATIVE] > 0 and head[at.N_WAITING] > 0:
        padded = padding(head, req, lists)
    passed_over = 0
    while head[at.N_WAITING] > passed_over and budget > 0 and head[at.N_RUNNING] < head[at.MAX_SEQS]:
        place = head[at.N_WAITING] - 1 - passed_over
        slot = lists[at.WAITING, place]
        if limited and is_kept_out(head, lists, adapters, slot):
            passed_over += 1
            continue
        hits = reuse(head, req, lists, shared, slot, limit, budget, padded)
        if hits < 0:
            break
        cached = hits * head[at.BLOCK]
        tokens = req[slot, at.PROMPT] + req[slot, at.OUT]
        n = chunk_after(head, shared, tokens, cached, limit, budget, padded)
        grow(head, req, lists, shared, slot, room_for(head, shared, cached + n))
        name(head, req, lists, shared, slot, min(cached + n, tokens))
        req[slot, at.COMPUTED] = cached
        req[slot, at.GRANTED] = n
        req[slot, at.CACHED] = cached
        req[slot, at.BEFORE] = passed_over
        if limited:
            adapters = add_adapter(lists, adapters, lists[at.ADAPTER_OF, slot])
        head[at.N_WAITING] -= 1
        for i in range(place, head[at.N_WAITING]):
            lists[at.WAITING, i] = lists[at.WAITING, i + 1]
        lists[at.RUNNING, head[at.N_RUNNING]] = slot
        head[at.N_RUNNING] += 1
        budget -= n


@kernel
def plan(head: Ints, req: Ints, lists: Ints, shared: Shared, log: Ints, n_log: int) -> int:
    """Grants tokens (column `GRANTED`), preempts, admits. Returns the log rows; new ones tell of preemptions."""
    limit = head[at.LONG_PREFILL]
    requests = head[at.N_RUNNING] + head[at.N_WAITING]
    if requests <= 1:
        limit = 0
    elif limit < 0:
        limit = max(-limit, head[at.BUDGET] // requests)
    first = n_log
    budget, n_log = _continue_running(head, req, lists, shared, log, n_log, limit)
    if n_log == first:
        _admit(head, req, lists, shared, budget, limit)
    for i in range(first, n_log):
        log[i, at.TOKENS] = 0
    return n_log

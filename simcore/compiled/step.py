"""One scheduler step. The rules in words are in `simcore.reference`."""

from __future__ import annotations

from numba import njit

from simcore.compiled.kv import disown, give_back, reclaim, take
from simcore.compiled.layout import (
    BLOCK,
    BUDGET,
    BY_PRIORITY,
    CACHED,
    CACHING,
    CAPACITY,
    COMPUTED,
    FINAL,
    FINISHED,
    FIRST_TOKEN,
    FREE,
    GRANTED,
    HIT,
    KIND,
    LONG_PREFILL,
    MAX_LEN,
    MAX_SEQS,
    N_RUNNING,
    N_WAITING,
    ORDER,
    OUT,
    PREEMPTED,
    PREEMPTED_TOTAL,
    PREEMPTIONS,
    PRIORITY,
    PRODUCED,
    PROMPT,
    RUNNING,
    SCHEDULED,
    SLOT,
    TOKENS,
    WAITING,
    Ints,
)


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
def free_blocks_of(head: Ints, req: Ints, lists: Ints, slot: int, tokens: int, comes_back: bool) -> None:
    """Frees the blocks of a running slot that has `tokens` tokens in them."""
    held = req[slot, CAPACITY] // head[BLOCK]
    keyed = tokens // head[BLOCK] if head[CACHING] else 0
    give_back(head, req, lists, slot if comes_back else -1, held - keyed, keyed)
    req[slot, CAPACITY] = 0


@njit(nogil=True)
def remove(head: Ints, req: Ints, lists: Ints, slot: int) -> None:
    """Takes a slot out of whatever queue it stands in and frees what it holds."""
    for row, counter in ((RUNNING, N_RUNNING), (WAITING, N_WAITING)):
        kept = 0
        for i in range(head[counter]):
            if lists[row, i] != slot:
                lists[row, kept] = lists[row, i]
                kept += 1
        head[counter] = kept
    disown(head, req, lists, slot)
    free_blocks_of(head, req, lists, slot, req[slot, COMPUTED], False)


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
def _continue_running(head: Ints, req: Ints, lists: Ints, log: Ints, limit: int) -> tuple[int, int]:
    """Tokens for those already running. Returns the budget left and the number of log rows: the preemptions."""
    budget = head[BUDGET]
    block = head[BLOCK]
    n_log = 0
    i = 0
    while i < head[N_RUNNING] and budget > 0:
        slot = lists[RUNNING, i]
        computed = req[slot, COMPUTED]
        n = req[slot, PROMPT] + req[slot, OUT] - computed
        if 0 < limit < n:
            n = limit
        n = min(n, budget, head[MAX_LEN] - 1 - computed)
        if n <= 0:
            i += 1
            continue
        lacking = computed + n - req[slot, CAPACITY]
        blocks = (lacking + block - 1) // block if lacking > 0 else 0
        alive = True
        while blocks > head[FREE]:
            at = _victim(head, req, lists)
            victim = lists[RUNNING, at]
            head[N_RUNNING] -= 1
            for j in range(at, head[N_RUNNING]):
                lists[RUNNING, j] = lists[RUNNING, j + 1]
            if at < i:
                i -= 1
            granted = req[victim, GRANTED]
            budget += granted
            req[victim, GRANTED] = 0
            free_blocks_of(head, req, lists, victim, req[victim, COMPUTED] + granted, True)
            req[victim, COMPUTED] = 0
            req[victim, PREEMPTIONS] += 1
            head[PREEMPTED_TOTAL] += 1
            enqueue(head, req, lists, victim, True)
            n_log = note(log, n_log, PREEMPTED, victim)
            if victim == slot:
                alive = False
                break
        if not alive:
            break
        if blocks > 0:
            take(head, req, lists, blocks)
            req[slot, CAPACITY] += blocks * block
        req[slot, GRANTED] = n
        req[slot, CACHED] = 0
        budget -= n
        i += 1
    return budget, n_log


@njit(nogil=True)
def fits_now(head: Ints, req: Ints, slot: int) -> bool:
    """The admission rule: all tokens a waiting request has now must fit the free blocks, not just its first chunk."""
    whole = min(req[slot, PROMPT] + req[slot, OUT], head[MAX_LEN])
    return whole <= head[FREE] * head[BLOCK]


@njit(nogil=True)
def _admit(head: Ints, req: Ints, lists: Ints, budget: int, limit: int) -> None:
    block = head[BLOCK]
    while head[N_WAITING] > 0 and budget > 0 and head[N_RUNNING] < head[MAX_SEQS]:
        slot = lists[WAITING, head[N_WAITING] - 1]
        if not fits_now(head, req, slot):
            break
        tokens = req[slot, PROMPT] + req[slot, OUT]
        # The last token is always computed anew: its logits give the next token.
        hits = reclaim(head, req, lists, slot, (tokens - 1) // block)
        cached = hits * block
        n = tokens - cached
        if 0 < limit < n:
            n = limit
        n = min(n, budget)
        blocks = (n + block - 1) // block
        take(head, req, lists, blocks)
        req[slot, CAPACITY] = (hits + blocks) * block
        req[slot, COMPUTED] = cached
        req[slot, GRANTED] = n
        req[slot, CACHED] = cached
        head[N_WAITING] -= 1
        lists[RUNNING, head[N_RUNNING]] = slot
        head[N_RUNNING] += 1
        budget -= n


@njit(nogil=True)
def step(head: Ints, req: Ints, lists: Ints, log: Ints, verbose: bool) -> tuple[int, int, float, int, int, int, int]:
    """Plans one step and applies it.

    Returns (log rows, prefill tokens, prefill work, prefill sequences, decode sequences, decode KV tokens, fewest free
    blocks). The log has preemptions first, then, in batch order, `SCHEDULED` (if `verbose`), `FIRST_TOKEN` and
    `FINISHED`; it needs `layout.log_rows` rows.
    """
    limit = head[LONG_PREFILL]
    if head[N_RUNNING] + head[N_WAITING] <= 1:
        limit = 0
    budget, n_log = _continue_running(head, req, lists, log, limit)
    if n_log == 0:
        _admit(head, req, lists, budget, limit)
    lowest = head[FREE]
    prefill = prefill_seqs = decode = kv = kept = 0
    work = 0.0
    for i in range(head[N_RUNNING]):
        slot = lists[RUNNING, i]
        n = req[slot, GRANTED]
        lists[RUNNING, kept] = slot
        kept += 1
        if n == 0:
            continue
        computed = req[slot, COMPUTED]
        prompt = req[slot, PROMPT]
        out = req[slot, OUT]
        if computed >= prompt and prompt + out - computed == 1:
            decode += 1
            kv += computed + 1
        else:
            prefill += n
            prefill_seqs += 1
            work += n * (computed + 0.5 * n)
        computed += n
        req[slot, COMPUTED] = computed
        req[slot, GRANTED] = 0
        produced = 0
        if computed >= prompt + out:
            produced = 1
            out += 1
            req[slot, OUT] = out
        if verbose:
            log[n_log, TOKENS] = n
            log[n_log, PRODUCED] = produced
            log[n_log, HIT] = req[slot, CACHED]
            n_log = note(log, n_log, SCHEDULED, slot)
        if produced:
            if out == 1:
                n_log = note(log, n_log, FIRST_TOKEN, slot)
            if out >= req[slot, FINAL]:
                n_log = note(log, n_log, FINISHED, slot)
                free_blocks_of(head, req, lists, slot, computed, False)
                kept -= 1
    head[N_RUNNING] = kept
    return n_log, prefill, work, prefill_seqs, decode, kv, lowest

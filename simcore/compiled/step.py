"""One scheduler step: planned, done, taken in. The rules in words are in `simcore.reference`.

Kernels take the arrays of `layout` in the order head, req, lists, shared.
"""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.compiled.block_counts import disown
from simcore.compiled.draft_tokens import accepted_of, draw_drafts, lose_drafts
from simcore.compiled.kv_cache_manager import name, release
from simcore.compiled.layout import Ints, Shared
from simcore.compiled.plan import note, plan
from simcore.kernel_cache import cached, kernel


@kernel
def _without(lists: Ints, row: int, n: int, slot: int) -> int:
    """Takes a slot out of a row of `n`; how many are left."""
    kept = 0
    for i in range(n):
        if lists[row, i] != slot:
            lists[row, kept] = lists[row, i]
            kept += 1
    return kept


@kernel
def _drop_passed_over(head: Ints, req: Ints, lists: Ints, slot: int) -> None:
    """A slot is to go: if it waits, it was perhaps passed over for some of those that run."""
    for ahead in range(head[at.N_WAITING]):
        if lists[at.WAITING, head[at.N_WAITING] - 1 - ahead] == slot:
            for i in range(head[at.N_RUNNING]):
                admitted = lists[at.RUNNING, i]
                req[admitted, at.BEFORE] -= int(req[admitted, at.BEFORE] > ahead)


@cached
def remove(head: Ints, req: Ints, lists: Ints, shared: Shared, slot: int) -> None:
    """Takes a slot out of whatever it stands in and frees what it holds."""
    if head[at.MAX_LORAS] > 0:
        _drop_passed_over(head, req, lists, slot)
    head[at.N_RUNNING] = _without(lists, at.RUNNING, head[at.N_RUNNING], slot)
    waiting, head[at.N_WAITING] = head[at.N_WAITING], _without(lists, at.WAITING, head[at.N_WAITING], slot)
    if head[at.ASYNC]:
        before, head[at.N_BEFORE] = head[at.N_BEFORE], _without(lists, at.RUNNING_BEFORE, head[at.N_BEFORE], slot)
        if before > head[at.N_BEFORE] and waiting > head[at.N_WAITING]:
            # Preempted by the step in flight: no trace will tell of it.
            head[at.PREEMPTED_TOTAL] -= 1
        for i in range(head[at.N_PLAN]):
            if lists[at.PLAN_SLOT + head[at.BANK], i] == slot:
                lists[at.PLAN_SLOT + head[at.BANK], i] = -1
    disown(head, req, lists, slot)
    release(head, req, lists, shared, slot, False)


@kernel
def _log_scheduled(
    req: Ints, log: Ints, n_log: int, slot: int, tokens: int, produced: int, cached: int, drafts: int
) -> int:
    log[n_log, at.TOKENS] = produced if drafts > 0 else tokens
    log[n_log, at.DRAFTED] = drafts
    log[n_log, at.PRODUCED] = produced
    log[n_log, at.HIT] = cached
    return note(log, n_log, at.SCHEDULED, slot)


@kernel
def _end(head: Ints, req: Ints, lists: Ints, shared: Shared, log: Ints, n_log: int, slot: int) -> int:
    """A request has had its last token; the log rows."""
    release(head, req, lists, shared, slot, False)
    return note(log, n_log, at.FINISHED, slot)


@cached
def step(
    head: Ints, req: Ints, lists: Ints, shared: Shared, log: Ints, verbose: bool
) -> tuple[int, int, float, int, int, int, int]:
    """Plans one step and applies it; where the engine plans ahead, `step_async`.

    Returns (log rows, prefill tokens, prefill work, prefill sequences, decode sequences, decode KV tokens, fewest free
    blocks). The log has preemptions first, then, in batch order, `SCHEDULED` (if `verbose`), `FIRST_TOKEN` and
    `FINISHED`; it needs `layout.log_rows` rows.
    """
    if head[at.ASYNC]:
        return step_async(head, req, lists, shared, log, verbose)
    n_log = plan(head, req, lists, shared, log, 0)
    lowest = head[at.FREE]
    speculative = shared is not None and head[at.SPECULATIVE] > 0
    prefill = prefill_seqs = decode = kv = kept = 0
    work = 0.0
    for i in range(head[at.N_RUNNING]):
        slot = lists[at.RUNNING, i]
        n = req[slot, at.GRANTED]
        lists[at.RUNNING, kept] = slot
        kept += 1
        if n == 0:
            continue
        computed = req[slot, at.COMPUTED]
        there = req[slot, at.PROMPT] + req[slot, at.OUT]
        if computed >= req[slot, at.PROMPT] and there - computed == 1:
            decode += 1
            kv += computed + 1
            prefill += n - 1
        else:
            prefill += n
            prefill_seqs += 1
            work += n * (computed + 0.5 * n)
        req[slot, at.COMPUTED] = computed + n
        req[slot, at.GRANTED] = 0
        produced = int(computed + n >= there)
        drafts = 0
        if shared is not None and speculative and produced:
            drafts = computed + n - there
            accepted = accepted_of(lists, slot, drafts)
            req[slot, at.COMPUTED] = there + accepted
            produced = min(1 + accepted, req[slot, at.FINAL] - req[slot, at.OUT])
            draw_drafts(req, lists, slot)
        elif shared is not None and speculative:
            lose_drafts(lists, slot)
        if verbose:
            n_log = _log_scheduled(req, log, n_log, slot, n, produced, req[slot, at.CACHED], drafts)
        if produced:
            req[slot, at.OUT] = out = req[slot, at.OUT] + produced
            if out == 1:
                n_log = note(log, n_log, at.FIRST_TOKEN, slot)
            if out >= req[slot, at.FINAL]:
                n_log = _end(head, req, lists, shared, log, n_log, slot)
                kept -= 1
    head[at.N_RUNNING] = kept
    return n_log, prefill, work, prefill_seqs, decode, kv, lowest


@kernel
def plan_in_flight(head: Ints, req: Ints, lists: Ints, shared: Shared, log: Ints, n_log: int) -> int:
    """Plans a step and sends it off: its tokens count as computed from now on. Returns the log rows."""
    for i in range(head[at.N_RUNNING]):
        lists[at.RUNNING_BEFORE, i] = lists[at.RUNNING, i]
    head[at.N_BEFORE] = head[at.N_RUNNING]
    free = head[at.FREE]
    n_log = plan(head, req, lists, shared, log, n_log)
    head[at.BANK] = bank = 1 - head[at.BANK]
    speculative = shared is not None and head[at.SPECULATIVE] > 0
    n_plan = prefill = work2 = prefill_seqs = decode = kv = 0
    for i in range(head[at.N_RUNNING]):
        slot = lists[at.RUNNING, i]
        n = req[slot, at.GRANTED]
        if shared is not None:
            lists[at.UNDER_WAY, slot] = n
        if n == 0:
            continue
        computed = req[slot, at.COMPUTED]
        there = req[slot, at.PROMPT] + req[slot, at.OUT] + req[slot, at.PENDING]
        if computed >= req[slot, at.PROMPT] and there - computed == 1:
            decode += 1
            kv += computed + 1
            prefill += n - 1
        else:
            prefill += n
            prefill_seqs += 1
            work2 += n * (2 * computed + n)
        req[slot, at.COMPUTED] = computed + n
        req[slot, at.GRANTED] = 0
        produces = int(computed + n >= there)
        req[slot, at.PENDING] += produces
        if shared is not None and speculative:
            drafts = max(0, computed + n - there)
            req[slot, at.PENDING] += drafts
            lists[at.PLAN_DRAFTS + bank, n_plan] = 256 * drafts + accepted_of(lists, slot, drafts)
            if produces:
                draw_drafts(req, lists, slot)
            else:
                lose_drafts(lists, slot)
        lists[at.PLAN_SLOT + bank, n_plan] = slot
        lists[at.PLAN_TOKENS + bank, n_plan] = 2 * n + produces
        lists[at.PLAN_CACHED + bank, n_plan] = req[slot, at.CACHED]
        n_plan += 1
    head[at.IN_FLIGHT] = n_plan > 0
    head[at.N_PLAN] = n_plan
    head[at.PLAN_PREFILL] = prefill
    head[at.PLAN_WORK2] = work2
    head[at.PLAN_PREFILL_SEQS] = prefill_seqs
    head[at.PLAN_DECODE] = decode
    head[at.PLAN_KV] = kv
    head[at.PLAN_LOWEST] = head[at.FREE]
    head[at.PLAN_GREW] = free - head[at.FREE]
    return n_log


@kernel
def step_async(
    head: Ints, req: Ints, lists: Ints, shared: Shared, log: Ints, verbose: bool
) -> tuple[int, int, float, int, int, int, int]:
    """One step of an engine that schedules asynchronously: plans the next one, then takes in this one.

    As `step`, but that the fewest free blocks are those that the next step's plan leaves. Log rows of preemptions by
    that plan have `TOKENS` 1, those of this step's own 0.
    """
    n_log = 0
    while head[at.IN_FLIGHT] == 0:
        first = n_log
        n_log = plan_in_flight(head, req, lists, shared, log, n_log)
        # A plan may only preempt; then the next one follows at once.
        if head[at.IN_FLIGHT] == 0 and (n_log == first or n_log + head[at.N_RUNNING] >= log.shape[0]):
            return n_log, 0, 0.0, 0, 0, 0, head[at.FREE]
    speculative = shared is not None and head[at.SPECULATIVE] > 0
    n_plan, bank = head[at.N_PLAN], head[at.BANK]
    prefill, work, prefill_seqs = head[at.PLAN_PREFILL], 0.5 * head[at.PLAN_WORK2], head[at.PLAN_PREFILL_SEQS]
    decode, kv = head[at.PLAN_DECODE], head[at.PLAN_KV]
    first = n_log
    n_log = plan_in_flight(head, req, lists, shared, log, n_log)
    for i in range(first, n_log):
        log[i, at.TOKENS] = 1
    ends = 0
    for i in range(n_plan):
        slot = lists[at.PLAN_SLOT + bank, i]
        if slot < 0:
            continue
        entry = lists[at.PLAN_TOKENS + bank, i]
        produced = entry % 2
        drafts = rejected = 0
        if shared is not None and speculative and produced:
            drafts, accepted = divmod(lists[at.PLAN_DRAFTS + bank, i], 256)
            rejected = drafts - accepted
            produced = min(1 + accepted, req[slot, at.FINAL] - req[slot, at.OUT])
        if verbose:
            cached = lists[at.PLAN_CACHED + bank, i]
            n_log = _log_scheduled(req, log, n_log, slot, entry // 2, produced, cached, drafts)
        if not produced:
            continue
        # Whoever was preempted meanwhile has nothing computed, and gets the token all the same.
        running = req[slot, at.COMPUTED] > 0
        if running:
            req[slot, at.COMPUTED] -= rejected
            req[slot, at.PENDING] -= rejected + produced
            known = req[slot, at.COMPUTED] - req[slot, at.PENDING]
            if known > req[slot, at.KEYED]:
                name(head, req, lists, shared, slot, known)
        else:
            req[slot, at.BEFORE] -= rejected
        req[slot, at.OUT] = out = req[slot, at.OUT] + produced
        if out == 1:
            n_log = note(log, n_log, at.FIRST_TOKEN, slot)
        if out >= req[slot, at.FINAL]:
            n_log = _end(head, req, lists, shared, log, n_log, slot)
            ends += 1
            if not running:
                head[at.PREEMPTED_TOTAL] -= 1
                disown(head, req, lists, slot)
    if ends > 0:
        _drop_ended(head, req, lists)
    return n_log, prefill, work, prefill_seqs, decode, kv, head[at.PLAN_LOWEST]


@kernel
def _drop_ended(head: Ints, req: Ints, lists: Ints) -> None:
    """Takes those who have had their last token out of all queues, and out of the step in flight."""
    for row, counter in ((at.RUNNING, at.N_RUNNING), (at.WAITING, at.N_WAITING), (at.RUNNING_BEFORE, at.N_BEFORE)):
        kept = 0
        for i in range(head[counter]):
            slot = lists[row, i]
            if req[slot, at.OUT] < req[slot, at.FINAL]:
                lists[row, kept] = slot
                kept += 1
        head[counter] = kept
    bank = head[at.BANK]
    for i in range(head[at.N_PLAN]):
        slot = lists[at.PLAN_SLOT + bank, i]
        if slot >= 0 and req[slot, at.OUT] >= req[slot, at.FINAL]:
            lists[at.PLAN_SLOT + bank, i] = -1

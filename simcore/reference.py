"""The engine's scheduler, plainly: one step at a time under the rules of vLLM 0.33's `Scheduler` and `AsyncScheduler`.

The compiled engine must be equal to this, step by step; this must be equal to vLLM, step by step. What the rules are:

1. Running requests, in order, get min(tokens missing, long-prefill limit, budget left) tokens. If their blocks do not
   fit, the last running request (under priority: the largest (priority, arrival)) is preempted: it loses its blocks,
   starts from zero and goes to the front of the waiting queue; a request that preempts itself ends the loop (under
   priority it does so before 0.33 only: the next may fit). The limit holds while there is more than one request; an
   adaptive one is at least an even share of the budget among all.
2. If nobody was preempted, waiting requests are admitted in order while budget, `max_num_seqs` and blocks last. One is
   admitted only if *all* tokens it has now (prompt and what it had produced) fit the free blocks, not just its chunk.
   Full blocks that still hold its tokens are reused: those of prompts that begin alike, and what preemption left.
   Layers with a sliding window keep KV of their own, and only of the window (how: `simcore.reference_kv`).
   One whose LoRA adapter would be one more than `max_loras` among those that run (before 0.33: in this batch) is passed
   over and keeps its place.
3. A request whose tokens are all computed produces one token at the end of the step; the last one frees it.
4. With speculative decoding it then has drafts of the next tokens, which are computed in the next step as if they were
   there. Those that turn out right come with that step's own token; those behind them are not computed after all, but
   the blocks that they got stay. A method may need blocks for `num_lookahead_tokens` more, and one cached block less
   than is found. Who is preempted loses its drafts. One that is admitted with a single token missing, in a step in
   which others run and none of them prefills, or after a cache hit, gets as many tokens as if it had all drafts.

Asynchronous scheduling (`EngineCore.step_with_batch_queue`) plans the next step when a step begins, before the tokens
of that step are known: a token in flight counts as there (`placeholders`), who ends with it keeps seat and blocks until
it has come back. A request that may produce no more is left out of that plan; one that ends earlier of itself is in it,
for a step that yields nothing. Who is preempted with a token in flight still gets it, and may end while it waits.
Drafts are planned for before they are made: always all of them, and all of them count as there until they come back.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from simcore.drafts import DraftOdds, cells_of, draw
from simcore.proved import has_rules_of_0_33
from simcore.reference_kv import ReferenceHolding, ReferenceKv
from simcore.trace import Scheduled, StepBatch
from simcore.types import EngineConfig


class ReferenceRequest(msgspec.Struct, kw_only=True, eq=False):
    """One request in the scheduler; changes as it runs."""

    request_id: str
    prompt_tokens: int
    final_tokens: int
    """Output tokens after which it is finished."""
    max_output_tokens: int
    priority: int = 0
    arrival_s: float = 0.0
    adapter: str = ""
    """Its LoRA adapter; empty: none."""
    order: int = 0
    """Running number of arrival. (vLLM compares arrival times and, where two are the same, ids as text.)"""
    held: ReferenceHolding
    output_tokens: int = 0
    computed_tokens: int = 0
    """Tokens computed or in flight."""
    in_flight_tokens: int = 0
    placeholders: int = 0
    """Output tokens and drafts in flight: planned, not known yet."""
    prefilling: bool = True
    """Its last step has not computed all of its tokens."""
    drafts: int = 0
    """Drafts that it has for its next step."""
    right: int = 0
    """How many of them will turn out right."""
    drawn: int = 0
    """How often it has had drafts."""
    preemptions: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    @property
    def rank(self) -> tuple[int, int]:
        return (self.priority, self.order)


class Grant(msgspec.Struct, eq=False):
    """What one request gets in one step."""

    request: ReferenceRequest
    tokens: int
    cached_tokens: int = 0
    """Found cached at its admission."""
    drafts: int = 0
    """How many of its tokens are drafts."""
    accepted: int = 0
    """How many of those are right."""
    produces: bool = False
    """It will have a token at the end of the step."""


class ReferencePlan(NamedTuple):
    """What one step will do."""

    granted: list[Grant]
    """In batch order."""
    preempted: tuple[str, ...]
    batch: StepBatch
    lowest_free_blocks: int


class ReferenceStep(msgspec.Struct, frozen=True, kw_only=True):
    """What one step did."""

    scheduled: tuple[Scheduled, ...]
    preempted: tuple[str, ...]
    """Preempted by the plans made in this step: its own, or with asynchronous scheduling that of the next one."""
    first_tokens: tuple[str, ...]
    finished: tuple[str, ...]
    batch: StepBatch
    lowest_free_blocks: int
    """Free blocks when it was planned, before finished requests gave theirs back."""
    free_blocks: int


class ReferenceScheduler:
    """Waiting queue, running list and blocks of one engine."""

    def __init__(self, config: EngineConfig, draft_odds: DraftOdds | None = None) -> None:
        self.config = config
        self.kv = ReferenceKv(config)
        self._draft_odds = cells_of(config, draft_odds)
        self.running: list[ReferenceRequest] = []
        self.waiting: list[ReferenceRequest] = []
        self.preemptions_total = 0
        self._by_priority = config.scheduling_policy == "priority"
        self._rules_of_0_33 = has_rules_of_0_33(config.engine_version)
        self._in_flight: ReferencePlan | None = None

    def add(self, request: ReferenceRequest) -> None:
        self._enqueue(request, front=False)

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting or self._in_flight)

    def abort(self, request_id: str) -> bool:
        """Removes a request wherever it is; its blocks are free at once. False if unknown."""
        for queue in (self.running, self.waiting):
            for request in queue:
                if request.request_id == request_id:
                    queue.remove(request)
                    self.kv.release(request.held)
                    return True
        return False

    def step(self) -> ReferenceStep:
        """One step: tokens, preemptions, finished requests. Asynchronously: plans the next one, then ends this one."""
        preempted: tuple[str, ...] = ()
        plan = self._in_flight
        if plan is None:
            plan = self._plan()
            preempted = plan.preempted
        if self.config.async_scheduling:
            # A plan may only preempt; then the next one follows at once.
            while not plan.granted and plan.preempted:
                plan = self._plan()
                preempted += plan.preempted
            ahead = self._plan()
            preempted += ahead.preempted
            self._in_flight = ahead if ahead.granted else None
        return self._update(plan, preempted)

    def check(self) -> None:
        """Raises AssertionError naming the broken invariant."""
        ids = [r.request_id for r in (*self.running, *self.waiting)]
        assert len(ids) == len(set(ids)), f"a request stands in two places: {sorted(ids)}"
        assert all(not r.held.groups and r.computed_tokens == 0 for r in self.waiting), "a waiting request holds blocks"
        assert len(self.running) <= self.config.max_num_seqs, "more running than max_num_seqs"
        size = self.config.block_size_tokens
        for r in self.running:
            for blocks in r.held.groups:
                spare = len(blocks) - -(-r.computed_tokens // size)
                most = self.config.blocks_for(self.config.spare_tokens)
                assert 0 <= spare <= most, f"{r.request_id}: blocks do not match its tokens"
        self.kv.pool.check([blocks for r in self.running for blocks in r.held.groups])

    def _plan(self) -> ReferencePlan:
        budget = self.config.max_num_batched_tokens
        limit = self.config.long_prefill_token_threshold_tokens
        requests = len(self.running) + len(self.waiting)
        if requests <= 1:
            limit = 0
        elif limit and self.config.long_prefill_adaptive:
            limit = max(limit, budget // requests)
        granted: dict[str, Grant] = {}
        preempted: list[ReferenceRequest] = []
        i = 0
        while i < len(self.running) and budget > 0:
            request = self.running[i]
            n = request.tokens + request.placeholders + request.drafts - request.computed_tokens
            if 0 < limit < n:
                n = limit
            n = min(n, budget, self.config.max_model_len_tokens - 1 - request.computed_tokens)
            if n == 0 or (request.placeholders and request.output_tokens + 1 >= request.max_output_tokens):
                i += 1
                continue
            fits = True
            while not self._grow(request, request.computed_tokens + n):
                victim = self._victim()
                at = self.running.index(victim)
                del self.running[at]
                if at < i:
                    i -= 1
                if victim.request_id in granted:
                    budget += granted.pop(victim.request_id).tokens
                self._preempt(victim)
                preempted.append(victim)
                if victim is request:
                    fits = False
                    break
            if not fits:
                if self._by_priority and self._rules_of_0_33:
                    continue
                break
            granted[request.request_id] = Grant(request, n)
            budget -= n
            i += 1
        if not preempted:
            self._admit(granted, budget, limit)
        return self._planned(list(granted.values()), tuple(r.request_id for r in preempted))

    def _admit(self, granted: dict[str, Grant], budget: int, limit: int) -> None:
        size = self.config.block_size_tokens
        using = self.running if self._rules_of_0_33 else [g.request for g in granted.values()]
        adapters = {r.adapter for r in using if r.adapter}
        others_prefill = any(g.request.prefilling for g in granted.values())
        others_decode = bool(granted) and not others_prefill
        passed_over = 0
        while passed_over < len(self.waiting) and budget > 0 and len(self.running) < self.config.max_num_seqs:
            request = self.waiting[passed_over]
            if request.adapter and request.adapter not in adapters and len(adapters) == self.config.max_loras > 0:
                passed_over += 1
                continue
            hit = self.kv.find(request.held, request.tokens)
            cached = hit.blocks * size
            n = request.tokens - cached
            padded = n + self.config.num_speculative_tokens
            pads = others_decode or (cached > 0 and not others_prefill)
            if n == 1 and pads and cached + padded < self.config.max_model_len_tokens:
                if padded > budget:
                    break
                n = padded
            if 0 < limit < n:
                n = limit
            n = min(n, budget)
            slots = self._slots(cached + n)
            whole = max(min(request.tokens, self.config.max_model_len_tokens), slots)
            if not self.kv.admit(request.held, hit, whole, slots, min(cached + n, request.tokens)):
                break
            request.computed_tokens = cached
            self.running.append(self.waiting.pop(passed_over))
            if request.adapter:
                adapters.add(request.adapter)
            granted[request.request_id] = Grant(request, n, cached)
            budget -= n

    def _planned(self, granted: list[Grant], preempted: tuple[str, ...]) -> ReferencePlan:
        """The plan as it is sent to the device: from now on its tokens count as computed."""
        prefill = prefill_seqs = decode = kv = 0
        work = 0.0
        for grant in granted:
            request, n = grant.request, grant.tokens
            before = request.computed_tokens
            there = request.tokens + request.placeholders
            if before >= request.prompt_tokens and there - before == 1:
                decode += 1
                kv += before + 1
                prefill += n - 1
            else:
                prefill += n
                prefill_seqs += 1
                work += n * (before + 0.5 * n)
            request.computed_tokens += n
            request.in_flight_tokens += n
            grant.produces = request.computed_tokens >= there
            request.prefilling = not grant.produces
            if grant.produces:
                grant.drafts = request.computed_tokens - there
                grant.accepted = min(grant.drafts, request.right)
                request.placeholders += 1 + grant.drafts
                if self.config.num_speculative_tokens:
                    request.drafts, request.right = draw(self._draft_odds, request.order, request.drawn)
                    request.drawn += 1
        return ReferencePlan(
            granted,
            preempted,
            StepBatch(prefill, work, prefill_seqs, decode, kv),
            self.kv.pool.free,
        )

    def _update(self, plan: ReferencePlan, preempted: tuple[str, ...]) -> ReferenceStep:
        """The device has done the plan: its tokens are known."""
        scheduled: list[Scheduled] = []
        finished: list[str] = []
        first: list[str] = []
        running = {id(r) for r in self.running}
        waiting = {id(r) for r in self.waiting}
        for grant in plan.granted:
            request = grant.request
            request.in_flight_tokens -= grant.tokens
            here = id(request) in running or id(request) in waiting
            if not here:
                continue
            produced = min(1 + grant.accepted, request.final_tokens - request.output_tokens) if grant.produces else 0
            kept = produced if grant.drafts else grant.tokens
            scheduled.append(Scheduled(request.request_id, kept, produced, grant.cached_tokens, grant.drafts))
            if not produced:
                continue
            request.output_tokens += produced
            if id(request) in running:
                rejected = grant.drafts - grant.accepted
                request.computed_tokens -= rejected
                request.placeholders -= rejected + produced
                # Synchronously blocks are named when the next step is planned.
                if self.config.async_scheduling:
                    self.kv.name(request.held, request.computed_tokens - request.placeholders)
            if request.output_tokens == 1:
                first.append(request.request_id)
            if request.output_tokens >= request.final_tokens:
                finished.append(request.request_id)
                self.kv.release(request.held)
        if finished:
            gone = set(finished)
            self.running = [r for r in self.running if r.request_id not in gone]
            self.waiting = [r for r in self.waiting if r.request_id not in gone]
        return ReferenceStep(
            scheduled=tuple(scheduled),
            preempted=preempted,
            first_tokens=tuple(first),
            finished=tuple(finished),
            batch=plan.batch,
            lowest_free_blocks=plan.lowest_free_blocks,
            free_blocks=self.kv.pool.free,
        )

    def _grow(self, request: ReferenceRequest, tokens: int) -> bool:
        """Gives the request blocks for `tokens` tokens; False (and nothing done) if they are not there."""
        settled = request.computed_tokens - request.in_flight_tokens
        return self.kv.grow(request.held, self._slots(tokens), settled, min(tokens, request.tokens))

    def _slots(self, tokens: int) -> int:
        """How many tokens must have room for a request to compute its first `tokens`."""
        return min(tokens + self.config.num_lookahead_tokens, self.config.max_model_len_tokens)

    def _victim(self) -> ReferenceRequest:
        if self._by_priority:
            return max(self.running, key=lambda r: r.rank)
        return self.running[-1]

    def _preempt(self, request: ReferenceRequest) -> None:
        self.kv.release(request.held)
        request.computed_tokens = request.placeholders = request.drafts = request.right = 0
        request.preemptions += 1
        self.preemptions_total += 1
        self._enqueue(request, front=True)

    def _enqueue(self, request: ReferenceRequest, *, front: bool) -> None:
        if self._by_priority:
            at = sum(r.rank < request.rank for r in self.waiting)
            self.waiting.insert(at, request)
        elif front:
            self.waiting.insert(0, request)
        else:
            self.waiting.append(request)

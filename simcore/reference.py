"""The engine's scheduler, plainly: one step at a time under the rules of vLLM 0.32's synchronous `Scheduler`.

The compiled engine must be equal to this, step by step; this must be equal to vLLM, step by step. What the rules are:

1. Running requests, in order, get min(tokens missing, long-prefill limit, budget left) tokens. If their blocks do not
   fit, the last running request (under priority: the largest (priority, arrival)) is preempted: it loses its blocks,
   starts from zero and goes to the front of the waiting queue; a request that preempts itself ends the loop.
2. If nobody was preempted, waiting requests are admitted in order while budget, `max_num_seqs` and blocks last. One is
   admitted only if *all* tokens it has now (prompt and what it had produced) fit the free blocks, not just its chunk.
   Full blocks that still hold its tokens are reused: with prompts of their own, that is what preemption left behind.
3. A request whose tokens are all computed produces one token at the end of the step; the last one frees it.
"""

from __future__ import annotations

import msgspec

from simcore.reference_kv import BlockKey, ReferenceBlocks
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
    order: int = 0
    """Running number of arrival. (vLLM compares arrival times and, where two are the same, ids as text.)"""
    shared_prefix: str = ""
    """Name of the text its prompt begins with, if other prompts begin with it too."""
    shared_tokens: int = 0
    output_tokens: int = 0
    computed_tokens: int = 0
    preemptions: int = 0
    blocks: list[int] = []
    keyed_blocks: int = 0
    """How many of its leading blocks have a content key."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    def key(self, index: int, block_size: int) -> BlockKey:
        if (index + 1) * block_size <= self.shared_tokens:
            return (self.shared_prefix, index)
        return (self.request_id, index)

    @property
    def rank(self) -> tuple[int, int]:
        return (self.priority, self.order)


class ReferenceStep(msgspec.Struct, frozen=True, kw_only=True):
    """What one step did."""

    scheduled: tuple[Scheduled, ...]
    preempted: tuple[str, ...]
    first_tokens: tuple[str, ...]
    finished: tuple[str, ...]
    batch: StepBatch
    lowest_free_blocks: int
    """Free blocks when the step was planned, before finished requests gave theirs back."""
    free_blocks: int


class ReferenceScheduler:
    """Waiting queue, running list and blocks of one engine."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.blocks = ReferenceBlocks(config.num_blocks, caching=config.enable_prefix_caching)
        self.running: list[ReferenceRequest] = []
        self.waiting: list[ReferenceRequest] = []
        self.preemptions_total = 0
        self._by_priority = config.scheduling_policy == "priority"

    def add(self, request: ReferenceRequest) -> None:
        self._enqueue(request, front=False)

    def abort(self, request_id: str) -> bool:
        """Removes a request wherever it is; its blocks are free at once. False if unknown."""
        for queue in (self.running, self.waiting):
            for request in queue:
                if request.request_id == request_id:
                    queue.remove(request)
                    self._release(request)
                    return True
        return False

    def step(self) -> ReferenceStep:
        """Plans one step and applies it: tokens, preemptions, finished requests."""
        budget = self.config.max_num_batched_tokens
        limit = self.config.long_prefill_token_threshold_tokens
        if len(self.running) + len(self.waiting) <= 1:
            limit = 0
        granted: dict[str, tuple[ReferenceRequest, int, int]] = {}
        preempted: list[ReferenceRequest] = []
        i = 0
        while i < len(self.running) and budget > 0:
            request = self.running[i]
            n = request.tokens - request.computed_tokens
            if 0 < limit < n:
                n = limit
            n = min(n, budget, self.config.max_model_len_tokens - 1 - request.computed_tokens)
            if n == 0:
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
                    budget += granted.pop(victim.request_id)[1]
                self._preempt(victim)
                preempted.append(victim)
                if victim is request:
                    fits = False
                    break
            if not fits:
                break
            granted[request.request_id] = (request, n, 0)
            budget -= n
            i += 1
        if not preempted:
            self._admit(granted, budget, limit)
        lowest = self.blocks.free
        return self._apply(granted, preempted, lowest)

    def check(self) -> None:
        """Raises AssertionError naming the broken invariant."""
        ids = [r.request_id for r in (*self.running, *self.waiting)]
        assert len(ids) == len(set(ids)), f"a request stands in two places: {sorted(ids)}"
        assert all(not r.blocks and r.computed_tokens == 0 for r in self.waiting), "a waiting request holds blocks"
        assert len(self.running) <= self.config.max_num_seqs, "more running than max_num_seqs"
        size = self.config.block_size_tokens
        for r in self.running:
            assert len(r.blocks) == -(-r.computed_tokens // size), f"{r.request_id}: blocks do not match its tokens"
        self.blocks.check([r.blocks for r in self.running])

    def _admit(self, granted: dict[str, tuple[ReferenceRequest, int, int]], budget: int, limit: int) -> None:
        size = self.config.block_size_tokens
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            request = self.waiting[0]
            # The last token is always computed anew: its logits give the next token.
            reusable = (request.tokens - 1) // size
            hit = self.blocks.cached_prefix([request.key(k, size) for k in range(reusable)])
            cached = len(hit) * size
            n = request.tokens - cached
            if 0 < limit < n:
                n = limit
            n = min(n, budget)
            whole = min(request.tokens, self.config.max_model_len_tokens)
            if -(-whole // size) - len(hit) + self.blocks.evictable(hit) > self.blocks.free:
                break
            self.blocks.touch(hit)
            request.blocks = hit
            request.keyed_blocks = len(hit)
            request.computed_tokens = cached
            self._grow(request, cached + n)
            self.running.append(self.waiting.pop(0))
            granted[request.request_id] = (request, n, cached)
            budget -= n

    def _apply(
        self,
        granted: dict[str, tuple[ReferenceRequest, int, int]],
        preempted: list[ReferenceRequest],
        lowest: int,
    ) -> ReferenceStep:
        scheduled: list[Scheduled] = []
        finished: list[str] = []
        first: list[str] = []
        prefill = prefill_seqs = decode = kv = 0
        work = 0.0
        for request, n, cached in granted.values():
            before = request.computed_tokens
            if before >= request.prompt_tokens and request.tokens - before == 1:
                decode += 1
                kv += before + 1
            else:
                prefill += n
                prefill_seqs += 1
                work += n * (before + 0.5 * n)
            request.computed_tokens += n
            produced = int(request.computed_tokens >= request.tokens)
            request.output_tokens += produced
            scheduled.append(Scheduled(request.request_id, n, produced, cached))
            if produced and request.output_tokens == 1:
                first.append(request.request_id)
            if produced and request.output_tokens >= request.final_tokens:
                finished.append(request.request_id)
                self._release(request)
        if finished:
            gone = set(finished)
            self.running = [r for r in self.running if r.request_id not in gone]
        return ReferenceStep(
            scheduled=tuple(scheduled),
            preempted=tuple(r.request_id for r in preempted),
            first_tokens=tuple(first),
            finished=tuple(finished),
            batch=StepBatch(prefill, work, prefill_seqs, decode, kv),
            lowest_free_blocks=lowest,
            free_blocks=self.blocks.free,
        )

    def _grow(self, request: ReferenceRequest, tokens: int) -> bool:
        """Gives the request blocks for `tokens` tokens; False (and nothing done) if they are not there."""
        size = self.config.block_size_tokens
        missing = -(-tokens // size) - len(request.blocks)
        if missing > self.blocks.free:
            return False
        if missing > 0:
            request.blocks = request.blocks + self.blocks.take(missing)
        if self.config.enable_prefix_caching:
            full = min(tokens, request.tokens) // size
            for k in range(request.keyed_blocks, full):
                self.blocks.set_key(request.blocks[k], request.key(k, size))
            request.keyed_blocks = max(request.keyed_blocks, full)
        return True

    def _victim(self) -> ReferenceRequest:
        if self._by_priority:
            return max(self.running, key=lambda r: r.rank)
        return self.running[-1]

    def _preempt(self, request: ReferenceRequest) -> None:
        self._release(request)
        request.computed_tokens = 0
        request.preemptions += 1
        self.preemptions_total += 1
        self._enqueue(request, front=True)

    def _release(self, request: ReferenceRequest) -> None:
        self.blocks.release(request.blocks)
        request.blocks = []
        request.keyed_blocks = 0

    def _enqueue(self, request: ReferenceRequest, *, front: bool) -> None:
        if self._by_priority:
            at = sum(r.rank < request.rank for r in self.waiting)
            self.waiting.insert(at, request)
        elif front:
            self.waiting.insert(0, request)
        else:
            self.waiting.append(request)

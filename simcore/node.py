"""One simulated engine: requests go in, steps are run, tokens come out, with times from a step-time model.

No clock inside: `now_s` and `until_s` come from the caller, who also keeps them ascending. `step` runs one step and
tells all about it (the emulated engine publishes it as its trace); `advance` runs many at once and tells events only
(the simulated cluster).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from simcore.adapters import adapter_number
from simcore.compiled import layout as at
from simcore.compiled.entry import ENTRIES
from simcore.cost.step_time import StepTimeModel
from simcore.drafts import DraftOdds, cells_of
from simcore.limits import check_fits
from simcore.trace import Scheduled, StepBatch, TraceDelta, TraceSnapshot
from simcore.types import EngineConfig, NodeLoad, RequestState

_FIRST_CAPACITY = 64
_ADVANCE_LOG_ROWS = 4096


class SimRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request with its true length: the engine finishes it exactly there."""

    request_id: str
    prompt_tokens: int
    output_tokens: int
    """At least 1."""
    max_output_tokens: int
    priority: int = 0
    block_hashes: tuple[int, ...] = ()
    """Hashes of the full KV blocks (`simcore.prefix`) of the prompt, or of prompt and answer; empty: it shares its
    beginning with nobody."""
    adapter: str = ""
    """Its LoRA adapter; empty: none. What one adapter computes is of no use to another: `block_hashes` must differ."""


class NodeEvent(NamedTuple):
    """Something a request's owner would see. `at_s` is the end of the step that caused it."""

    kind: Literal["first_token", "finished", "preempted"]
    request_id: str
    at_s: float


class NodeRequest(msgspec.Struct, frozen=True, gc=False):
    """A request that is on the node: what is kept of it beside the arrays, and its row (slot) in them."""

    slot: int
    request: SimRequest
    arrival_s: float


class TraceView(NamedTuple):
    """The queues as a trace tells of them: with the outcome of every finished step and nothing of the one in flight.

    An engine that schedules asynchronously has planned a step before the one in progress ends: its lists already
    contain who that plan admits and preempts. A trace tells of a step when it has ended, so its readers know older
    lists. Requests are slots here.
    """

    running: list[int]
    waiting: list[int]
    """Front to back."""
    computed: dict[int, int]
    """Tokens computed, where the array says otherwise."""
    preempted: list[int]
    """Requests preempted by the plan in flight, in the order in which it happened; they stand in `running`."""
    free_blocks: int


_EVENT_KINDS: dict[int, Literal["first_token", "finished", "preempted"]] = {
    at.FIRST_TOKEN: "first_token",
    at.FINISHED: "finished",
    at.PREEMPTED: "preempted",
}


def _as_it_came(arrived: NodeRequest) -> RequestState:
    """The state of a request that has just come."""
    request = arrived.request
    return RequestState(
        request_id=request.request_id,
        prompt_tokens=request.prompt_tokens,
        max_output_tokens=request.max_output_tokens,
        priority=request.priority,
        arrival_s=arrived.arrival_s,
        adapter=request.adapter,
    )


class SimNode:
    """One simulated engine. Methods that take a time must be called with times that do not run backwards.

    A step is applied when it begins: what arrives or is aborted during a step counts from its end on. With
    `config.async_scheduling` the step after it has been planned by then, so an arrival joins one step later; snapshot,
    load and deltas tell of finished steps only, as a trace does (`TraceView`).

    vLLM takes in aborts just before the tokens of the step in which they come, not just after. So an answer whose last
    token comes in that step is aborted there and finished here, and an aborted request's blocks are freed there before
    those of requests that end with the step, here behind them: as many, but another one may be reused first.
    """

    def __init__(
        self, node_id: str, config: EngineConfig, step_time: StepTimeModel, *, draft_odds: DraftOdds | None = None
    ) -> None:
        """`draft_odds`: how the drafts of an engine that decodes speculatively fare; None: nothing is known of it."""
        self.node_id = node_id
        self.config = config
        self.seq = 0
        """Number of steps run: the sequence number of the last delta."""
        self.free_at_s = 0.0
        """End of the last step."""
        self.next_step_s = math.inf
        """When the next step can begin: the end of the last one or the arrival that woke the node; inf if idle."""
        self.membership = 0
        """Changes whenever a request comes or goes."""
        self.interventions = 0
        """Arrivals and aborts: what the node's own state does not foretell."""
        self.arrivals = 0
        """Arrivals alone: the next one's place in their order."""
        self.requests: dict[str, NodeRequest] = {}
        """Those in the engine, by id."""
        self.ids: list[str] = [""] * _FIRST_CAPACITY
        """Id by slot; stale for free slots."""
        self.head = at.new_head(config)
        self.req = np.zeros((_FIRST_CAPACITY, at.N_COLS), dtype=np.int64)
        self.lists = self._new_lists(_FIRST_CAPACITY)
        if config.num_speculative_tokens:
            cells = cells_of(config, draft_odds)
            self.lists[at.DRAFT_ODDS, : len(cells)] = cells
        self._shared = at.counted(config)
        found_in_part = bool(config.window_tokens) or config.drops_cached_block
        self._tells_apart = config.enable_prefix_caching and found_in_part
        """Whether blocks are kept one by one from the first request on: of its own old blocks a preempted request finds
        those that a window has left by chance, or computes the last one anew, so that two hold the same."""
        self._step_time = step_time
        self._packed = step_time.pack()
        self._log = self._new_log(_FIRST_CAPACITY)
        self._times_s = np.zeros(len(self._log), dtype=np.float64)
        self._free_slots = list(range(_FIRST_CAPACITY - 1, -1, -1))
        self._arrived: list[NodeRequest] = []
        self._aborted: list[str] = []

    @staticmethod
    def from_snapshot(
        snapshot: TraceSnapshot,
        node_id: str,
        step_time: StepTimeModel,
        *,
        output_tokens: Callable[[RequestState], int],
        free_at_s: float,
        draft_odds: DraftOdds | None = None,
    ) -> SimNode:
        """The engine of a trace's snapshot, its next step beginning at `free_at_s` (on any clock the caller likes).

        `output_tokens` says how long each answer is taken to be in all; an answer that is that long already goes on by
        one token. What a snapshot cannot show is taken to be absent: free blocks that still hold tokens of preempted
        requests, blocks that wrong drafts have left with a request. The drafts of the next step are drawn. A prompt
        that is half computed is taken to have got a whole budget in its last step.

        Raises ValueError for a request whose drafts the KV blocks can never hold.
        """
        config = snapshot.config
        node = SimNode(node_id, config, step_time, draft_odds=draft_odds)
        node._tells_apart = False
        states = [*snapshot.running, *snapshot.waiting]
        n, running = len(states), len(snapshot.running)
        while len(node.ids) < n:
            node._grow()
        block = config.block_size_tokens
        rows: list[list[int]] = []
        for slot, s in enumerate(states):
            final = max(output_tokens(s), s.output_tokens + 1)
            computed = s.computed_tokens if slot < running else 0
            rows.append(
                at.request_row(
                    prompt=s.prompt_tokens,
                    out=s.output_tokens,
                    computed=computed,
                    final=final,
                    max_out=s.max_output_tokens,
                    priority=s.priority,
                    order=slot,
                    preemptions=s.preemptions,
                    block=block,
                )
            )
            node.ids[slot] = s.request_id
            request = SimRequest(
                request_id=s.request_id,
                prompt_tokens=s.prompt_tokens,
                output_tokens=final,
                max_output_tokens=s.max_output_tokens,
                priority=s.priority,
                adapter=s.adapter,
            )
            if config.spare_tokens:
                # It would be preempted for its own drafts for ever.
                check_fits(config, msgspec.structs.replace(s, output_tokens=s.output_tokens + 1))
            node.requests[s.request_id] = NodeRequest(slot, request, s.arrival_s)
        if config.max_loras:
            node.lists[at.ADAPTER_OF, :n] = [adapter_number(s.adapter) for s in states]
        if config.window_tokens:
            node._begin_windows(states[:running])
        if n:
            node.req[:n] = rows
            node._free_slots = [slot for slot in node._free_slots if slot >= n]
        if config.scheduling_policy == "priority":
            by_arrival = sorted(range(n), key=lambda i: (states[i].arrival_s, i))
            node.req[by_arrival, at.ORDER] = np.arange(n)
        node.lists[at.RUNNING, :running] = np.arange(running)
        node.lists[at.WAITING, : n - running] = np.arange(n - 1, running - 1, -1)
        node.head[at.N_RUNNING] = running
        node.head[at.N_WAITING] = n - running
        node.head[at.FREE] = min(snapshot.free_blocks, config.num_blocks)
        node.head[at.PREEMPTED_TOTAL] = snapshot.preemptions_total
        # A busy engine that schedules asynchronously has the next step planned already. (Of who has just left it, the
        # snapshot knows no more; that plan still knew them.)
        ENTRIES.complete_state(node.head, node.req, node.lists, node._shared, node._log)
        node.interventions = node.arrivals = n
        node.seq = snapshot.seq
        node.free_at_s = float(free_at_s)
        node.next_step_s = node.free_at_s if n else math.inf
        node.membership = n
        return node

    @property
    def step_time(self) -> StepTimeModel:
        return self._step_time

    @property
    def has_work(self) -> bool:
        """Whether a request is here, or a step still runs for those who have gone."""
        return bool(self.requests) or bool(self.head[at.IN_FLIGHT])

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds; what the step in flight needs is taken already."""
        return int(self.head[at.FREE])

    @property
    def preemptions_total(self) -> int:
        return int(self.head[at.PREEMPTED_TOTAL])

    def output_tokens(self, request_id: str) -> int | None:
        """Tokens that a request has produced; None if it is not here."""
        known = self.requests.get(request_id)
        return None if known is None else self.req.item(known.slot, at.OUT)

    def computed_tokens(self, request_id: str) -> int | None:
        """Tokens of its prompt and answer whose KV is computed; None if it is not here."""
        known = self.requests.get(request_id)
        return None if known is None else self.req.item(known.slot, at.COMPUTED)

    def rename(self, names: Mapping[str, str]) -> None:
        """Gives requests that are here, by id, new ids; nothing else about them changes."""

        def renamed(arrived: NodeRequest) -> NodeRequest:
            new = names.get(arrived.request.request_id)
            if new is None:
                return arrived
            request = msgspec.structs.replace(arrived.request, request_id=new)
            return NodeRequest(arrived.slot, request, arrived.arrival_s)

        self.membership += 1
        requests = {(known := renamed(a)).request.request_id: known for a in self.requests.values()}
        assert len(requests) == len(self.requests), "two requests would have one id"
        self._arrived = [requests[names.get(i, i)] for i in (a.request.request_id for a in self._arrived)]
        self.requests = requests
        for request_id, known in requests.items():
            self.ids[known.slot] = request_id

    def add(self, request: SimRequest, now_s: float) -> None:
        """Puts a request into the waiting queue: at the end, or under priority scheduling where it belongs.

        Raises ValueError for a duplicate id, for lengths under 1 token, and for a request that `max_model_len_tokens`
        or the KV blocks can never hold.
        """
        request_id = request.request_id
        if request_id in self.requests:
            raise ValueError(f"{self.node_id}: request {request_id!r} is already here")
        check_fits(self.config, request)
        if not self.has_work:
            self.next_step_s = max(self.free_at_s, float(now_s))
        if not self._free_slots:
            self._grow()
        slot = self._free_slots.pop()
        numbers = (
            request.prompt_tokens,
            request.output_tokens,
            request.max_output_tokens,
            request.priority,
            self.arrivals,
            adapter_number(request.adapter),
        )
        ENTRIES.enqueue(self.head, self.req, self.lists, slot, numbers)
        if self._tells_apart or (request.block_hashes and self.config.enable_prefix_caching):
            self._name_blocks(slot, request.block_hashes)
        self.membership += 1
        self.interventions += 1
        self.arrivals += 1
        self.ids[slot] = request_id
        self.requests[request_id] = arrived = NodeRequest(slot, request, now_s)
        self._arrived.append(arrived)

    def assume_cached(self, request_id: str, blocks: int, held_blocks: int = 0) -> None:
        """So many blocks of a waiting request are taken to be found cached when it is admitted, `held_blocks` of them
        held by others. Only where blocks are counted. KeyError if it is not here."""
        assert self._pool is None, "a node that tells blocks apart knows what is cached"
        row = self.req[self.requests[request_id].slot]
        row[at.ASSUMED], row[at.ASSUMED_HELD] = blocks, held_blocks

    def abort(self, request_id: str) -> bool:
        """Removes a request in any state; its blocks are free before the next step. False if it is not here."""
        known = self.requests.pop(request_id, None)
        if known is None:
            return False
        self.membership += 1
        self.interventions += 1
        ENTRIES.remove(self.head, self.req, self.lists, self._shared, known.slot)
        self._free_slots.append(known.slot)
        if not self.has_work:
            self.next_step_s = math.inf
        self._arrived = [a for a in self._arrived if a is not known]
        self._aborted.append(request_id)
        return True

    def step(self, now_s: float) -> TraceDelta:
        """Plans and applies one step that begins at `now_s`; its tokens are visible at `end_s` of the delta.

        Raises ValueError when there is nothing to do.
        """
        if not self.has_work:
            raise ValueError(f"{self.node_id}: no work, so no step at {now_s}")
        ahead = self._trace_view().preempted if self.head[at.ASYNC] else []
        n_log, *features, _ = ENTRIES.step(self.head, self.req, self.lists, self._shared, self._log, True)
        batch = StepBatch(*features)
        duration_s = self._step_time.seconds(batch)
        self.seq += 1
        self.free_at_s = float(now_s + duration_s)
        scheduled: list[Scheduled] = []
        preempted = [self.ids[slot] for slot in ahead]
        finished: list[str] = []
        for kind, slot, tokens, produced, cached, drafts in self._log[:n_log].tolist():
            request_id = self.ids[slot]
            if kind == at.SCHEDULED:
                scheduled.append(Scheduled(request_id, tokens, produced, cached, drafts))
            elif kind == at.PREEMPTED:
                # Those with tokens 1 were preempted by the plan of the next step, which tells of them.
                if tokens == 0:
                    preempted.append(request_id)
            elif kind == at.FINISHED:
                finished.append(request_id)
                self._forget(request_id)
        self.next_step_s = self.free_at_s if self.has_work else math.inf
        delta = TraceDelta(
            seq=self.seq,
            start_s=now_s,
            duration_s=duration_s,
            arrived=tuple(map(_as_it_came, self._arrived)),
            aborted=tuple(self._aborted),
            preempted=tuple(preempted),
            scheduled=tuple(scheduled),
            finished=tuple(finished),
            free_blocks=int(self.head[at.FREE] + self.head[at.PLAN_GREW]),
            batch=batch,
        )
        self._arrived.clear()
        self._aborted.clear()
        return delta

    def advance(self, until_s: float) -> list[NodeEvent]:
        """Runs every step that begins before `until_s`.

        Events are in time order and carry the end of their step, which may lie after `until_s`.
        """
        # Compiled code is made per type: a whole number here would compile it anew.
        until_s = float(until_s)
        events: list[NodeEvent] = []
        while self.next_step_s < until_s:
            n_log, steps, self.free_at_s = ENTRIES.advance(
                self.head,
                self.req,
                self.lists,
                self._shared,
                self._log,
                self._times_s,
                self._packed,
                self.next_step_s,
                until_s,
            )
            self.seq += steps
            if n_log:
                self._collect(n_log, self._times_s[:n_log].tolist(), events)
            self.next_step_s = self.free_at_s if self.has_work else math.inf
        self._arrived.clear()
        self._aborted.clear()
        return events

    def snapshot(self, now_s: float) -> TraceSnapshot:
        """The whole state after the last step."""
        state = self._trace_view()
        return TraceSnapshot(
            seq=self.seq,
            at_s=now_s,
            config=self.config,
            running=tuple([self._state(s, state) for s in state.running]),
            waiting=tuple([self._state(s, state) for s in state.waiting]),
            free_blocks=state.free_blocks,
            preemptions_total=int(self.head[at.PREEMPTED_TOTAL]) - len(state.preempted),
        )

    def load(self, now_s: float, expected: Mapping[str, int] | None = None) -> NodeLoad:
        """Summary that heuristic policies score.

        `expected` gives total output tokens per request id where they are believed rather than known; a request that
        is missing there counts with its true length.
        """
        blocks, unprocessed, prefill = ENTRIES.measure(self.head, self.req, self.lists)
        if expected is not None:
            unprocessed = 0
            computed = self.req[:, at.COMPUTED].tolist()
            for request_id, known in self.requests.items():
                total = expected.get(request_id, known.request.output_tokens)
                unprocessed += max(0, known.request.prompt_tokens + total - computed[known.slot])
        head = self.head.tolist()
        running = head[at.N_BEFORE] if head[at.ASYNC] else head[at.N_RUNNING]
        return NodeLoad(
            node_id=self.node_id,
            trace_seq=self.seq,
            state_age_s=0.0,
            running=running,
            waiting=head[at.N_RUNNING] + head[at.N_WAITING] - running,
            free_blocks=head[at.FREE] + head[at.PLAN_GREW],
            total_blocks=self.config.num_blocks,
            waiting_prompt_blocks=blocks,
            unprocessed_tokens=unprocessed,
            preemptions_total=head[at.PREEMPTED_TOTAL],
            prefill_tokens=prefill,
        )

    def copy(self) -> SimNode:
        """An independent node in the same state."""
        other = SimNode.__new__(SimNode)
        other.__dict__.update(self.__dict__)
        for name in ("head", "req", "lists", "_log", "_times_s"):
            setattr(other, name, getattr(self, name).copy())
        for name in ("ids", "_free_slots", "_arrived", "_aborted"):
            setattr(other, name, list(getattr(self, name)))
        if (arrays := self._pool) is not None:
            pool, table, names = arrays
            other._shared = pool.copy(), table.copy(), names.copy()
        other.requests = dict(self.requests)
        return other

    def check(self) -> None:
        """Raises AssertionError naming the broken invariant."""
        _check_queues(self.head, self.req, self.lists, self._pool)
        head = self.head.tolist()
        queued = [*self.lists[at.RUNNING, : head[at.N_RUNNING]], *self.lists[at.WAITING, : head[at.N_WAITING]]]
        known = {r.slot: i for i, r in self.requests.items()}
        assert sorted(queued) == sorted(known), "the requests known differ from the requests queued"
        assert all(self.ids[slot] == i for slot, i in known.items()), "a slot has two names"
        assert sorted((*known, *self._free_slots)) == list(range(len(self.ids))), "a slot is lost or used twice"

    def _collect(self, n_log: int, times_s: list[float], events: list[NodeEvent]) -> None:
        rows = self._log[:n_log, : at.SLOT + 1].tolist()
        for (kind, slot), at_s in zip(rows, times_s, strict=True):
            request_id = self.ids[slot]
            events.append(NodeEvent(_EVENT_KINDS[kind], request_id, at_s))
            if kind == at.FINISHED:
                self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self.membership += 1
        self._free_slots.append(self.requests.pop(request_id).slot)

    def _trace_view(self) -> TraceView:
        """What readers of the trace know after the last step."""
        head, req, lists = self.head, self.req, self.lists
        running = lists[at.RUNNING, : head[at.N_RUNNING]].tolist()
        waiting = lists[at.WAITING, : head[at.N_WAITING]][::-1].tolist()
        if not head[at.ASYNC]:
            return TraceView(running, waiting, {}, [], int(head[at.FREE]))
        before = lists[at.RUNNING_BEFORE, : head[at.N_BEFORE]].tolist()
        known, queued = set(before), set(waiting)
        # The first to be preempted was the last to run.
        preempted = [slot for slot in reversed(before) if slot in queued]
        admitted = [slot for slot in running if slot not in known]
        waiting = [slot for slot in waiting if slot not in known]
        for place, slot in enumerate(admitted):
            waiting.insert(place + req.item(slot, at.BEFORE), slot)
        if head[at.BY_PRIORITY]:
            waiting.sort(key=lambda slot: (req[slot, at.PRIORITY], req[slot, at.ORDER]))
        bank, n = int(head[at.BANK]), int(head[at.N_PLAN])
        computed = dict.fromkeys(admitted, 0)
        planned = zip(lists[at.PLAN_SLOT + bank, :n].tolist(), lists[at.PLAN_TOKENS + bank, :n].tolist(), strict=True)
        for slot, entry in planned:
            if slot in known:
                computed[slot] = int(req[slot, at.COMPUTED]) - entry // 2
        for slot in preempted:
            computed[slot] = int(req[slot, at.BEFORE])
        return TraceView(before, waiting, computed, preempted, int(head[at.FREE] + head[at.PLAN_GREW]))

    def _state(self, slot: int, state: TraceView) -> RequestState:
        row = self.req[slot].tolist()
        known = self.requests[self.ids[slot]]
        return RequestState(
            request_id=known.request.request_id,
            prompt_tokens=row[at.PROMPT],
            output_tokens=row[at.OUT],
            computed_tokens=state.computed.get(slot, row[at.COMPUTED]),
            max_output_tokens=known.request.max_output_tokens,
            priority=row[at.PRIORITY],
            arrival_s=known.arrival_s,
            preemptions=row[at.PREEMPTIONS] - (slot in state.preempted),
            adapter=known.request.adapter,
        )

    def cached_tokens(self, block_hashes: tuple[int, ...], prompt_tokens: int) -> int:
        """How many tokens of such a prompt the prefix cache holds now. The last token is always computed anew."""
        return self.cached_blocks(block_hashes, prompt_tokens)[0] * self.config.block_size_tokens

    def cached_blocks(self, block_hashes: tuple[int, ...], prompt_tokens: int) -> tuple[int, int]:
        """(Blocks of such a prompt that the prefix cache holds now, how many of them somebody uses)."""
        block = self.config.block_size_tokens
        usable = block_hashes[: (prompt_tokens - 1) // block]
        if (pool := self._pool) is None or not usable or not self.config.enable_prefix_caching:
            return 0, 0
        names = np.array(usable, dtype=np.uint64).view(np.int64)
        known, held = ENTRIES.known_prefix(self.head, pool[0], names)
        return int(known), int(held)

    def expected_blocks(self, block_hashes: tuple[int, ...], prompt_tokens: int, priority: int = 0) -> tuple[int, int]:
        """(Blocks of such a prompt that are cached when it is admitted, if it comes now, how many of them somebody then
        holds): those cached now, and what those ahead of it leave, who are taken to hold it still."""
        cached, held = self.cached_blocks(block_hashes, prompt_tokens)
        usable = block_hashes[: (prompt_tokens - 1) // self.config.block_size_tokens]
        if (pool := self._pool) is None or cached >= len(usable) or not self.config.enable_prefix_caching:
            return cached, held
        names = np.array(usable[: pool[2].shape[1]], dtype=np.uint64).view(np.int64)
        args = self.head, self.req, self.lists, pool, names, cached, len(self.requests), priority
        expected = int(ENTRIES.expected_prefix(*args))
        return (expected, expected) if expected > cached else (cached, held)

    def cached_names(self) -> tuple[at.Ints, at.Ints] | None:
        """(What each block is found by, 1 for each where that is a name of `SimRequest.block_hashes`, read as a signed
        number). Views, good until the next step; None while no prompt had names."""
        if (pool := self._pool) is None:
            return None
        blocks = self.config.num_blocks
        return pool[0][at.KEY, :blocks], pool[0][at.HAS_KEY, :blocks]

    @property
    def _pool(self) -> at.Arrays | None:
        """The arrays that tell blocks apart; None where they are counted."""
        return self._shared if self._shared is not None and len(self._shared[0]) else None

    @property
    def shares_blocks(self) -> bool:
        """Whether blocks are told one from another: some prompt here began, or might have begun, like another."""
        return self._pool is not None

    def count_shares(self, to_req: at.Ints, source: at.Ints) -> None:
        """Tells a what-if of this node, in which blocks are only counted, what is held by several."""
        if (pool := self._pool) is not None:
            ENTRIES.count_shares(self.head, self.req, self.lists, to_req, source, pool)

    def held_by_others(self, request_id: str) -> int:
        """Blocks that a request holds and others too; 0 where blocks are only counted, and if it is not here."""
        known = self.requests.get(request_id)
        if (pool := self._pool) is None or known is None:
            return 0
        blocks = _table_blocks(self.head, self.req, self.lists, pool, known.slot)
        return int(np.count_nonzero(pool[0][at.REFS, blocks] > 1))

    def shared_blocks(self, slots: at.Ints) -> at.Arrays | None:
        """Copies of the arrays that tell blocks apart, with rows for these slots in their order and one more; None
        where blocks are only counted."""
        if (arrays := self._pool) is None:
            return None
        pool, table, names = arrays
        rows = np.append(slots, 0)
        return pool.copy(), table[rows], names[rows]

    def store_blocks(self, block_hashes: tuple[int, ...]) -> None:
        """The prefix cache gets blocks of these names by other means than computing them, as if a request that had them
        had ended: free blocks hold them, as many as there are of those."""
        if self.config.enable_prefix_caching and block_hashes:
            names = np.array(block_hashes, dtype=np.uint64).view(np.int64)
            ENTRIES.store(self.head, self._kept_apart()[0], names)

    def _kept_apart(self) -> at.Arrays:
        """From the first request that may share blocks on, these are kept one by one."""
        if (pool := self._pool) is None:
            self._shared = pool = at.new_shared(self.config, len(self.ids))
            ENTRIES.build_pool(self.head, self.req, self.lists, pool)
        return pool

    def _name_blocks(self, slot: int, hashes: tuple[int, ...]) -> None:
        """Gives a request's blocks their names."""
        names = self._kept_apart()[2]
        row = np.array(hashes[: names.shape[1]], dtype=np.uint64).view(np.int64)
        names[slot, : len(row)] = row
        self.req[slot, at.HASHES] = len(row)

    def _begin_windows(self, running: Sequence[RequestState]) -> None:
        """What those that run have given back in window groups, by how far they are; the first slots are theirs."""
        config, ahead = self.config, int(self.config.async_scheduling)
        for slot, s in enumerate(running):
            last = 1 if s.output_tokens else min(config.max_num_batched_tokens, s.computed_tokens)
            settled = s.computed_tokens - last - ahead * last
            self.lists[at.LEFT_BEHIND, slot] = max(0, settled - config.window_tokens + 1) // config.block_size_tokens
            self.lists[at.UNDER_WAY, slot] = ahead * last

    def _grow(self) -> None:
        old = len(self.ids)
        capacity = 2 * old
        self.req = np.vstack((self.req, np.zeros((old, at.N_COLS), dtype=np.int64)))
        lists = self._new_lists(capacity)
        lists[:, : self.lists.shape[1]] = self.lists
        self.lists = lists
        self._log = self._new_log(capacity)
        self._times_s = np.zeros(len(self._log), dtype=np.float64)
        if (arrays := self._pool) is not None:
            pool, *tables = arrays
            table, names = (np.vstack((t, np.zeros_like(t))) for t in tables)
            self._shared = pool, table, names
        self.ids.extend([""] * old)
        self._free_slots.extend(range(capacity - 1, old - 1, -1))

    def _new_lists(self, capacity: int) -> at.Ints:
        return np.zeros((at.N_LISTS, at.list_width(capacity, self.config.block_size_tokens)), dtype=np.int64)

    def _new_log(self, capacity: int) -> at.Ints:
        return np.zeros((max(_ADVANCE_LOG_ROWS, at.log_rows(capacity)), at.N_LOG_COLS), dtype=np.int64)


def _check_queues(head: at.Ints, req: at.Ints, lists: at.Ints, shared: at.Arrays | None) -> None:
    most_pending = 1 + int(head[at.SPECULATIVE])
    spare = int(head[at.SPECULATIVE] + head[at.LOOKAHEAD])
    running = lists[at.RUNNING, : head[at.N_RUNNING]].tolist()
    waiting = lists[at.WAITING, : head[at.N_WAITING]].tolist()
    slots = running + waiting
    assert len(slots) == len(set(slots)), "a request stands in two places"
    assert len(running) <= head[at.MAX_SEQS], "more running than max_num_seqs"
    block = int(head[at.BLOCK])
    held = 0
    for slot in running:
        row = req[slot].tolist()
        least, most = (-(-(row[at.COMPUTED] + tokens) // block) * block for tokens in (0, spare))
        assert least <= row[at.CAPACITY] <= most, f"slot {slot}: blocks do not match its tokens"
        assert row[at.KEYED] <= row[at.COMPUTED], f"slot {slot}: blocks are named that are not computed"
        assert 0 <= row[at.PENDING] <= most_pending, f"slot {slot}: more tokens in flight than one step yields"
        assert row[at.SEGMENT] == -1, f"slot {slot} runs and has blocks in the free queue"
        left = int(lists[at.LEFT_BEHIND, slot])
        held += int(head[at.GROUPS]) * (row[at.CAPACITY] // block) - int(head[at.WINDOW_GROUPS]) * left
    assert all(req[s, at.COMPUTED] == 0 and req[s, at.CAPACITY] == 0 for s in waiting), "a waiting request holds blocks"
    assert not req[slots, at.GRANTED].any(), "a step was planned and not applied"
    free, total = int(head[at.FREE]), int(head[at.TOTAL_BLOCKS])
    assert free >= 0, "blocks were handed out that are not there"
    if shared is not None:
        _check_blocks(head, req, lists, running, shared)
        return
    assert held + free == total, f"{held} blocks held and {free} free are not {total}"
    owned = {s: int(req[s, at.SEGMENT]) for s in waiting if req[s, at.SEGMENT] >= 0}
    assert len(owned) == head[at.OWNED], "the count of cached requests is wrong"
    if owned:
        first, end = int(head[at.SEG_HEAD]), int(head[at.SEG_TAIL])
        counts = lists[at.SEG_COUNT, first:end]
        assert int(head[at.FRONT]) + int(counts.sum()) == free, "the free queue does not hold the free blocks"
        owners = {int(s): first + i for i, s in enumerate(lists[at.SEG_OWNER, first:end]) if s >= 0}
        assert owners == owned, "the free queue and the waiting requests disagree about cached blocks"


def _table_blocks(head: at.Ints, req: at.Ints, lists: at.Ints, shared: at.Arrays, slot: int) -> at.Ints:
    """Blocks that a slot holds, group by group."""
    rows = int(req[slot, at.CAPACITY] // head[at.BLOCK])
    groups = shared[1][slot].reshape(int(head[at.GROUPS]), -1)
    mask = int(head[at.WINDOW_MASK])
    left = [int(lists[at.LEFT_BEHIND, slot]) if mask >> group & 1 else 0 for group in range(len(groups))]
    return np.concatenate([row[first:rows] for row, first in zip(groups, left, strict=True)])


def _check_blocks(head: at.Ints, req: at.Ints, lists: at.Ints, running: list[int], shared: at.Arrays) -> None:
    pool, total = shared[0], int(head[at.TOTAL_BLOCKS])
    counts = [0] * total
    for slot in running:
        for block in _table_blocks(head, req, lists, shared, slot).tolist():
            counts[block] += 1
    assert counts == pool[at.REFS, :total].tolist(), "reference counts differ from what requests hold"
    queue: list[int] = []
    block = int(pool[at.NEXT, total])
    while block != total + 1 and len(queue) <= total:
        queue.append(block)
        block = int(pool[at.NEXT, block])
    assert sorted(queue) == [b for b in range(total) if counts[b] == 0], "the free queue does not hold the free blocks"
    assert len(queue) == head[at.FREE], "the free queue is not as long as it should be"
    keyed: list[int] = []
    for first in pool[at.BUCKETS].tolist():
        while first >= 0:
            keyed.append(first)
            first = int(pool[at.CHAIN, first])
    assert sorted(keyed) == np.flatnonzero(pool[at.HAS_KEY, :total]).tolist(), "a block cannot be found by its key"

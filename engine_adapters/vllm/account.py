"""What the readers of the trace know of the engine, kept beside it so that a snapshot always fits the deltas. Pure.

The engine's own lists cannot be sent as a snapshot: with asynchronous scheduling they already contain the next step
while this one runs. So the publisher keeps this account: it applies each finished step, drops what concerns requests
that are gone (a step may run on for one that ended or was aborted meanwhile), and turns the step into its delta.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Mapping, Sequence

import msgspec

from engine_adapters.vllm.frames import Delta, RequestRow, Snapshot, pack_keys
from engine_adapters.vllm.request_ids import own_request_id

_GHOST_STEPS = 4
"""Steps for which a request that is gone is remembered: no engine has more of them in flight."""


class Arrival(msgspec.Struct, frozen=True):
    """A request that entered the engine."""

    engine_id: str
    prompt_tokens: int
    max_output_tokens: int
    priority: int
    arrival_s: float
    adapter: str = ""
    """Name of its LoRA adapter; empty: none."""


class Output(msgspec.Struct, frozen=True):
    """What a step yielded for one request."""

    engine_id: str
    produced: int
    finished: bool


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One finished step as the engine's hooks saw it."""

    start_s: float
    end_s: float
    events: Sequence[Arrival | str]
    """Arrivals, and ids of aborted requests, since the step before, in order."""
    preempted: Sequence[str]
    admitted: Mapping[str, int]
    """Cached tokens of the requests that this step admitted."""
    scheduled: Mapping[str, int]
    """Tokens by request, in batch order."""
    drafted: Mapping[str, int] = {}
    """Drafts of the requests that had some, counted in `scheduled` too: what was wrong is not computed."""
    outputs: Sequence[Output]
    free_blocks: int


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's own lists, to start over from."""

    at_s: float
    running: Sequence[tuple[Arrival, int, int, int]]
    """(request, output tokens, computed tokens, preemptions)"""
    waiting: Sequence[tuple[Arrival, int, int, int]]
    free_blocks: int
    preemptions_total: int


class _Request:
    __slots__ = (
        "adapter",
        "arrival_s",
        "computed",
        "engine_id",
        "key",
        "max_output",
        "output",
        "preemptions",
        "priority",
        "prompt",
        "request_id",
    )  # fmt: skip

    def __init__(self, key: int, request_id: str, arrival: Arrival) -> None:
        self.key = key
        self.request_id = request_id
        self.engine_id = arrival.engine_id
        self.prompt = arrival.prompt_tokens
        self.max_output = arrival.max_output_tokens
        self.priority = arrival.priority
        self.arrival_s = arrival.arrival_s
        self.adapter = arrival.adapter
        self.output = 0
        self.computed = 0
        self.preemptions = 0

    def row(self) -> RequestRow:
        return RequestRow(
            self.key,
            self.request_id,
            self.prompt,
            self.output,
            self.computed,
            self.max_output,
            self.priority,
            self.arrival_s,
            self.preemptions,
            self.adapter,
        )


class Account:
    """The engine's queues as readers of its trace know them. Not thread-safe; one owner."""

    def __init__(self, *, by_priority: bool, free_blocks: int) -> None:
        self.seq = 0
        self.at_s = 0.0
        self.free_blocks = free_blocks
        self.preemptions_total = 0
        self._by_priority = by_priority
        self._next_key = 0
        self._running: dict[str, _Request] = {}
        self._waiting: dict[str, _Request] = {}
        self._names: set[str] = set()
        self._ghosts: dict[str, tuple[_Request, int]] = {}

    def __len__(self) -> int:
        return len(self._running) + len(self._waiting)

    def snapshot(self, config_at_s: float | None = None) -> Snapshot:
        """The account as a record; `at_s` is that of the last step unless given."""
        return Snapshot(
            self.seq,
            self.at_s if config_at_s is None else config_at_s,
            tuple([r.row() for r in self._running.values()]),
            tuple([r.row() for r in self._waiting.values()]),
            self.free_blocks,
            self.preemptions_total,
        )

    def idle(self, now_s: float) -> Delta:
        """An empty step: says that the engine has nothing to do and is alive."""
        self.seq += 1
        self.at_s = now_s
        return Delta(self.seq, now_s, 0.0, (), (), (), b"", (), (), self.free_blocks, (0, 0.0, 0, 0, 0))

    def restart(self, truth: Truth) -> None:
        """Starts over; the sequence number leaves a gap, so that readers ask for a snapshot."""
        self.seq += 2
        self.at_s = truth.at_s
        self.free_blocks = truth.free_blocks
        self.preemptions_total = truth.preemptions_total
        self._names.clear()
        self._ghosts.clear()
        for queue, rows in ((self._running, truth.running), (self._waiting, truth.waiting)):
            queue.clear()
            for arrival, output, computed, preemptions in rows:
                request = self._new(arrival)
                request.output, request.computed, request.preemptions = output, computed, preemptions
                queue[arrival.engine_id] = request

    def apply(self, step: Step) -> Delta | None:
        """The step's delta; None if nothing happened."""
        arrived, aborted = self._take_events(step.events)
        preempted = [r for r in [self._preempt(i) for i in step.preempted] if r is not None]
        produced = {o.engine_id: o.produced for o in step.outputs}
        keys = array("I")
        entries: list[tuple[int, int, int, int]] = []
        drafts: list[tuple[int, int]] = []
        prefill = prefill_seqs = decode = kv = 0
        work = 0.0
        running, waiting = self._running, self._waiting
        for engine_id, tokens in step.scheduled.items():
            request = running.get(engine_id)
            cached = 0
            if request is None and engine_id in waiting:
                request = running[engine_id] = waiting.pop(engine_id)
                cached = request.computed = step.admitted.get(engine_id, 0)
            gone = None if request is not None else self._ghosts.get(engine_id)
            seen = request or (gone[0] if gone else None)
            if seen is None:
                continue
            before = seen.computed
            if before >= seen.prompt and seen.prompt + seen.output - before <= 1:
                decode += 1
                kv += before + 1
                prefill += tokens - 1
            else:
                prefill += tokens
                prefill_seqs += 1
                work += tokens * (before + 0.5 * tokens)
            new = produced.get(engine_id, 0)
            if new and engine_id in step.drafted:
                tokens = new
            seen.computed = before + tokens
            seen.output += new
            if request is None:
                continue
            if engine_id in step.drafted:
                drafts.append((len(keys), step.drafted[engine_id]))
            if tokens != 1 or new != 1 or cached:
                entries.append((len(keys), tokens, new, cached))
            keys.append(request.key)
        finished = [r for r in [self._remove(o.engine_id) for o in step.outputs if o.finished] if r is not None]
        self._forget_ghosts()
        if not (arrived or aborted or preempted or step.scheduled or finished):
            return None
        self.seq += 1
        self.at_s = step.end_s
        self.free_blocks = step.free_blocks
        self.preemptions_total += len(preempted)
        return Delta(
            self.seq,
            step.start_s,
            step.end_s - step.start_s,
            tuple(arrived),
            tuple(aborted),
            tuple([r.key for r in preempted]),
            pack_keys(keys),
            tuple(entries),
            tuple([r.key for r in finished]),
            step.free_blocks,
            (prefill, work, prefill_seqs, decode, kv),
            tuple(drafts),
        )

    def _take_events(self, events: Sequence[Arrival | str]) -> tuple[list[RequestRow], list[int]]:
        arrived: dict[str, RequestRow] = {}
        aborted: list[int] = []
        for event in events:
            if isinstance(event, str):
                request = self._remove(event)
                if request is not None and arrived.pop(event, None) is None:
                    aborted.append(request.key)
                continue
            request = self._new(event)
            arrived[event.engine_id] = request.row()
            if self._by_priority:
                self._insert_by_priority(request, after_equals=True)
            else:
                self._waiting[event.engine_id] = request
        return list(arrived.values()), aborted

    def _new(self, arrival: Arrival) -> _Request:
        name = own_request_id(arrival.engine_id)
        if name in self._names:
            name = arrival.engine_id
        self._names.add(name)
        self._next_key += 1
        return _Request(self._next_key, name, arrival)

    def _preempt(self, engine_id: str) -> _Request | None:
        request = self._running.pop(engine_id, None)
        if request is None:
            return None
        request.computed = 0
        request.preemptions += 1
        if self._by_priority:
            self._insert_by_priority(request, after_equals=False)
        else:
            self._waiting = {engine_id: request, **self._waiting}
        return request

    def _insert_by_priority(self, request: _Request, *, after_equals: bool) -> None:
        rows = list(self._waiting.values())
        find = bisect.bisect_right if after_equals else bisect.bisect_left
        rows.insert(find(rows, _rank(request), key=_rank), request)
        self._waiting = {r.engine_id: r for r in rows}

    def _remove(self, engine_id: str) -> _Request | None:
        request = self._running.pop(engine_id, None) or self._waiting.pop(engine_id, None)
        if request is not None:
            self._names.discard(request.request_id)
            self._ghosts[engine_id] = (request, self.seq)
        return request

    def _forget_ghosts(self) -> None:
        if self._ghosts:
            oldest = self.seq - _GHOST_STEPS
            self._ghosts = {i: g for i, g in self._ghosts.items() if g[1] > oldest}


def _rank(request: _Request) -> tuple[int, float]:
    return (request.priority, request.arrival_s)

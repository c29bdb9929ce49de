"""The daemon's copy of the engine's scheduler, kept equal to it by the trace. Pure.

A snapshot sets it, every delta moves it one step on. Deltas that the snapshot already contains are ignored; a delta
that is not the next one is a gap: the mirror stays as it was, says so, and waits for a new snapshot.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Iterator

import msgspec

from simcore.trace import TraceDelta, TraceSnapshot
from simcore.types import EngineConfig, RequestState


class Applied(enum.Enum):
    """What became of a delta."""

    APPLIED = "applied"
    CONTAINED = "contained"
    """It was part of the snapshot already."""
    GAP = "gap"
    """At least one delta is missing: a new snapshot is needed."""


class MirrorRequest(msgspec.Struct, eq=False):
    """One request as the mirror holds it; changes with every step. Fields as in `RequestState`."""

    request_id: str
    prompt_tokens: int
    output_tokens: int
    computed_tokens: int
    max_output_tokens: int
    priority: int
    arrival_s: float
    preemptions: int
    adapter: str

    def state(self) -> RequestState:
        return RequestState(
            request_id=self.request_id,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            computed_tokens=self.computed_tokens,
            max_output_tokens=self.max_output_tokens,
            priority=self.priority,
            arrival_s=self.arrival_s,
            preemptions=self.preemptions,
            adapter=self.adapter,
        )


class NodeMirror:
    """Built from a snapshot. Not thread-safe; one owner."""

    config: EngineConfig
    seq: int
    at_s: float
    """Engine clock at the end of the last step seen."""
    free_blocks: int
    preemptions_total: int
    last_step_s: float
    """Duration of the last step seen; 0 right after a snapshot."""
    synchronised: bool
    """False from a gap to the next snapshot."""
    admitted: list[tuple[str, int]]
    """Who was admitted in the last step applied, and how many of its tokens were found cached."""
    _running: dict[str, MirrorRequest]
    _waiting: dict[str, MirrorRequest]
    _requests: dict[str, MirrorRequest]

    def __init__(self, snapshot: TraceSnapshot) -> None:
        self.version = 0
        """Grows with every change; for callers that keep what they computed from the state."""
        self._reset(snapshot)

    def reset(self, snapshot: TraceSnapshot) -> None:
        """Starts over from a new snapshot; a gap is closed."""
        self.version += 1
        self._reset(snapshot)

    def apply(self, delta: TraceDelta) -> Applied:
        """Moves the mirror one step on. After GAP nothing is applied until `reset`."""
        if delta.seq <= self.seq:
            return Applied.CONTAINED
        if not self.synchronised or delta.seq != self.seq + 1:
            self.synchronised = False
            return Applied.GAP
        for request_id in delta.aborted:
            self._remove(request_id)
        for state in delta.arrived:
            self._arrive(state)
        for request_id in delta.preempted:
            self._preempt(request_id)
        self.admitted = []
        for entry in delta.scheduled:
            request = self._requests[entry.request_id]
            if request.request_id not in self._running:
                del self._waiting[request.request_id]
                self._running[request.request_id] = request
                request.computed_tokens = entry.cached_tokens
                self.admitted.append((entry.request_id, entry.cached_tokens))
            request.computed_tokens += entry.tokens
            request.output_tokens += entry.produced
        for request_id in delta.finished:
            self._remove(request_id)
        self.seq = delta.seq
        self.at_s = delta.end_s
        self.free_blocks = delta.free_blocks
        self.preemptions_total += len(delta.preempted)
        self.last_step_s = delta.duration_s
        self.version += 1
        return Applied.APPLIED

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def running(self) -> Iterator[MirrorRequest]:
        """Running requests, in the scheduler's order."""
        return iter(self._running.values())

    def waiting(self) -> Iterator[MirrorRequest]:
        """Waiting requests, in the order in which they will be tried."""
        return iter(self._waiting.values())

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def snapshot(self) -> TraceSnapshot:
        """The state as a snapshot of the engine would show it."""
        return TraceSnapshot(
            seq=self.seq,
            at_s=self.at_s,
            config=self.config,
            running=tuple([r.state() for r in self._running.values()]),
            waiting=tuple([r.state() for r in self._waiting.values()]),
            free_blocks=self.free_blocks,
            preemptions_total=self.preemptions_total,
        )

    def _reset(self, snapshot: TraceSnapshot) -> None:
        self.config = snapshot.config
        self.seq = snapshot.seq
        self.at_s = snapshot.at_s
        self.free_blocks = snapshot.free_blocks
        self.preemptions_total = snapshot.preemptions_total
        self.last_step_s = 0.0
        self.admitted = []
        self.synchronised = True
        self._by_priority = snapshot.config.scheduling_policy == "priority"
        self._running = {r.request_id: _row(r) for r in snapshot.running}
        self._waiting = {r.request_id: _row(r) for r in snapshot.waiting}
        self._requests = {**self._running, **self._waiting}

    def _arrive(self, state: RequestState) -> None:
        # A snapshot since the last step shows it already, but if its id was aborted and came again, `aborted` has just
        # taken it out of its place among the other arrivals: they all line up anew.
        self._remove(state.request_id)
        self._requests[state.request_id] = row = _row(state)
        if self._by_priority:
            self._insert_by_priority(row, after_equals=True)
        else:
            self._waiting[state.request_id] = row

    def _preempt(self, request_id: str) -> None:
        row = self._running.pop(request_id)
        row.computed_tokens = 0
        row.preemptions += 1
        if self._by_priority:
            self._insert_by_priority(row, after_equals=False)
        else:
            self._waiting = {request_id: row, **self._waiting}

    def _insert_by_priority(self, row: MirrorRequest, *, after_equals: bool) -> None:
        rows = list(self._waiting.values())
        find = bisect.bisect_right if after_equals else bisect.bisect_left
        rows.insert(find(rows, (row.priority, row.arrival_s), key=lambda r: (r.priority, r.arrival_s)), row)
        self._waiting = {r.request_id: r for r in rows}

    def _remove(self, request_id: str) -> None:
        if self._requests.pop(request_id, None) is not None and self._running.pop(request_id, None) is None:
            del self._waiting[request_id]


def _row(state: RequestState) -> MirrorRequest:
    return MirrorRequest(
        state.request_id,
        state.prompt_tokens,
        state.output_tokens,
        state.computed_tokens,
        state.max_output_tokens,
        state.priority,
        state.arrival_s,
        state.preemptions,
        state.adapter,
    )

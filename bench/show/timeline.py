"""One simulated node as a timeline in Chrome's trace format, for ui.perfetto.dev or chrome://tracing. Pure.

Every engine step is a slice with its batch; every request a row of slices: waiting, prefill, decode, preempted. Beside
them run counters: running, waiting, free KV blocks. Format: "Trace Event Format" of the Chromium project.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from bench.measure.results import RequestResult
from bench.simcluster import NodeSpec
from simcore.node import SimNode, SimRequest
from simcore.trace import TraceDelta

_STEPS_ROW = 0
_US = 1e6


class PlacedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it reached the node."""

    at_s: float
    request: SimRequest


def placed_on(results: Iterable[RequestResult], node_id: str, *, network_one_way_s: float) -> list[PlacedRequest]:
    """What a run sent to one node, in order. Requests that never came that far are not there."""
    found = [
        PlacedRequest(
            at_s=row.arrival_s + (row.decision_s or 0.0) + network_one_way_s,
            request=SimRequest(
                request_id=row.request_id,
                prompt_tokens=row.prompt_tokens,
                output_tokens=row.output_tokens,
                max_output_tokens=row.output_tokens,
                priority=row.priority,
            ),
        )
        for row in results
        if row.node_id == node_id and row.output_tokens > 0
    ]
    return sorted(found, key=lambda placed: placed.at_s)


def steps_of(spec: NodeSpec, placed: Sequence[PlacedRequest]) -> Iterator[TraceDelta]:
    """The node's steps under these requests, one by one until all have ended."""
    node = SimNode(spec.node_id, spec.config, spec.step_time)
    coming = iter(placed)
    upcoming = next(coming, None)
    while node.has_work or upcoming is not None:
        while upcoming is not None and (not node.has_work or upcoming.at_s <= node.next_step_s):
            node.add(upcoming.request, upcoming.at_s)
            upcoming = next(coming, None)
        yield node.step(node.next_step_s)


def timeline(node_id: str, steps: Iterable[TraceDelta]) -> dict[str, Any]:
    """The JSON document: `{"traceEvents": [...]}`. Times are in microseconds of the run."""
    events: list[dict[str, Any]] = [
        _named("process_name", node_id),
        _named("thread_name", "engine steps", _STEPS_ROW),
    ]
    rows = _Rows(events)
    waiting = running = 0
    for step in steps:
        for state in step.arrived:
            rows.begin(state.request_id, "waiting", state.arrival_s, {"prompt_tokens": state.prompt_tokens})
        for request_id in step.aborted:
            rows.leave(request_id, step.start_s)
        for request_id in step.preempted:
            rows.begin(request_id, "preempted", step.start_s, {})
        for got in step.scheduled:
            phase = "decode" if got.produced and got.tokens == 1 else "prefill"
            if rows.phase(got.request_id) != phase:
                rows.begin(got.request_id, phase, step.start_s, {"cached_tokens": got.cached_tokens})
        for request_id in step.finished:
            rows.leave(request_id, step.end_s)
        batch = step.batch
        args = {**msgspec.to_builtins(batch), "preempted": len(step.preempted), "finished": len(step.finished)}
        name = "prefill + decode" if batch.prefill_tokens and batch.decode_seqs else "prefill"
        events.append(_slice(_STEPS_ROW, name if batch.prefill_tokens else "decode", step.start_s, step.end_s, args))
        running, waiting = rows.counts()
        for counter, value in (("running", running), ("waiting", waiting), ("free KV blocks", step.free_blocks)):
            events.append(_event("C", counter, step.end_s, args={counter: value}))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


class _Rows:
    """Requests on rows: one that has left gives its row to the next, so that there are as many as live at once."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events = events
        self._open: dict[str, tuple[int, str, float, dict[str, Any]]] = {}
        self._free: list[tuple[float, int]] = []
        """(since when, row)"""
        self._rows = 0

    def phase(self, request_id: str) -> str:
        held = self._open.get(request_id)
        return "" if held is None else held[1]

    def begin(self, request_id: str, phase: str, at_s: float, args: dict[str, Any]) -> None:
        row = self._close(request_id, at_s)
        if row is None:
            row = self._take_row(at_s)
        self._open[request_id] = (row, phase, at_s, args)

    def leave(self, request_id: str, at_s: float) -> None:
        row = self._close(request_id, at_s)
        if row is not None:
            self._free.append((at_s, row))

    def counts(self) -> tuple[int, int]:
        """(running, waiting)"""
        queued = sum(phase in ("waiting", "preempted") for _, phase, _, _ in self._open.values())
        return len(self._open) - queued, queued

    def _take_row(self, at_s: float) -> int:
        # A request that comes in the middle of a step comes before the ends that the step brings.
        for index, (since_s, row) in enumerate(self._free):
            if since_s <= at_s:
                del self._free[index]
                return row
        self._rows += 1
        self._events.append(_named("thread_name", f"requests {self._rows}", self._rows))
        return self._rows

    def _close(self, request_id: str, at_s: float) -> int | None:
        held = self._open.pop(request_id, None)
        if held is None:
            return None
        row, phase, begun_s, args = held
        self._events.append(_slice(row, phase, begun_s, at_s, {"request": request_id, **args}))
        return row


def _slice(row: int, name: str, start_s: float, end_s: float, args: dict[str, Any]) -> dict[str, Any]:
    return {**_event("X", name, start_s, row=row, args=args), "dur": max(0.0, end_s - start_s) * _US}


def _event(kind: str, name: str, at_s: float, *, row: int = _STEPS_ROW, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": kind, "name": name, "pid": 1, "tid": row, "ts": at_s * _US, "args": args}


def _named(what: str, name: str, row: int = _STEPS_ROW) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": 1, "tid": row, "args": {"name": name}}

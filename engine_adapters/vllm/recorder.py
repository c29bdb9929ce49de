"""Collects, in the engine's own thread, what each step did: a few references per step, nothing that grows with it.

Everything that takes time (matching outputs, features, encoding, sending) happens later in the publisher's thread.
The hooks of `scheduler` call this; a defect here switches the trace off with one line in the engine's log and never
reaches the engine.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from engine_adapters.vllm.account import Arrival, Truth

log = logging.getLogger("vllm.astrolabe")

MAX_QUEUED_STEPS = 2048
"""Steps on their way to a publisher that does not keep up; beyond them steps are dropped, and the account restarts."""


class RawStep:
    """A finished step, by reference to vLLM's own objects."""

    __slots__ = ("admitted", "alive", "drafted", "end_s", "events", "free_blocks", "kv_events", "outputs", "preempted",
                 "scheduled", "start_s")  # fmt: skip

    start_s: float
    end_s: float
    events: list[Arrival | str]
    preempted: list[str]
    admitted: dict[str, int]
    scheduled: dict[str, int]
    drafted: Iterable[str]
    outputs: Any
    free_blocks: int
    alive: int
    kv_events: list[Any]


class Sink(Protocol):
    """Where finished steps go. Must not block."""

    wants_truth: bool
    """The account no longer fits the engine: it wants to start over."""

    def put(self, item: RawStep | Truth) -> None: ...

    def backlog(self) -> int: ...


class _Planned:
    """A step that was scheduled and has not come back."""

    __slots__ = ("admitted", "grown_blocks", "output", "preempted", "start_s")

    def __init__(self, output: Any, start_s: float) -> None:
        self.output = output
        self.start_s = start_s
        self.admitted: dict[str, int] = {}
        self.preempted: list[str] = []
        self.grown_blocks = 0


class Recorder:
    """One per scheduler; all calls come from the engine's thread."""

    def __init__(self, scheduler: Any, sink: Sink) -> None:
        self.on = True
        self._scheduler = scheduler
        self._sink = sink
        self._pool = scheduler.kv_cache_manager.block_pool
        self._events: list[Arrival | str] = []
        self._preempted: list[str] = []
        self._kv_events: list[Any] = []
        self._planned: deque[_Planned] = deque()
        self._wall_to_engine_s = time.monotonic() - time.time()
        self._busy_since_s: float | None = None
        self._preemptions_total = 0
        self._running_before = 0
        self._preempted_between = 0
        self._free_before = 0
        self._began_s = 0.0

    def guarded(self, hook: Callable[..., None], *arguments: Any) -> None:
        """Runs a hook; a defect in it ends the trace, not the engine."""
        if not self.on:
            return
        try:
            hook(*arguments)
        except Exception:
            self.on = False
            log.exception("astrolabe: the trace stops here because of a defect in it; the engine goes on")

    def arrived(self, request: Any) -> None:
        self._events.append(self._arrival(request))

    def aborting(self, request_ids: Iterable[str] | None) -> None:
        known = self._scheduler.requests
        self._events.extend([i for i in (known if request_ids is None else request_ids) if i in known])

    def preempting(self, request: Any) -> None:
        self._preempted.append(request.request_id)

    def stored(self, events: list[Any]) -> None:
        self._kv_events.extend(events)

    def begin(self) -> None:
        """Before the engine plans a step."""
        self._began_s = time.monotonic()
        # Resets of the prefix cache preempt between steps.
        self._preempted_between = len(self._preempted)
        self._running_before = len(self._scheduler.running)
        self._free_before = self._pool.get_num_free_blocks()

    def planned(self, output: Any) -> None:
        """After it: who was admitted is the new tail of the running list (nobody is if somebody was preempted)."""
        step = _Planned(output, self._began_s)
        running = self._scheduler.running
        if len(running) > self._running_before and len(self._preempted) == self._preempted_between:
            tokens = output.num_scheduled_tokens
            for request in running[self._running_before :]:
                i = request.request_id
                step.admitted[i] = request.num_computed_tokens - tokens.get(i, 0)
        if self._preempted:
            step.preempted, self._preempted = self._preempted, []
        step.grown_blocks = self._free_before - self._pool.get_num_free_blocks()
        self._planned.append(step)

    def ended(self, output: Any, outputs: Any, at_s: float) -> None:
        """The step planned as `output` has come back; the scheduler has taken its tokens in."""
        planned = self._planned
        while planned and planned[0].output is not output:
            planned.popleft()
        if not planned:
            return
        step = planned.popleft()
        raw = RawStep()
        # A busy engine goes from step to step: what its loop does in between is part of the next one's duration.
        raw.start_s = step.start_s if self._busy_since_s is None else self._busy_since_s
        raw.end_s = at_s
        raw.events, self._events = self._events, []
        raw.kv_events, self._kv_events = self._kv_events, []
        raw.preempted, raw.admitted = step.preempted, step.admitted
        raw.scheduled = output.num_scheduled_tokens
        raw.drafted = output.scheduled_spec_decode_tokens
        raw.outputs = outputs
        # Steps in flight hold blocks already that this one does not know of.
        raw.free_blocks = self._pool.get_num_free_blocks() + sum([p.grown_blocks for p in planned])
        raw.alive = len(self._scheduler.requests)
        self._preemptions_total += len(step.preempted)
        self._busy_since_s = at_s if raw.alive or planned else None
        sink = self._sink
        if sink.backlog() > MAX_QUEUED_STEPS:
            sink.wants_truth = True
            return
        if sink.wants_truth:
            sink.wants_truth = False
            sink.put(self._truth(at_s))
            return
        sink.put(raw)

    def _arrival(self, request: Any) -> Arrival:
        return Arrival(
            request.request_id,
            request.num_prompt_tokens,
            request.max_tokens,
            request.priority,
            request.arrival_time + self._wall_to_engine_s,
        )

    def _truth(self, at_s: float) -> Truth:
        """The engine's own lists, less what the steps in flight have already entered there."""
        scheduler = self._scheduler
        in_flight: dict[str, int] = {}
        for step in self._planned:
            for i, tokens in step.output.num_scheduled_tokens.items():
                in_flight[i] = in_flight.get(i, 0) + tokens
        running = {id(r): r for r in scheduler.running}
        queues = [getattr(scheduler, n, ()) for n in ("kv_holding_waiting", "skipped_waiting", "waiting")]
        waiting = [r for queue in queues for r in queue if id(r) not in running]
        return Truth(
            at_s=at_s,
            running=[self._standing(r, in_flight) for r in running.values()],
            waiting=[self._standing(r, in_flight) for r in waiting],
            free_blocks=self._pool.get_num_free_blocks() + sum([p.grown_blocks for p in self._planned]),
            preemptions_total=self._preemptions_total,
        )

    def _standing(self, request: Any, in_flight: dict[str, int]) -> tuple[Arrival, int, int, int]:
        return (
            self._arrival(request),
            request.num_output_tokens,
            max(0, request.num_computed_tokens - in_flight.get(request.request_id, 0)),
            getattr(request, "num_preemptions", 0),
        )

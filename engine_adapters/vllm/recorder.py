"""Collects, in the engine's own thread, what each step did: a few references per step, nothing that grows with it.

Everything that takes time (matching outputs, features, encoding, sending) happens later in the publisher's thread.
The hooks of `scheduler` call this; a defect here switches the trace off with one line in the engine's log and never
reaches the engine.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from engine_adapters.vllm.account import Arrival, Truth

log = logging.getLogger("vllm.astrolabe")


class RawStep:
    """One step, by reference to vLLM's own objects: made when it is planned, complete when it has come back."""

    __slots__ = (
        "admitted",
        "alive",
        "cache_notes",
        "drafted",
        "end_s",
        "events",
        "free_blocks",
        "grown_blocks",
        "kv_events",
        "outputs",
        "plan",
        "preempted",
        "scheduled",
        "start_s",
    )

    plan: Any
    """vLLM's SchedulerOutput."""
    start_s: float
    end_s: float
    events: Sequence[Arrival | str]
    preempted: Sequence[str]
    admitted: Mapping[str, int]
    scheduled: Mapping[str, int]
    drafted: Mapping[str, Sequence[int]]
    outputs: Any
    """EngineCoreOutputs by client."""
    free_blocks: int
    grown_blocks: int
    """Blocks that the step took when it was planned."""
    alive: int
    kv_events: Sequence[Any]
    """vLLM's own, of what entered and left the prefix cache."""
    cache_notes: Sequence[Any]
    """Ours of the same (`cache_watch`)."""


class Sink(Protocol):
    """Where finished steps go. Must not block."""

    wants_truth: bool
    """The account no longer fits the engine: it wants to start over."""

    def put(self, item: RawStep | Truth) -> None: ...


_NOBODY: Mapping[str, int] = MappingProxyType({})


class StepRecorder:
    """Collects the steps of one scheduler; all calls come from the engine's thread."""

    def __init__(self, scheduler: Any, sink: Sink, *, free_blocks: Callable[[], int] | None = None) -> None:
        """`free_blocks`: how many KV blocks are free, where the scheduler's own pool does not say."""
        self.on = True
        self._scheduler = scheduler
        self._sink = sink
        self._free_blocks = free_blocks or scheduler.kv_cache_manager.block_pool.get_num_free_blocks
        self._events: list[Arrival | str] = []
        self._preempted: list[str] = []
        self.cache_notes: list[Any] = []
        """What has changed of the prefix cache since the last step (`cache_watch`); emptied in place."""
        self._kv_events: list[Any] = []
        self._planned: deque[RawStep] = deque()
        self._wall_to_engine_s = time.monotonic() - time.time()
        self._busy_since_s: float | None = None
        self._preemptions_total = 0
        self._running_before = 0
        self._preempted_between = 0
        self._free_before = 0
        self._began_s = 0.0

    def guarded(self, hook: Callable[..., None], *arguments: Any) -> None:
        """Runs a hook; a defect in it ends the trace, not the engine."""
        if self.on:
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
        self._free_before = self._free_blocks()

    def planned(self, plan: Any) -> None:
        """After it: who was admitted is the new tail of the running list (nobody is if somebody was preempted)."""
        raw = RawStep()
        raw.plan = plan
        raw.start_s = self._began_s
        raw.preempted = raw.kv_events = raw.cache_notes = raw.events = ()
        raw.admitted = _NOBODY
        running = self._scheduler.running
        if len(running) > self._running_before and len(self._preempted) == self._preempted_between:
            tokens = plan.num_scheduled_tokens
            raw.admitted = {
                r.request_id: r.num_computed_tokens - tokens.get(r.request_id, 0)
                for r in running[self._running_before :]
            }
        if self._preempted:
            raw.preempted, self._preempted = self._preempted, []
        raw.grown_blocks = self._free_before - self._free_blocks()
        self._planned.append(raw)

    def ended(self, plan: Any, outputs: Any, at_s: float) -> None:
        """The step planned so has come back; the scheduler has taken its tokens in."""
        planned = self._planned
        while planned and planned[0].plan is not plan:
            planned.popleft()
        if not planned:
            return
        raw = planned.popleft()
        # A busy engine goes from step to step: what its loop does in between is part of the next one's duration.
        if self._busy_since_s is not None:
            raw.start_s = self._busy_since_s
        raw.end_s = at_s
        if self._events:
            raw.events, self._events = self._events, []
        if self.cache_notes:
            raw.cache_notes = self.cache_notes.copy()
            self.cache_notes.clear()
        if self._kv_events:
            raw.kv_events, self._kv_events = self._kv_events, []
        raw.scheduled = plan.num_scheduled_tokens
        raw.drafted = plan.scheduled_spec_decode_tokens
        raw.outputs = outputs
        raw.free_blocks = self._free_blocks()
        # Steps in flight hold blocks already that this one does not know of.
        for later in planned:
            raw.free_blocks += later.grown_blocks
        raw.alive = len(self._scheduler.requests)
        if raw.preempted:
            self._preemptions_total += len(raw.preempted)
        self._busy_since_s = at_s if raw.alive or planned else None
        sink = self._sink
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
            lora.lora_name if (lora := getattr(request, "lora_request", None)) is not None else "",
        )

    def _truth(self, at_s: float) -> Truth:
        """The engine's own lists, less what the steps in flight have already entered there."""
        scheduler = self._scheduler
        in_flight: dict[str, int] = {}
        for step in self._planned:
            for i, tokens in step.plan.num_scheduled_tokens.items():
                in_flight[i] = in_flight.get(i, 0) + tokens
        running = {id(r): r for r in scheduler.running}
        queues = [getattr(scheduler, n, ()) for n in ("kv_holding_waiting", "skipped_waiting", "waiting")]
        waiting = [r for queue in queues for r in queue if id(r) not in running]
        return Truth(
            at_s=at_s,
            running=[self._standing(r, in_flight) for r in running.values()],
            waiting=[self._standing(r, in_flight) for r in waiting],
            free_blocks=self._free_blocks() + sum([p.grown_blocks for p in self._planned]),
            preemptions_total=self._preemptions_total,
        )

    def _standing(self, request: Any, in_flight: dict[str, int]) -> tuple[Arrival, int, int, int]:
        return (
            self._arrival(request),
            request.num_output_tokens,
            max(0, request.num_computed_tokens - in_flight.get(request.request_id, 0)),
            getattr(request, "num_preemptions", 0),
        )

"""Collects, in the engine's own thread, what each step did: a few references per step, nothing that grows with it.

Everything that takes time (who was admitted, matching outputs, features, encoding, sending) happens later in the
publisher's thread, by reference to objects that the engine does not change any more. The hooks of `scheduler` call
this; a defect here switches the trace off with one line in the engine's log and never reaches the engine.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from engine_adapters.vllm.account import Arrival, Truth

log = logging.getLogger("vllm.astrolabe")


class RawStep(msgspec.Struct, gc=False):
    """One step that has come back, by reference to vLLM's own objects."""

    plan: Any
    """vLLM's SchedulerOutput."""
    outputs: Any
    """EngineCoreOutputs by client."""
    start_s: float
    end_s: float
    free_blocks: int
    alive: int
    events: Sequence[Any] = ()
    """vLLM's requests that arrived, and ids of those aborted, since the step before, in order."""
    preempted: Sequence[str] = ()
    cache_notes: Sequence[Any] = ()
    """What entered and left the prefix cache (`cache_watch`)."""
    kv_events: Sequence[Any] = ()
    """vLLM's own of the same."""


class _Planned(msgspec.Struct, gc=False):
    """A step in flight."""

    plan: Any
    start_s: float
    preempted: Sequence[str]
    grown_blocks: int
    """Blocks that the step took when it was planned."""


class Sink(Protocol):
    """Where finished steps go. Must not block."""

    wants_truth: bool
    """The account no longer fits the engine: it wants to start over."""

    def put(self, item: RawStep | Truth) -> None: ...


_WALL_TO_ENGINE_S = time.monotonic() - time.time()


def arrival_of(request: Any) -> Arrival:
    """What the trace tells of one of vLLM's requests when it arrives."""
    return Arrival(
        request.request_id,
        request.num_prompt_tokens,
        request.max_tokens,
        request.priority,
        request.arrival_time + _WALL_TO_ENGINE_S,
        lora.lora_name if (lora := getattr(request, "lora_request", None)) is not None else "",
    )


class StepRecorder:
    """Collects the steps of one scheduler; all calls come from the engine's thread."""

    def __init__(self, scheduler: Any, sink: Sink, *, free_blocks: Callable[[], int] | None = None) -> None:
        """`free_blocks`: how many KV blocks are free, where the scheduler's own pool does not say."""
        self.on = True
        self._scheduler = scheduler
        self._sink = sink
        self._free_blocks = free_blocks or scheduler.kv_cache_manager.block_pool.get_num_free_blocks
        self._events: list[Any] = []
        self._preempted: list[str] = []
        self.cache_notes: list[Any] = []
        """What has changed of the prefix cache since the last step (`cache_watch`)."""
        self._kv_events: list[Any] = []
        self._planned: deque[_Planned] = deque()
        self._busy_since_s: float | None = None
        self._preemptions_total = 0
        self._free_before = 0
        self._began_s = 0.0

    def guarded(self, hook: Callable[..., None], *arguments: Any) -> None:
        """Runs a hook; a defect in it ends the trace, not the engine."""
        if self.on:
            try:
                hook(*arguments)
            except Exception:
                self.failed()

    def failed(self) -> None:
        """Ends the trace; called while the defect is handled."""
        self.on = False
        log.exception("astrolabe: the trace stops here because of a defect in it; the engine goes on")

    def arrived(self, request: Any) -> None:
        self._events.append(request)

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
        self._free_before = self._free_blocks()

    def planned(self, plan: Any) -> None:
        """After it."""
        # Resets of the prefix cache preempt between steps.
        preempted: Sequence[str] = ()
        if self._preempted:
            preempted, self._preempted = self._preempted, []
        grown_blocks = self._free_before - self._free_blocks()
        self._planned.append(_Planned(plan, self._began_s, preempted, grown_blocks))

    def ended(self, plan: Any, outputs: Any, at_s: float) -> None:
        """The step planned so has come back; the scheduler has taken its tokens in."""
        in_flight = self._planned
        while in_flight and in_flight[0].plan is not plan:
            in_flight.popleft()
        if not in_flight:
            return
        step = in_flight.popleft()
        free_blocks = self._free_blocks()
        # Steps in flight hold blocks already that this one does not know of.
        for later in in_flight:
            free_blocks += later.grown_blocks
        alive = len(self._scheduler.requests)
        # A busy engine goes from step to step: what its loop does in between is part of the next one's duration.
        start_s = step.start_s if self._busy_since_s is None else self._busy_since_s
        self._busy_since_s = at_s if alive or in_flight else None
        raw = RawStep(plan, outputs, start_s, at_s, free_blocks, alive)
        if self._events:
            raw.events, self._events = self._events, []
        if self.cache_notes:
            raw.cache_notes, self.cache_notes = self.cache_notes, []
        if self._kv_events:
            raw.kv_events, self._kv_events = self._kv_events, []
        if step.preempted:
            raw.preempted = step.preempted
            self._preemptions_total += len(step.preempted)
        sink = self._sink
        if sink.wants_truth:
            sink.wants_truth = False
            sink.put(self._truth(at_s))
            return
        sink.put(raw)

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
            arrival_of(request),
            request.num_output_tokens,
            max(0, request.num_computed_tokens - in_flight.get(request.request_id, 0)),
            getattr(request, "num_preemptions", 0),
        )

"""One simulated engine: requests go in, steps are run, tokens come out, with times from a step-time model.

No clock inside: `now_s` and `until_s` come from the caller, who also keeps them ascending. `step` runs one step and
tells all about it (the emulated engine publishes it as its trace); `advance` runs many at once and tells events only
(the simulated cluster).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from simcore.cost.step_time import StepTimeModel
from simcore.reference import ReferenceRequest, ReferenceScheduler, ReferenceStep
from simcore.trace import TraceDelta, TraceSnapshot
from simcore.types import EngineConfig, NodeLoad, RequestState


class SimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request with its true length: the engine finishes it exactly there."""

    request_id: str
    prompt_tokens: int
    output_tokens: int
    """At least 1."""
    max_output_tokens: int
    priority: int = 0


class NodeEvent(NamedTuple):
    """Something a request's owner would see. `at_s` is the end of the step that caused it."""

    kind: Literal["first_token", "finished", "preempted"]
    request_id: str
    at_s: float


class SimNode:
    """One engine. Methods that take a time must be called with times that do not run backwards."""

    def __init__(self, node_id: str, config: EngineConfig, step_time: StepTimeModel) -> None:
        self.node_id = node_id
        self.config = config
        self.step_time = step_time
        self.seq = 0
        """Number of steps run: the sequence number of the last delta."""
        self._scheduler = ReferenceScheduler(config)
        self._requests: dict[str, ReferenceRequest] = {}
        self._arrivals = 0
        self._free_at_s = 0.0
        self._woken_s = -math.inf
        self._arrived: list[RequestState] = []
        self._aborted: list[str] = []

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def next_step_s(self) -> float:
        """When the next step can begin: the end of the last one or the arrival that woke the node; inf if idle."""
        return max(self._free_at_s, self._woken_s) if self._requests else math.inf

    def add(self, request: SimRequest, now_s: float) -> None:
        """Puts a request at the end of the waiting queue.

        Raises ValueError for a duplicate id, for lengths under 1 token, and for a request that `max_model_len_tokens`
        or the KV blocks can never hold.
        """
        if request.request_id in self._requests:
            raise ValueError(f"{self.node_id}: request {request.request_id!r} is already here")
        check_fits(self.config, request)
        if not self._requests:
            self._woken_s = now_s
        state = ReferenceRequest(
            request_id=request.request_id,
            prompt_tokens=request.prompt_tokens,
            final_tokens=request.output_tokens,
            max_output_tokens=request.max_output_tokens,
            priority=request.priority,
            arrival_s=now_s,
            order=self._arrivals,
        )
        self._arrivals += 1
        self._requests[request.request_id] = state
        self._scheduler.add(state)
        self._arrived.append(_request_state(state))

    def abort(self, request_id: str) -> bool:
        """Removes a request in any state; its blocks are free before the next step. False if it is not here."""
        if self._requests.pop(request_id, None) is None:
            return False
        self._scheduler.abort(request_id)
        self._arrived = [a for a in self._arrived if a.request_id != request_id]
        self._aborted.append(request_id)
        return True

    def step(self, now_s: float) -> TraceDelta:
        """Plans and applies one step that begins at `now_s`; its tokens are visible at `end_s` of the delta.

        Raises ValueError when there is nothing to do.
        """
        if not self._requests:
            raise ValueError(f"{self.node_id}: no work, so no step at {now_s}")
        done = self._run(now_s)
        delta = TraceDelta(
            seq=self.seq,
            start_s=now_s,
            duration_s=self._free_at_s - now_s,
            arrived=tuple(self._arrived),
            aborted=tuple(self._aborted),
            preempted=done.preempted,
            scheduled=done.scheduled,
            finished=done.finished,
            free_blocks=done.free_blocks,
            batch=done.batch,
        )
        self._arrived.clear()
        self._aborted.clear()
        return delta

    def advance(self, until_s: float) -> list[NodeEvent]:
        """Runs every step that begins before `until_s`.

        Events are in time order and carry the end of their step, which may lie after `until_s`.
        """
        events: list[NodeEvent] = []
        while self.next_step_s < until_s:
            done = self._run(self.next_step_s)
            at_s = self._free_at_s
            events.extend(NodeEvent("preempted", r, at_s) for r in done.preempted)
            events.extend(NodeEvent("first_token", r, at_s) for r in done.first_tokens)
            events.extend(NodeEvent("finished", r, at_s) for r in done.finished)
        self._arrived.clear()
        self._aborted.clear()
        return events

    def snapshot(self, now_s: float) -> TraceSnapshot:
        """The whole state after the last step."""
        return TraceSnapshot(
            seq=self.seq,
            at_s=now_s,
            config=self.config,
            running=tuple(_request_state(r) for r in self._scheduler.running),
            waiting=tuple(_request_state(r) for r in self._scheduler.waiting),
            free_blocks=self._scheduler.blocks.free,
            preemptions_total=self._scheduler.preemptions_total,
        )

    def load(self, now_s: float, expected: Mapping[str, int] | None = None) -> NodeLoad:
        """Summary that heuristic policies score.

        `expected` gives total output tokens per request id where they are believed rather than known; a request that
        is missing there counts with its true length.
        """
        size = self.config.block_size_tokens
        unprocessed = 0
        for r in self._requests.values():
            total = r.final_tokens if expected is None else expected.get(r.request_id, r.final_tokens)
            unprocessed += max(0, r.prompt_tokens + total - r.computed_tokens)
        return NodeLoad(
            node_id=self.node_id,
            trace_seq=self.seq,
            state_age_s=0.0,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            free_blocks=self._scheduler.blocks.free,
            total_blocks=self.config.num_blocks,
            waiting_prompt_blocks=sum(-(-r.tokens // size) for r in self._scheduler.waiting),
            unprocessed_tokens=unprocessed,
            preemptions_total=self._scheduler.preemptions_total,
        )

    def copy(self) -> SimNode:
        """An independent node in the same state."""
        return copy.deepcopy(self)

    def check(self) -> None:
        """Raises AssertionError naming the broken invariant."""
        self._scheduler.check()
        here = {r.request_id for r in (*self._scheduler.running, *self._scheduler.waiting)}
        assert here == set(self._requests), "the requests known differ from the requests queued"

    def _run(self, start_s: float) -> ReferenceStep:
        done = self._scheduler.step()
        self.seq += 1
        self._free_at_s = start_s + self.step_time.seconds(done.batch)
        for request_id in done.finished:
            del self._requests[request_id]
        return done


def check_fits(config: EngineConfig, request: SimRequest) -> None:
    """Raises ValueError if the engine can never run this request to its end."""
    who = f"request {request.request_id!r}"
    if request.prompt_tokens < 1 or request.output_tokens < 1:
        raise ValueError(
            f"{who}: prompt and output must be >= 1 token, got {request.prompt_tokens} and {request.output_tokens}"
        )
    total = request.prompt_tokens + request.output_tokens
    if total > config.max_model_len_tokens:
        raise ValueError(f"{who}: {total} tokens exceed max_model_len_tokens {config.max_model_len_tokens}")
    # The last token produced is never computed, so it needs no slot.
    blocks = -(-(total - 1) // config.block_size_tokens)
    if blocks > config.num_blocks:
        raise ValueError(f"{who}: needs {blocks} KV blocks, the engine has {config.num_blocks}")


def _request_state(r: ReferenceRequest) -> RequestState:
    return RequestState(
        request_id=r.request_id,
        prompt_tokens=r.prompt_tokens,
        output_tokens=r.output_tokens,
        computed_tokens=r.computed_tokens,
        max_output_tokens=r.max_output_tokens,
        priority=r.priority,
        arrival_s=r.arrival_s,
        preemptions=r.preemptions,
    )

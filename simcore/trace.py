"""The trace: what an engine publishes about its scheduler. One snapshot on connect, then one delta per step.

Sequence numbers grow by one per delta. A snapshot carries the number of the last delta it contains, so the next delta
must be `snapshot.seq + 1`; anything else is a gap and the reader must ask for a new snapshot.
"""

from __future__ import annotations

import re

import msgspec

from simcore.types import EngineConfig, RequestState

_CHILD = re.compile(r"(.+)=\d+(?:-[\w-]*)?")


def child_id(request_id: str, place: str) -> str:
    """The name of a further request into which an engine has split a client's call (several prompts or answers): the
    first has the call's own. `place` begins with a number."""
    return f"{request_id}={place}"


def parent_id(request_id: str) -> str:
    """The call's name; for a request that is no child its own."""
    found = _CHILD.fullmatch(request_id)
    return found[1] if found else request_id


class StepBatch(msgspec.Struct, frozen=True):
    """The features of one step that its duration depends on (`simcore.cost.step_time`)."""

    prefill_tokens: int = 0
    """Prompt (or recomputed) tokens scheduled in requests that do not yet sample every step; and drafts."""
    prefill_work_tokens2: float = 0.0
    """Sum over prefill chunks of chunk * (context before it + chunk / 2): attention work in token pairs."""
    prefill_seqs: int = 0
    decode_seqs: int = 0
    decode_kv_tokens: int = 0
    """Sum over decoding requests of the KV tokens read (their context length)."""

    @property
    def total_tokens(self) -> int:
        return self.prefill_tokens + self.decode_seqs


class TraceSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole scheduler at a step boundary."""

    seq: int
    at_s: float
    """Engine clock."""
    config: EngineConfig
    running: tuple[RequestState, ...]
    """In the scheduler's own order (the last is preempted first under FCFS)."""
    waiting: tuple[RequestState, ...]
    """In the order in which they will be tried; preempted requests stand at the front."""
    free_blocks: int
    preemptions_total: int = 0


class Scheduled(msgspec.Struct, frozen=True):
    """Tokens that one request got in one step."""

    request_id: str
    tokens: int
    """Computed for it; of drafts those that were right."""
    produced: int
    """Output tokens that this step yields for it (0 while its prefill is not complete)."""
    cached_tokens: int = 0
    """Tokens found in the prefix cache when it was (re)admitted in this step."""
    drafts: int = 0
    """Drafts that were computed with its own next token."""


class TraceDelta(msgspec.Struct, frozen=True, kw_only=True):
    """One engine step, published when it has ended."""

    seq: int
    start_s: float
    """Engine clock at which the step began."""
    duration_s: float
    arrived: tuple[RequestState, ...] = ()
    """Requests that entered the waiting queue since the previous delta and are still there, in queue order. A snapshot
    taken in between shows them already."""
    aborted: tuple[str, ...] = ()
    """Requests removed since the previous delta, in whatever state they were, known to the reader or not. They apply
    before `arrived`: an id in both left and came back."""
    preempted: tuple[str, ...] = ()
    """Moved from running back to the front of waiting, in the order in which it happened."""
    scheduled: tuple[Scheduled, ...] = ()
    """In batch order; a waiting request that appears here has been admitted (appended to running)."""
    finished: tuple[str, ...] = ()
    """Requests whose last token this step produced; their blocks are free again."""
    free_blocks: int
    """After the step."""
    batch: StepBatch = StepBatch()

    @property
    def end_s(self) -> float:
        return self.start_s + self.duration_s


class CacheDelta(msgspec.Struct, frozen=True):
    """What entered and left an engine's prefix cache, by block names of `simcore.prefix`. Only some engines tell."""

    number: int
    """Counts these records, apart from the steps. Anything but the last one plus 1 is a gap, unless `cleared`."""
    cleared: bool
    """The cache is empty before `stored`: it was emptied, or this is all that is in it."""
    stored: tuple[int, ...]
    evicted: tuple[int, ...]
    """None of them is in `stored`."""


TraceItem = TraceSnapshot | TraceDelta | CacheDelta

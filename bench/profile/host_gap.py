"""What a device waits for between the steps of an engine that schedules asynchronously, read off a measured run.

A run's requests tell when the engine's steps ended: those in which a first or a last token came, and those after which
it took a request in. The scheduler's rules say which batches ran in between. What such a stretch took beyond the time
that the step-time model gives its batches is the host's: per step, and more before a step that prefills.

No I/O: `bench.profile.measured_run` reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from bench.profile.measured_run import MeasuredRequest
from simcore.cost.step_time import StepTimeModel
from simcore.node import SimNode
from simcore.trace import StepBatch
from simcore.types import EngineConfig

TAKEN_IN_S = 1.5e-3
"""An engine takes requests in so long after a step's end at the most."""
AT_ONCE_S = 1e-4
"""Times of one step's end differ by no more."""
RECENT_ENDS, MOST_DOUBTFUL = 20, 2
"""Of so many step ends of which requests tell, so many may be told differently."""
DECODE_STEPS = 3
"""Fewest steps of a stretch that tells of decoding: in shorter ones the times of a step's end weigh too much."""
PREFILL_STEPS = 3
"""Most steps of a stretch that tells of the one among them that prefills."""
FEWEST = 20
"""Fewest stretches of a kind."""
OUTLIER_DECODE_S, OUTLIER_PREFILL_S = 5e-3, 25e-3
"""Per step; the engine paused, or a step was counted wrongly."""


class Stretch(msgspec.Struct, frozen=True):
    """Steps between two ends that the run tells of."""

    seconds: float
    batches: tuple[StepBatch, ...]


class HostGap(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, and how many stretches they are the medians of."""

    gap_s: float
    gap_prefill_s: float
    decode_stretches: int
    prefill_stretches: int


def follow(requests: Sequence[MeasuredRequest], config: EngineConfig, step_time: StepTimeModel) -> list[Stretch]:
    """The run's steps, as long as its requests agree on when they ended: where they no longer do, other batches ran
    than are followed here. `step_time` need only tell one step from the next."""
    start_s = requests[0].queued_ts
    node = SimNode("followed", config, step_time)
    queue = sorted(requests, key=lambda r: (r.queued_ts, r.request_id))
    ends = {r.request_id: (r.first_token_ts - start_s, r.last_token_ts - start_s) for r in requests}
    begun: set[str] = set()
    stretches: list[Stretch] = []
    batches: list[StepBatch] = []
    agreed: list[bool] = []
    now_s = known_s = 0.0
    at = 0

    def known(end_s: float) -> None:
        nonlocal known_s
        if end_s > known_s:
            stretches.append(Stretch(end_s - known_s, tuple(batches)))
        known_s = end_s
        batches.clear()

    while at < len(queue) or node.has_work:
        if not node.has_work:
            now_s = known_s = max(now_s, queue[at].queued_ts - start_s)
            batches.clear()
        while at < len(queue) and queue[at].queued_ts - start_s <= now_s + TAKEN_IN_S:
            request, at = queue[at], at + 1
            node.add(request.simulated(), now_s)
        delta = node.step(now_s)
        batches.append(delta.batch)
        now_s = delta.end_s
        told = [ends[i][1] for i in delta.finished]
        for part in delta.scheduled:
            if part.produced and part.request_id not in begun:
                begun.add(part.request_id)
                told.append(ends[part.request_id][0])
        if told:
            agreed.append(max(told) - min(told) <= AT_ONCE_S)
            if agreed[-RECENT_ENDS:].count(False) > MOST_DOUBTFUL:
                break
            now_s = sorted(told)[len(told) // 2]
            if not all(agreed[-2:]):
                # What led to such an end, or comes from it, is not to be measured.
                known_s = now_s
                batches.clear()
            known(now_s)
        elif at < len(queue):
            taken_s = queue[at].queued_ts - start_s
            if abs(taken_s - now_s) < 0.5 * delta.duration_s and taken_s > known_s:
                now_s = taken_s
                known(now_s)
    return stretches


def host_gap(stretches: Sequence[Stretch], step_time: StepTimeModel) -> HostGap:
    """What the stretches took beyond the times of `step_time`, which is to hold the device's part alone.

    Raises ValueError when there are too few stretches.
    """
    decoding: list[tuple[float, int]] = []
    prefilling: list[tuple[float, int]] = []
    for stretch in stretches:
        n = len(stretch.batches)
        beyond_s = stretch.seconds - sum(step_time.seconds(batch) for batch in stretch.batches)
        prefills = sum(batch.prefill_seqs > 0 for batch in stretch.batches)
        if not prefills and n >= DECODE_STEPS and abs(beyond_s) < n * OUTLIER_DECODE_S:
            decoding.append((beyond_s / n, n))
        elif prefills == 1 and n <= PREFILL_STEPS:
            prefilling.append((beyond_s, n))
    if len(decoding) < FEWEST or len(prefilling) < FEWEST:
        raise ValueError(
            f"the run can be followed over {len(decoding)} stretches that decode and {len(prefilling)} that prefill; "
            f"{FEWEST} of each are needed"
        )
    decoding.sort()
    steps = np.cumsum([n for _, n in decoding])
    gap_s = decoding[int(np.searchsorted(steps, steps[-1] / 2))][0]
    more_s = [beyond_s - n * gap_s for beyond_s, n in prefilling]
    more_s = [s for s in more_s if abs(s) < OUTLIER_PREFILL_S]
    return HostGap(
        gap_s=max(0.0, gap_s),
        gap_prefill_s=max(0.0, float(np.median(more_s))),
        decode_stretches=len(decoding),
        prefill_stretches=len(more_s),
    )

"""The calibration experiment: a node whose hardware nobody has told of, learned from its trace, from wrong priors.

A simulated node with a hidden profile serves a workload. Its steps reach a learner as a real engine's would: with host
time that no profile knows of, noise on every duration, now and then a pause, and a change of speed in the
middle. At every step the model then in use predicts the next ones: its error there is what the experiment is about.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.workload.item import WorkloadItem
from predictor.core.step_learning import StepLearner
from simcore.cost.step_time import StepTimeModel, step_seconds
from simcore.node import SimNode, SimRequest
from simcore.trace import StepBatch
from simcore.types import EngineConfig

WINDOW_STEPS = 100
"""The error at a step is the median over this many next ones."""
BARS = ((0.10, 500), (0.05, 3000))
"""Error, and the steps within which it must be reached."""


MARKS_STEPS = (10, 50, 100, 500, 1000, 3000)


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """What the hidden node does beside its profile."""

    host_overhead_s: float = 0.002
    """Added to every step."""
    noise: float = 0.03
    """Standard deviation of the logarithm of each duration."""
    pause_share: float = 0.003
    """Share of steps that take 10 to 100 times as long."""
    change_at_step: int = 0
    """Step at which the speed changes; 0: never."""
    change_factor: float = 1.6
    """How much longer steps take from then on."""


class Trace(msgspec.Struct, frozen=True):
    """Steps of the hidden node, as a trace tells of them."""

    batches: list[StepBatch]
    seconds: list[float]


class LearningCurve(msgspec.Struct, frozen=True, kw_only=True):
    """How one prior was learned."""

    prior: str
    before: float
    """Median relative error of the prior over the run before the speed changed, had nothing been learned."""
    error: list[float]
    """Per step: median relative error over the next `WINDOW_STEPS`, of the model in use at that step, held still."""
    steps_to: dict[str, int | None]
    """Per bar, as `10%`: steps after which the error is below and stays there until the speed changes; None: never."""
    steps_to_again: dict[str, int | None]
    """The same, counted from the change of speed to the end."""
    final: float
    """Median relative error over the last tenth of the steps."""
    final_prefill: float | None
    """The same over those of them that prefill; None if none does."""
    at_steps: dict[int, float]
    """Error after so many steps, for tables."""
    versions: int
    """Models put into use."""
    speed_changes_seen: int
    cost_s_per_step: float
    """Time that learning took, per step."""


def record(
    items: Sequence[WorkloadItem],
    config: EngineConfig,
    profile: StepTimeModel,
    hardware: Hardware,
    *,
    steps: int,
    seed: int,
) -> Trace:
    """Runs the hidden node until it has done `steps` steps. Raises ValueError when the workload ends before."""
    hidden = msgspec.structs.replace(profile, constant_s=profile.constant_s + hardware.host_overhead_s)
    node = SimNode("hidden", config, hidden)
    rng = np.random.default_rng(seed)
    noise = np.exp(rng.normal(0.0, hardware.noise, steps))
    pauses = np.where(rng.random(steps) < hardware.pause_share, 10.0 ** rng.uniform(1.0, 2.0, steps), 1.0)
    speed = np.ones(steps)
    if hardware.change_at_step:
        speed[hardware.change_at_step :] = hardware.change_factor
    odds = (noise * pauses * speed).tolist()
    batches: list[StepBatch] = []
    seconds: list[float] = []
    waiting = iter(items)
    item = next(waiting, None)
    while len(batches) < steps:
        if not node.has_work and item is None:
            raise ValueError(f"the workload ends after {len(batches):,} steps of {steps:,}: give it more requests")
        while item is not None and (not node.has_work or item.arrival_s <= node.next_step_s):
            node.add(
                SimRequest(
                    request_id=item.request_id,
                    prompt_tokens=item.prompt_tokens,
                    output_tokens=item.output_tokens,
                    max_output_tokens=item.output_tokens,
                ),
                item.arrival_s,
            )
            item = next(waiting, None)
        delta = node.step(node.next_step_s)
        seconds.append(delta.duration_s * odds[len(batches)])
        batches.append(delta.batch)
    return Trace(batches, seconds)


def learn(trace: Trace, prior: StepTimeModel, *, name: str, change_at_step: int = 0) -> LearningCurve:
    """Predicts and then learns every step of the trace."""
    seconds = np.asarray(trace.seconds)
    learner = StepLearner(prior)
    in_use = [(0, prior)]
    spent_s = time.process_time()
    for step, (batch, duration_s) in enumerate(zip(trace.batches, trace.seconds, strict=True), start=1):
        learner.add(batch, duration_s)
        if learner.version != len(in_use) - 1:
            in_use.append((step, learner.model))
    spent_s = time.process_time() - spent_s
    n = len(seconds)
    error, off, prior_off = np.empty(0), np.empty(0), np.empty(0)
    for position, (begin, model) in enumerate(in_use):
        end = in_use[position + 1][0] if position + 1 < len(in_use) else n
        own = relative_errors(trace, model, begin, min(n, end + WINDOW_STEPS - 1))
        off = np.append(off, own[: end - begin])
        if begin <= n - WINDOW_STEPS or position == 0:
            error = np.append(error, running_median(own, WINDOW_STEPS)[: end - begin])
        if position == 0:
            prior_off = relative_errors(trace, model, 0, change_at_step or n)
    prefills = np.array([batch.prefill_tokens > 0 for batch in trace.batches])
    last = slice(n - max(1, n // 10), n)
    # The last window before the change would look beyond it.
    change = change_at_step or n
    first, then = error[: max(1, change - WINDOW_STEPS)], error[change:]
    marks = [m for m in MARKS_STEPS if m < len(first)]
    return LearningCurve(
        prior=name,
        before=float(np.median(prior_off)),
        error=error.tolist(),
        steps_to={_percent(bar): steps_below(first, bar) for bar, _ in BARS},
        steps_to_again={_percent(bar): steps_below(then, bar) for bar, _ in BARS} if change < n else {},
        final=float(np.median(off[last])),
        final_prefill=float(np.median(off[last][prefills[last]])) if prefills[last].any() else None,
        at_steps={m: float(error[m]) for m in marks},
        versions=len(in_use) - 1,
        speed_changes_seen=learner.speed_changes,
        cost_s_per_step=spent_s / n,
    )


def relative_errors(trace: Trace, model: StepTimeModel, begin: int, end: int) -> NDArray[np.float64]:
    """(end - begin,) of |predicted - actual| / actual."""
    packed = model.pack()
    predicted = [
        step_seconds(
            packed,
            b.total_tokens,
            b.prefill_work_tokens2,
            b.decode_kv_tokens,
            b.prefill_seqs + b.decode_seqs,
            b.prefill_seqs,
        )
        for b in trace.batches[begin:end]
    ]
    actual = np.asarray(trace.seconds[begin:end])
    return np.abs(np.asarray(predicted) - actual) / actual


def running_median(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """(len - window + 1,) medians of `window` values from each one on; of all when there are fewer."""
    if len(values) <= window:
        return np.array([float(np.median(values))])
    medians: NDArray[np.float64] = np.median(np.lib.stride_tricks.sliding_window_view(values, window), axis=1)
    return medians


def steps_below(error: NDArray[np.float64], bar: float) -> int | None:
    """First step from which on the error never reaches the bar again; None if it ends above."""
    above = np.flatnonzero(error >= bar)
    if not len(above):
        return 0
    first = int(above[-1]) + 1
    return first if first < len(error) else None


def _percent(share: float) -> str:
    return f"{share:.0%}"

"""Learns a node's step-time model from its trace alone: every step carries its batch and its duration. Pure.

Starts from a prior, right or wrong. First one speed for all terms (a median: right after a handful of steps, however
wrong the prior); then a multiplier for every term of the model, by a non-negative least squares fit of relative errors
with soft-L1 loss, drawn weakly towards the prior at that speed where the trace says nothing (`step_terms`).

The fit sees the latest steps of every kind of batch, by size, so that what was learned of long prompts is not forgotten
while the node only decodes. A change of the hardware's speed shows as an error of one sign that a new fit cannot
explain; then older steps are dropped and the model goes on from its own shape at the new speed.

The learned model serves only when its error on steps that it had not seen is small, and only while it is not worse than
the prior: rubbish in the trace leaves the prior where it was.

A fit is spread over the steps that follow: each `add` does one slice of it, so that none keeps its caller's event loop
for long.
"""

from __future__ import annotations

import math
from collections.abc import Generator

import msgspec
import numpy as np
from numpy.typing import NDArray

from predictor.core.step_terms import SECONDS, SEQS, TOKENS, WORK, Floats, Quadratic, StepTerms
from simcore.cost.step_time import StepTimeModel
from simcore.trace import StepBatch

SHORTEST_S = 1e-6
LONGEST_S = 3600.0
"""Durations beyond are no steps: a clock that was set, a machine that slept."""

FIRST_BLOCK_STEPS = 4
BLOCK_STEPS = 32
"""Steps are digested in blocks; the first ones are shorter, each as long as all before it."""
SETTLED_ERROR = 0.05
SETTLED_FIT_STEPS = 128
"""While the error of each block is below the first, this many steps pass between two fits."""

KINDS = 2
"""Steps that only decode, steps that prefill."""
SIZES = 9
"""Powers of two: sequences of a step that decodes, tokens of one that prefills (in units of PREFILL_UNIT_TOKENS)."""
PREFILL_UNIT_TOKENS = 16
KEPT_STEPS = 64
"""Latest steps kept of each kind and size."""
HALF_LIFE_STEPS = 4000.0
"""Age at which a step counts half."""

PRIOR_SPREAD = 1.0
"""How far each multiplier is thought to be from the prior's (a ratio, one standard deviation)."""
REWEIGHTINGS = 4
SMALLEST_SPREAD = 0.01
"""Relative errors below count as noise of the engine."""

RECENT_STEPS = 64
"""Latest steps over which errors are judged."""
CONFIDENT_ERROR = 0.25
WORSE_THAN_PRIOR = 1.1
MOVED = 0.01
"""Mean relative change of the predicted step times from which on a new model is worth throwing forecasts away."""
SPEED_CHANGE = 0.1
SPEED_CHANGE_BLOCKS = 2


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the step times at one moment."""

    model: StepTimeModel
    """The prior itself until something better is known."""
    version: int
    """Grows when the model has moved enough to matter."""
    is_learned: bool
    """False: `model` is the prior."""
    error: float
    """Median of |predicted - actual| / actual of `model` over the last steps, before it had seen them; nan without."""
    prior_error: float
    """Median relative error of the prior over the same steps."""
    steps: int
    """Steps learned from (a count)."""
    speed_changes: int
    """Times that the hardware's speed has changed (a count)."""


class StepLearner:
    """One node's step times. Not thread-safe; one owner. Deterministic: the same steps give the same model."""

    def __init__(self, prior: StepTimeModel) -> None:
        self.prior = prior
        self.steps = 0
        self.ignored = 0
        """Observations that cannot be steps (a count)."""
        self.speed_changes = 0
        self._terms = StepTerms(prior)
        prior_v = self._terms.multipliers
        self._anchor = prior_v
        """Where multipliers are drawn to."""
        self._working = prior_v
        self._served = prior_v
        self._is_learned = False
        self._version = 0
        self._model = prior
        self._pending: list[tuple[float, ...]] = []
        """Observations, as `StepTerms.columns` takes them."""
        self._work: Generator[None, None, None] | None = None
        """The slices of a digestion that are still to do."""
        self._block_steps = FIRST_BLOCK_STEPS
        self._fitted = 0
        slots = KINDS * SIZES * KEPT_STEPS
        self._rows = np.zeros((slots, len(self._terms)))
        """Columns over actual seconds: a right model's row sums to 1."""
        self._at_step = np.full(slots, -1, dtype=np.int64)
        """Number of the step that a row holds; -1: none."""
        self._kept = [0] * (KINDS * SIZES)
        self._off = np.zeros(0)
        self._prior_off = np.zeros(0)
        self._served_off = np.zeros(0)
        """Relative predictions less 1 over the last steps, made before each was seen."""
        self._astray: list[int] = []
        """Sign of each of the last blocks whose error is all on one side."""
        self._astray_since = 0

    def add(self, batch: StepBatch, duration_s: float) -> None:
        """One step of the trace. What cannot be a step is ignored: no tokens, a duration that is no time."""
        tokens, work, kv = batch.total_tokens, batch.prefill_work_tokens2, batch.decode_kv_tokens
        if not (SHORTEST_S <= duration_s <= LONGEST_S and tokens > 0 and 0.0 <= work < math.inf and kv >= 0):
            self.ignored += 1
            return
        seqs = batch.prefill_seqs + batch.decode_seqs
        self._pending.append((tokens, work, kv, seqs, batch.prefill_seqs, duration_s))
        if self._work is None and len(self._pending) >= self._block_steps:
            self._work = self._digest()
        if self._work is not None:
            try:
                next(self._work)
            except StopIteration:
                self._work = None

    @property
    def version(self) -> int:
        """Changes only when the model has moved enough to matter."""
        return self._version

    @property
    def model(self) -> StepTimeModel:
        """The best model known now: the prior or a learned one."""
        return self._model

    def learned(self) -> Learned:
        """Model, version and how far both can be trusted."""
        return Learned(
            model=self._model,
            version=self._version,
            is_learned=self._is_learned,
            error=_error(self._served_off) if len(self._served_off) else math.nan,
            prior_error=_error(self._prior_off) if len(self._prior_off) else math.nan,
            steps=self.steps,
            speed_changes=self.speed_changes,
        )

    # --- inside -------------------------------------------------------------------------------------------------------

    def _digest(self) -> Generator[None, None, None]:
        observed = np.array(self._pending, dtype=np.float64)
        self._pending.clear()
        began = self.steps
        self.steps += len(observed)
        rows = self._terms.columns(observed) / observed[:, SECONDS, None]
        self._off = _appended(self._off, rows @ self._working - 1.0)
        self._served_off = _appended(self._served_off, rows @ self._served - 1.0)
        self._prior_off = _appended(self._prior_off, rows @ self._terms.multipliers - 1.0)
        self._keep(observed, rows, began)
        settled = self.steps >= 8 * BLOCK_STEPS and _error(self._off[-len(observed) :]) < SETTLED_ERROR
        self._block_steps = min(BLOCK_STEPS, self.steps)
        if not settled or self.steps - self._fitted >= SETTLED_FIT_STEPS:
            yield
            yield from self._fit(rows, began)
            self._fitted = self.steps
        else:
            self._astray.clear()
        self._serve()

    def _keep(self, observed: Floats, rows: Floats, began: int) -> None:
        """Puts each row in the place of the oldest of its kind and size."""
        prefills = observed[:, WORK] > 0.0
        size = np.where(prefills, observed[:, TOKENS] / PREFILL_UNIT_TOKENS, observed[:, SEQS])
        power = np.clip(np.log2(np.maximum(size, 1.0)).astype(np.int64), 0, SIZES - 1)
        kept = self._kept
        slots = []
        for stratum in (prefills * SIZES + power).tolist():
            slots.append(stratum * KEPT_STEPS + kept[stratum] % KEPT_STEPS)
            kept[stratum] += 1
        # Of several rows for one slot the last one stays, as it should.
        self._rows[slots] = rows
        self._at_step[slots] = np.arange(began, self.steps)

    def _fit(self, newest: Floats, began: int) -> Generator[None, None, None]:
        here = self._at_step >= 0
        rows = self._rows[here]
        if self.steps < BLOCK_STEPS:
            self._anchor = self._working = _speed(rows, self._terms.multipliers) * self._terms.multipliers
            return
        if not self.speed_changes:
            self._anchor = _speed(rows, self._terms.multipliers) * self._terms.multipliers
        before = self._working
        self._working = yield from self._solved(rows, self._at_step[here])
        sign = self._side(newest, before, self._working)
        if sign == 0 or (self._astray and self._astray[-1] != sign):
            self._astray.clear()
        if sign == 0:
            return
        if not self._astray:
            self._astray_since = began
        self._astray.append(sign)
        if len(self._astray) >= SPEED_CHANGE_BLOCKS:
            yield from self._start_over()

    def _side(self, newest: Floats, before: Floats, after: Floats) -> int:
        """+1 or -1: the newest steps are all longer or shorter than the model says, before and after it has seen them;
        0 when not."""
        old, new = float(np.median(newest @ before)), float(np.median(newest @ after))
        if max(old, new) < 1.0 - SPEED_CHANGE:
            return 1
        if min(old, new) > 1.0 + SPEED_CHANGE:
            return -1
        return 0

    def _start_over(self) -> Generator[None, None, None]:
        """The hardware's speed has changed: only the steps since count, and the shape that was known before."""
        self.speed_changes += 1
        self._at_step[self._at_step < self._astray_since] = -1
        self._astray.clear()
        here = self._at_step >= 0
        rows = self._rows[here]
        basis = self._served if self._is_learned else self._terms.multipliers
        self._anchor = _speed(rows, basis) * basis
        self._working = yield from self._solved(rows, self._at_step[here])
        self._off = (rows @ self._working - 1.0)[-RECENT_STEPS:]

    def _solved(self, rows: Floats, at_step: NDArray[np.int64]) -> Generator[None, None, Floats]:
        """Multipliers that bring the rows' sums close to 1; a slice per reweighting."""
        anchor = self._anchor
        age = np.exp2((at_step - self.steps) / HALF_LIFE_STEPS)
        # In units of the anchor's speed the pull is the same for a prior that is far off.
        speed = float(anchor[self._terms.multipliers > 0].mean()) if anchor.any() else 1.0
        speed = speed or 1.0
        v = self._working
        for _ in range(REWEIGHTINGS):
            error = rows @ v - 1.0
            spread = max(SMALLEST_SPREAD, 1.4826 * float(np.median(np.abs(error))))
            weighted = rows * (age / np.sqrt(1.0 + (error / spread) ** 2))[:, None]
            gram = weighted.T @ rows
            pull = (spread / (PRIOR_SPREAD * speed)) ** 2
            gram[np.diag_indices_from(gram)] += pull
            last, v = v, Quadratic(gram, weighted.sum(axis=0) + pull * anchor).minimum_nonnegative(v)
            if np.abs(rows @ (v - last)).max() < MOVED * 0.1:
                break
            yield
        return v

    def _serve(self) -> None:
        """Decides which model others get."""
        prior_error, error = _error(self._prior_off), _error(self._off)
        if self._is_learned and _error(self._served_off) > WORSE_THAN_PRIOR * prior_error and error > prior_error:
            self._publish(self._terms.multipliers, is_learned=False)
            return
        if error > min(CONFIDENT_ERROR, prior_error):
            return
        if self._moved() > MOVED:
            self._publish(self._working, is_learned=True)

    def _moved(self) -> float:
        """How far the working model's step times are from those of the served one: mean relative difference over what
        the window holds."""
        rows = self._rows[self._at_step >= 0]
        return float(np.mean(np.abs(rows @ (self._working - self._served)) / np.maximum(rows @ self._served, 1e-12)))

    def _publish(self, multipliers: Floats, *, is_learned: bool) -> None:
        self._served = multipliers
        self._is_learned = is_learned
        self._version += 1
        if is_learned:
            self._served_off = self._off
            self._model = self._terms.model(multipliers, source=f"learned from {self.steps} steps of the trace")
        else:
            self._served_off = self._prior_off
            self._model = self.prior


def _error(off: Floats) -> float:
    return float(np.median(np.abs(off)))


def _appended(ring: Floats, new: Floats) -> Floats:
    return np.concatenate((ring, new))[-RECENT_STEPS:]


def _speed(rows: Floats, multipliers: Floats) -> float:
    """Factor by which the multipliers' step times are to be taken to be right in the median."""
    predicted = float(np.median(rows @ multipliers))
    return 1.0 / predicted if predicted > 0.0 else 1.0

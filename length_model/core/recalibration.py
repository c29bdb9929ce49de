"""Corrects a model's beliefs from what really came, online. Pure: no clock, no lock; the caller says what happened.

If the model is right, the cumulated probability that it gave to the true length (the probability integral transform,
PIT) is uniform. Where it is not, its own distribution G turns F into a calibrated one, G(F) (Kuleshov, Fenner and
Ermon, "Accurate Uncertainties for Deep Learning Using Calibrated Regression", 2018). G is estimated per model and
class by Kaplan-Meier on the PIT scale, so that an answer that was cut says only "at least this".

Drift: a window of the last answers, dropped down to its recent part when that part looks different. That test is one of
survival analysis, too (supremum of the generalized Wilcoxon process: Fleming, Harrington and O'Sullivan, "Supremum
versions of the log-rank and generalized Wilcoxon statistics", 1987), so that a lower limit, which cuts more answers, is
not taken for shorter ones.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from length_model.core.distribution import Floats, Ints, bucket_of, cdf
from length_model.core.query import Key

KNOTS = 20
"""Pieces of the correction G."""

IDENTITY: Floats = np.linspace(0.0, 1.0, KNOTS + 1)
"""The correction G where nothing is to be corrected."""

WINDOW = 1024
"""Answers remembered per model and class."""

RECENT = 128
"""The part of the window that a change is looked for in."""

REFIT_EVERY = 16
"""Answers between two estimates of G."""

TRUST_SAMPLES = 100.0
"""Answers at which the estimate counts as much as "the model is right"."""

SIGNIFICANCE = 1e-3
"""Significance level of the test that declares a drift."""

_BOUND = NormalDist().inv_cdf(1 - SIGNIFICANCE / 4)
"""What the supremum of a Brownian motion's absolute value on [0, 1] passes that rarely."""

LEAST_ENDINGS = 16
"""Answers of the recent part that must have ended by themselves, for anything to be said of it."""

MOST_GROUPS = 256
"""Models and classes kept; the least recently used goes."""


def pits(edges: Ints, pmf: Floats, tokens: Ints, censored: NDArray[np.bool_]) -> Floats:
    """[n] cumulated probability of each length: half its own probability in for a finished answer (no bias from
    whole tokens), everything below it for a cut one."""
    upto, below = cdf(edges, pmf, tokens), cdf(edges, pmf, np.asarray(tokens) - 1)
    return np.where(censored, below, (upto + below) / 2)


def knots_from_pits(pits: Floats, censored: NDArray[np.bool_], prior_weight: float = TRUST_SAMPLES) -> Floats:
    """G at 0, 1/KNOTS, ... 1: Kaplan-Meier over the PITs, mixed with the identity as if `prior_weight` more uniform
    answers had been seen. Ascends strictly from 0 to 1."""
    if len(pits) == 0:
        return IDENTITY
    place = np.clip(pits, 0, 1) * KNOTS
    cell = np.clip(place.astype(np.int64), 0, KNOTS - 1)
    ended = np.bincount(cell[~censored], minlength=KNOTS).astype(np.float64) + prior_weight / KNOTS
    cut = np.bincount(cell[censored], minlength=KNOTS).astype(np.float64)
    # A cut answer was at risk in the part of its cell before the cut only.
    missed = np.bincount(cell[censored], weights=(cell + 1 - place)[censored], minlength=KNOTS)
    reached = (ended + cut)[::-1].cumsum()[::-1] - missed
    survival = np.cumprod(1 - np.clip(ended / reached, 0.0, 1.0))
    knots = np.concatenate([[0.0], 1 - survival])
    knots[-1] = 1.0
    return np.maximum.accumulate(np.clip(knots, 0.0, 1.0))


def looks_different(recent: Floats, recent_cut: NDArray[np.bool_], older: Floats, older_cut: NDArray[np.bool_]) -> bool:
    """Whether two samples of PITs, some of them cut, come from different distributions, at `SIGNIFICANCE`."""
    if min(len(recent), len(older)) < RECENT // 2 or (~recent_cut).sum() < LEAST_ENDINGS:
        return False
    ended = np.concatenate([recent[~recent_cut], older[~older_cut]])
    at, endings = np.unique(ended, return_counts=True)
    own = np.bincount(np.searchsorted(at, recent[~recent_cut]), minlength=len(at))
    own_at_risk = len(recent) - np.searchsorted(np.sort(recent), at)
    at_risk = own_at_risk + len(older) - np.searchsorted(np.sort(older), at)
    share = own_at_risk / at_risk
    # Weighed by how many live to see it: early differences are not lost among late ones that make up for them.
    weight = np.concatenate([[1.0], np.cumprod(1 - endings / at_risk)[:-1]])
    surprise = np.abs(np.cumsum(weight * (own - endings * share))).max()
    variance = (weight**2 * endings * share * (1 - share) * (at_risk - endings) / np.maximum(at_risk - 1, 1)).sum()
    return bool(surprise > _BOUND * math.sqrt(variance))


class GroupCalibration:
    """The PITs of one model and class, and the correction that follows from them."""

    def __init__(self) -> None:
        self._pits: deque[float] = deque(maxlen=WINDOW)
        self._cut: deque[bool] = deque(maxlen=WINDOW)
        self._since_fit = 0
        self.knots: Floats = IDENTITY
        self.drifts = 0
        """Times the window was cut because answers had changed."""

    def __len__(self) -> int:
        return len(self._pits)

    def add(self, pit: float, censored: bool) -> None:
        """Raises ValueError unless 0 <= pit <= 1."""
        if not 0.0 <= pit <= 1.0:
            raise ValueError(f"a cumulated probability lies in [0, 1], got {pit}")
        self._pits.append(pit)
        self._cut.append(censored)
        self._since_fit += 1
        if self._since_fit >= REFIT_EVERY:
            self._refit()

    def _refit(self) -> None:
        self._since_fit = 0
        values = np.fromiter(self._pits, np.float64, len(self._pits))
        censored = np.fromiter(self._cut, np.bool_, len(self._cut))
        if looks_different(values[-RECENT:], censored[-RECENT:], values[:-RECENT], censored[:-RECENT]):
            self.drifts += 1
            values, censored = values[-RECENT:], censored[-RECENT:]
            self._pits = deque(values.tolist(), WINDOW)
            self._cut = deque(censored.tolist(), WINDOW)
        self.knots = knots_from_pits(values, censored)


class Recalibrator:
    """Corrections per model and class; a group seen too rarely uses its model's."""

    def __init__(self, most_groups: int = MOST_GROUPS) -> None:
        self._groups: OrderedDict[Key, GroupCalibration] = OrderedDict()
        self._most = most_groups

    def observe(self, key: Key, pit: float, censored: bool) -> None:
        for group in dict.fromkeys((key, (key[0], ""))):
            calibration = self._groups.setdefault(group, GroupCalibration())
            self._groups.move_to_end(group)
            calibration.add(pit, censored)
        while len(self._groups) > self._most:
            self._groups.popitem(last=False)

    def knots(self, key: Key) -> Floats:
        """[KNOTS + 1]: the correction for this group; the identity when nothing is known."""
        group = self._groups.get(key)
        if group is None or len(group) < REFIT_EVERY:
            group = self._groups.get((key[0], ""))
        return IDENTITY if group is None else group.knots

    def drifts(self) -> int:
        """Times that answers of some group were found to have changed."""
        return sum(group.drifts for group in self._groups.values())


def pit_of(edges: Ints, cumulated: NDArray[Any], tokens: int, censored: bool) -> float:
    """The PIT of one answer from its prediction's cumulated probabilities at bucket ends [K]."""
    k = int(bucket_of(edges, tokens))
    low = float(cumulated[k - 1]) if k > 0 else 0.0
    width = float(edges[k + 1] - edges[k])
    done = min(width, max(0.0, float(tokens - edges[k])))
    share = done / width if censored else min(1.0, (done + 0.5) / width)
    return min(1.0, max(0.0, low + (float(cumulated[k]) - low) * share))

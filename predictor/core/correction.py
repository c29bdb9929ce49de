"""Forecasts corrected by what became of earlier ones. Pure.

What a simulation leaves out shows as a bias of its forecasts: requests that come later slow the node down (the more,
the longer a request stays), step times are not quite right, the way to the engine takes time. Over a window of the
latest pairs of *raw* forecast and actual, two ratios are learned as functions of the forecast size of the request:

    p50' = p50 * trend(size) * median of actual / p50
    p90' = p90 * trend(size) * 90th percentile of actual / p90

The trend (`predictor.core.size_trend`) is one curve through all sizes; the ratios are what it leaves, octave by octave
with straight lines between. Of all sizes' pairs the one furthest above the p90 counts as the next does. Both come after
the present arrival rate (`predictor.core.arrival_drift`), which multiplies by exp(slope * requests expected to come).

The second is split conformal prediction (Vovk et al. 2005; Romano et al. 2019, scores taken as ratios): whatever the
raw p90 means, nine of ten actuals come out under the corrected one while the future is like the window.

Few pairs are shrunk: an octave's pairs are pooled with `PSEUDO_PAIRS` from the quantiles of all octaves, and those with
as many from a log-normal prior around 1 of spread `PRIOR_SPREAD`. Medians and percentiles do not care how far off an
outlier is. Where gateways say what they will send, ratios are learned beside a guess of what that does
(`predictor.core.later_work.LaterWork`), which counts the less the more pairs there are. Corrected forecasts are never
learned from, so that a correction cannot feed itself.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from predictor.core.arrival_drift import ArrivalDrift
from predictor.core.size_trend import SizeTrend
from simcore.types import Quantiles

WINDOW_PAIRS = 256
PSEUDO_PAIRS = 10
PRIOR_SPREAD = 0.15
"""How far the logarithm of actual / forecast is thought to stray (one standard deviation) before anything is known."""
REFRESH_PAIRS = 16
"""New pairs from one refresh of the ratios to the next; while there are few, every pair counts at once."""
LARGEST_RATIO = 100.0
"""Ratios beyond are cut off: a clock that was set, a machine that slept."""
SMALLEST_S = 1e-6
FIRST_OCTAVE, LAST_OCTAVE = -10, 12
"""Sizes from about a millisecond to an hour; what is beyond counts as at the end."""

Floats = NDArray[np.float64]

Guess = tuple[float, float]
"""Logarithms of what p50 and p90 are guessed to be multiplied by."""
NO_GUESS: Guess = (0.0, 0.0)

_AT = (np.arange(PSEUDO_PAIRS) + 0.5) / PSEUDO_PAIRS
_NORMAL = np.array([NormalDist().inv_cdf(float(p)) for p in _AT])
_OCTAVES = LAST_OCTAVE - FIRST_OCTAVE + 1


class Correction:
    """The learned correction of one quantity (as TTFT) on one node. Not thread-safe; one owner."""

    def __init__(
        self,
        *,
        window_pairs: int = WINDOW_PAIRS,
        prior_spread: float = PRIOR_SPREAD,
        grows: bool = True,
        arrivals: bool = False,
    ) -> None:
        """`grows`: with the trend over sizes; `arrivals`: with the term for the arrival rate."""
        self._prior = prior_spread * np.stack((_NORMAL, _NORMAL), axis=1)
        self.drift: ArrivalDrift | None = ArrivalDrift() if arrivals else None
        self._logs = np.zeros((window_pairs, 2))
        """log(actual / p50), log(actual / p90)"""
        self._guesses = np.zeros((window_pairs, 2))
        self._unlearned = 1.0
        """How much a guess counts beside the pairs: 1 before the first, 0.5 after PSEUDO_PAIRS."""
        self._expected = np.zeros(window_pairs)
        self._octaves = np.zeros(window_pairs, dtype=np.int64)
        self._sizes = np.zeros(window_pairs)
        """Logarithms."""
        self._trend = SizeTrend()
        self._grows = grows
        self._pairs = 0
        self._stale = 0
        self._p50 = [1.0] * _OCTAVES
        """The ratios at the middle of each octave."""
        self._p90 = [1.0] * _OCTAVES
        self._refresh()

    def add(
        self, raw: Quantiles, actual_s: float, *, size_s: float, expected: float = 0.0, guess: Guess = NO_GUESS
    ) -> None:
        """One raw forecast and what happened, for a request of forecast size `size_s` while which `expected` requests
        were to come, with the `guess` of then. A forecast of 0 s, such as the time between the tokens of a one-token
        answer, says nothing."""
        if raw.p50 < SMALLEST_S or actual_s < SMALLEST_S:
            return
        at = self._pairs % len(self._logs)
        self._logs[at] = _log_ratio(actual_s, raw.p50), _log_ratio(actual_s, max(raw.p90, raw.p50))
        self._guesses[at] = guess
        self._expected[at] = expected
        size = math.log2(max(size_s, SMALLEST_S))
        self._sizes[at] = size
        self._octaves[at] = min(max(math.floor(size) - FIRST_OCTAVE, 0), _OCTAVES - 1)
        self._pairs += 1
        self._stale += 1
        if self._stale >= min(REFRESH_PAIRS, self._pairs // 4):
            self._refresh()

    def ratios(self, size_s: float) -> tuple[float, float]:
        """What p50 and p90 of such requests are multiplied by."""
        size = math.log2(max(size_s, SMALLEST_S))
        trend = math.exp(self._trend.at(size))
        place = min(max(size - (0.5 + FIRST_OCTAVE), 0.0), _OCTAVES - 1.0)
        low = min(int(place), _OCTAVES - 2)
        share = place - low
        p50, p90 = self._p50, self._p90
        return (
            trend * (p50[low] + share * (p50[low + 1] - p50[low])),
            trend * (p90[low] + share * (p90[low + 1] - p90[low])),
        )

    def corrected(
        self,
        raw: Quantiles,
        *,
        size_s: float,
        expected: float = 0.0,
        tempo: float = 1.0,
        guess: Guess = NO_GUESS,
    ) -> Quantiles:
        """`tempo` is for the mean alone (`predictor.core.calibration`); `guess` counts as far as little is
        learned yet."""
        ratio, upper = self.ratios(size_s)
        if guess[1] > 0.0:
            weight = self._unlearned
            ratio, upper = ratio * math.exp(weight * guess[0]), upper * math.exp(weight * guess[1])
        if self.drift is not None and self.drift.slope > 0.0:
            slowed = math.exp(self.drift.term(expected))
            ratio, upper = ratio * slowed, upper * slowed
        p50 = raw.p50 * ratio
        return Quantiles(raw.mean * tempo, p50, max(p50, raw.p90 * upper))

    def _refresh(self) -> None:
        n = min(self._pairs, len(self._logs))
        logs, octaves = self._logs[:n], self._octaves[:n]
        if self.drift is not None and n:
            expected = self._expected[:n]
            new = np.zeros(n, dtype=np.bool_)
            new[np.arange(self._pairs - self._stale, self._pairs) % len(self._logs)] = True
            self.drift.learn(logs[:, 0], expected, octaves, new)
            if self.drift.slope > 0.0:
                logs = logs - self.drift.terms(expected)[:, None]
        self._stale = 0
        self._unlearned = PSEUDO_PAIRS / (PSEUDO_PAIRS + self._pairs)
        if n:
            logs = logs - self._unlearned * self._guesses[:n]
        if n and self._grows:
            self._trend.learn(logs[:, 0], self._sizes[:n])
            logs = logs - self._trend.over(self._sizes[:n])[:, None]
        pooled = np.concatenate((self._prior, logs))
        pooled.sort(axis=0)
        if n and logs[:, 1].max() >= pooled[-1, 1]:
            # One pair among few would be the whole p90 of all sizes: a standstill of 2 s in an answer of 20 ms makes
            # minutes of one of seconds. Its own octave still has it.
            pooled[-1, 1] = pooled[-2, 1]
        middle, upper = _ratios(pooled)
        self._p50[:], self._p90[:] = [middle] * _OCTAVES, [upper] * _OCTAVES
        # Linear between order statistics.
        places, ranks = _AT * (len(pooled) - 1), np.arange(len(pooled))
        pseudo = np.stack([np.interp(places, ranks, pooled[:, column]) for column in (0, 1)], axis=1)
        for octave in np.flatnonzero(np.bincount(octaves, minlength=1)).tolist() if n else ():
            here = np.concatenate((pseudo, logs[octaves == octave]))
            here.sort(axis=0)
            self._p50[octave], self._p90[octave] = _ratios(here)


def _ratios(ascending: Floats) -> tuple[float, float]:
    """Of each column of logarithms, shape (n, 2): the median of the first, and of the second the order statistic that a
    further draw stays under nine times of ten."""
    n = len(ascending)
    median = 0.5 * (ascending.item((n - 1) // 2, 0) + ascending.item(n // 2, 0))
    return math.exp(median), math.exp(ascending.item(min(n, math.ceil(0.9 * (n + 1))) - 1, 1))


def _log_ratio(actual_s: float, forecast_s: float) -> float:
    return math.log(min(max(actual_s / forecast_s, 1.0 / LARGEST_RATIO), LARGEST_RATIO))

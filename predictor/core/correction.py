"""Forecasts corrected by what became of earlier ones. Pure.

What a simulation leaves out shows as a bias of its forecasts: requests that come later slow the node down (the more,
the longer a request stays), step times are not quite right, the way to the engine takes time. Over a window of the
latest pairs of *raw* forecast and actual, two ratios are learned as functions of the forecast size of the request,
octave by octave with straight lines between:

    p50' = p50 * median of actual / p50          (the mean is scaled by the same)
    p90' = p90 * 90th percentile of actual / p90

The second is split conformal prediction (Vovk et al. 2005; Romano et al. 2019, scores taken as ratios): whatever the
raw p90 means, nine of ten actuals come out under the corrected one while the future is like the window.

Few pairs are shrunk: an octave's pairs are pooled with `PSEUDO_PAIRS` from the quantiles of all octaves, and those with
as many from a log-normal prior around 1 of spread `PRIOR_SPREAD`. Medians and percentiles do not care how far off an
outlier is. Corrected forecasts are never learned from, so that a correction cannot feed itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

from simcore.types import Quantiles

WINDOW_PAIRS = 256
PSEUDO_PAIRS = 10
PRIOR_SPREAD = 0.15
"""How far the logarithm of actual / forecast is thought to stray (one standard deviation) before anything is known."""
REFRESH_PAIRS = 8
"""New pairs from one refresh of the ratios to the next; while there are few, every pair counts at once."""
LARGEST_RATIO = 100.0
"""Ratios beyond are cut off: a clock that was set, a machine that slept."""
SMALLEST_S = 1e-6
FIRST_OCTAVE, LAST_OCTAVE = -10, 12
"""Sizes from about a millisecond to an hour; what is beyond counts as at the end."""

_AT = tuple((i + 0.5) / PSEUDO_PAIRS for i in range(PSEUDO_PAIRS))
_PRIOR = tuple(PRIOR_SPREAD * NormalDist().inv_cdf(p) for p in _AT)


class Ratios(NamedTuple):
    """Factors for one size of request."""

    p50: float
    p90: float


class _Pair(NamedTuple):
    octave: int
    p50: float
    """log(actual / p50)"""
    p90: float
    """log(actual / p90)"""


class Correction:
    """Of one quantity on one node. Not thread-safe; one owner."""

    def __init__(self, *, window_pairs: int = WINDOW_PAIRS) -> None:
        self._pairs: deque[_Pair] = deque(maxlen=window_pairs)
        self._stale = 0
        self._table: list[_Pair] = []
        """Logarithms of the ratios at the middle of each octave."""
        self._refresh()

    def add(self, raw: Quantiles, actual_s: float, *, size_s: float) -> None:
        """One raw forecast and what happened, for a request of forecast size `size_s`. A forecast of 0 s, such as the
        time between the tokens of a one-token answer, says nothing."""
        if raw.p50 < SMALLEST_S or actual_s < SMALLEST_S:
            return
        self._pairs.append(
            _Pair(_octave(size_s), _log_ratio(actual_s, raw.p50), _log_ratio(actual_s, max(raw.p90, raw.p50)))
        )
        self._stale += 1
        if self._stale >= min(REFRESH_PAIRS, len(self._pairs) // 4):
            self._refresh()

    def ratios(self, size_s: float) -> Ratios:
        """What forecasts of such requests are multiplied by."""
        place = math.log2(max(size_s, SMALLEST_S)) - 0.5 - FIRST_OCTAVE
        place = min(max(place, 0.0), LAST_OCTAVE - FIRST_OCTAVE - 1e-9)
        low = int(place)
        share = place - low
        left, right = self._table[low], self._table[low + 1]
        return Ratios(
            math.exp(left.p50 + share * (right.p50 - left.p50)), math.exp(left.p90 + share * (right.p90 - left.p90))
        )

    def corrected(self, raw: Quantiles, *, size_s: float) -> Quantiles:
        ratios = self.ratios(size_s)
        p50 = raw.p50 * ratios.p50
        return Quantiles(raw.mean * ratios.p50, p50, max(p50, raw.p90 * ratios.p90))

    def _refresh(self) -> None:
        self._stale = 0
        by_octave: dict[int, list[_Pair]] = {}
        for pair in self._pairs:
            by_octave.setdefault(pair.octave, []).append(pair)
        all_p50 = sorted([*_PRIOR, *(pair.p50 for pair in self._pairs)])
        all_p90 = sorted([*_PRIOR, *(pair.p90 for pair in self._pairs)])
        pseudo_p50 = [_quantile(all_p50, p) for p in _AT]
        pseudo_p90 = [_quantile(all_p90, p) for p in _AT]
        elsewhere = _Pair(0, _quantile(all_p50, 0.5), _upper(all_p90))
        self._table = [elsewhere] * (LAST_OCTAVE - FIRST_OCTAVE + 1)
        for octave, pairs in by_octave.items():
            p50 = sorted([*pseudo_p50, *(pair.p50 for pair in pairs)])
            p90 = sorted([*pseudo_p90, *(pair.p90 for pair in pairs)])
            self._table[octave - FIRST_OCTAVE] = _Pair(octave, _quantile(p50, 0.5), _upper(p90))


def _octave(size_s: float) -> int:
    return min(max(math.floor(math.log2(max(size_s, SMALLEST_S))), FIRST_OCTAVE), LAST_OCTAVE)


def _log_ratio(actual_s: float, forecast_s: float) -> float:
    return math.log(min(max(actual_s / forecast_s, 1.0 / LARGEST_RATIO), LARGEST_RATIO))


def _quantile(ascending: Sequence[float], q: float) -> float:
    """Linear between order statistics."""
    place = q * (len(ascending) - 1)
    low = int(place)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (place - low) * (ascending[high] - ascending[low])


def _upper(ascending: Sequence[float]) -> float:
    """The order statistic that a further draw stays under nine times of ten."""
    return ascending[min(len(ascending), math.ceil(0.9 * (len(ascending) + 1))) - 1]

"""Corrects forecasts for requests yet to come, by the arrival rate: they slow a request down. Pure.

A what-if holds the requests of now. Those that come while the candidate runs are not in it; how many, the node's own
arrival rate says, exponentially weighted (`ArrivalRate`). The term:

    expected = rate * forecast size                    requests to come while it runs
    log(actual / forecast) = size term + slope * expected

The size term is `predictor.core.correction`'s, by octaves of the forecast size. The slope is least squares on what is
left within an octave: both sides centred (the ratio by its median, the expected requests by their mean, over the
correction's window), the ratio cut off at `LARGEST_MISS`, sums forgotten over `MEMORY_PAIRS`. From it `DOUBT` standard
errors are taken off, and it is held between 0 and `LARGEST_SLOPE` (soft thresholding, the lasso of one coefficient:
Tibshirani 1996). So it does nothing before the pairs speak for it, nor where they say that a node to which much has
just come gets less for a while (a router that evens its nodes out), and a forecast never falls when the rate rises.
What it is worth: bench/simulation.md.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

RATE_TAU_S = 20.0
"""Time constant of the arrival rate."""
MEMORY_PAIRS = 2000
LARGEST_MISS = 0.3
"""Largest log(actual / forecast) from which is learned, beyond its octave's median; larger ones are cut off."""
DOUBT = 2.0
LARGEST_SLOPE = 0.02
LARGEST_TERM = math.log(2.0)
"""A forecast is never more than doubled by the rate."""
LEAST_PAIRS = 64
"""Pairs before a slope is taken from them."""

Floats = NDArray[np.float64]


class ArrivalRate:
    """Exponentially weighted rate of arrivals at one node. 0 before the first."""

    def __init__(self, tau_s: float = RATE_TAU_S) -> None:
        self._tau_s = tau_s
        self._weight = 0.0
        self._at_s = -math.inf

    def came(self, now_s: float, size: float = 1.0) -> None:
        """One arrival, or so much of what it brings. A clock that runs backwards counts as standing still."""
        self._weight = self._tau_s * self.per_s(now_s) + size
        self._at_s = max(self._at_s, now_s)

    def per_s(self, now_s: float) -> float:
        """Arrivals, or what they brought, per second as of `now_s`, each counted with weight exp(-age / tau) / tau."""
        if self._weight == 0.0:
            return 0.0
        age_s = now_s - self._at_s
        rate = self._weight / self._tau_s
        return rate * math.exp(-age_s / self._tau_s) if age_s > 0.0 else rate


class ArrivalDrift:
    """The slope of one quantity on one node. Not thread-safe; one owner."""

    def __init__(self) -> None:
        self.slope = 0.0
        """Growth of log(actual / forecast) per request expected to come."""
        self._xx = self._xy = self._yy = self._pairs = 0.0

    def term(self, expected: float) -> float:
        """Logarithm of the factor for a forecast during which `expected` requests come: 0 to LARGEST_TERM."""
        return min(self.slope * expected, LARGEST_TERM)

    def terms(self, expected: Floats) -> Floats:
        """`term` of each of the pairs; same shape."""
        return np.minimum(self.slope * expected, LARGEST_TERM)

    def learn(self, logs: Floats, expected: Floats, octaves: NDArray[np.int64], new: NDArray[np.bool_]) -> None:
        """Learns from a window of n pairs (all arguments of shape (n,)): log(actual / forecast), requests expected to
        come, octave of the forecast size; `new` marks the pairs that have not been learned from yet."""
        # The helpers of numpy (`median`, `mean`, `clip`, `unique`) take longer than the work on so few numbers.
        for octave in sorted(set(octaves[new].tolist())):
            here = octaves == octave
            fresh = here & new
            ascending = np.sort(logs[here])
            n = len(ascending)
            median = 0.5 * (ascending[(n - 1) // 2] + ascending[n // 2])
            y = np.minimum(np.maximum(logs[fresh] - median, -LARGEST_MISS), LARGEST_MISS)
            x = expected[fresh] - np.add.reduce(expected[here]) / n
            keep = (1.0 - 1.0 / MEMORY_PAIRS) ** len(x)
            self._xx = keep * self._xx + float(x @ x)
            self._xy = keep * self._xy + float(x @ y)
            self._yy = keep * self._yy + float(y @ y)
            self._pairs = keep * self._pairs + len(x)
        self.slope = self._fitted()

    def _fitted(self) -> float:
        if self._pairs < LEAST_PAIRS or self._xx < 1e-9:
            return 0.0
        slope = self._xy / self._xx
        error = math.sqrt(max(self._yy - slope * self._xy, 0.0) / self._pairs / self._xx)
        return min(max(slope - DOUBT * error, 0.0), LARGEST_SLOPE)

"""How the logarithm of actual / forecast grows with the size of a request, over all sizes at once. Pure.

A parabola in the logarithm of the size, 0 at the middle of the sizes seen: the level is left to the ratios of
`predictor.core.correction`. What later arrivals add grows smoothly with the time that they have to come in, so few
pairs of every size say as much together as many of one, and those that end soon tell of those that do not yet. Least
absolute deviations (iteratively reweighted least squares): long prompts that come later make a heavy upper tail. It is
drawn towards none as by `PULL_PAIRS` pairs an octave off the middle, and beyond the sizes seen it stays as at their
ends.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PULL_PAIRS = 3.0
LEVEL_PULL_PAIRS = 10.0
"""While pairs are few, part of what they have in common is put down to growth: who has not ended yet is slowed more."""
REWEIGHTINGS = 5
SMALLEST_OFF = 0.03
"""Deviations below weigh as this one."""
BEYOND = 1.0
"""Octaves beyond the largest size seen over which it still grows: the longest answers are the last to end."""
LARGEST = 2.0
"""Of its absolute values."""

Floats = NDArray[np.float64]


class SizeTrend:
    """The trend of one quantity. 0 before the first pairs. Not thread-safe; one owner."""

    def __init__(self) -> None:
        self._middle = self._low = self._high = 0.0
        self._slope = self._curve = 0.0

    def at(self, size: float) -> float:
        """Of a request of this size (log2 of seconds)."""
        x = min(max(size, self._low), self._high) - self._middle
        return min(max(x * (self._slope + x * self._curve), -LARGEST), LARGEST)

    def over(self, sizes: Floats) -> Floats:
        """`at` of each; same shape."""
        x = np.minimum(np.maximum(sizes, self._low), self._high) - self._middle
        return np.minimum(np.maximum(x * (self._slope + x * self._curve), -LARGEST), LARGEST)

    def learn(self, logs: Floats, sizes: Floats) -> None:
        """Fits it to a window of n >= 1 pairs, shapes (n,): log(actual / forecast), log2 of the size in seconds."""
        n = len(logs)
        self._middle = float(np.add.reduce(sizes)) / n
        self._low, self._high = float(sizes.min()), float(sizes.max()) + BEYOND
        x = sizes - self._middle
        columns = np.stack((np.ones(n), x, x * x), axis=1)
        pull = np.diag((LEVEL_PULL_PAIRS, PULL_PAIRS, PULL_PAIRS))
        weights: Floats = np.ones(n)
        found: Floats = np.zeros(3)
        for _ in range(REWEIGHTINGS):
            weighted = columns * weights[:, None]
            found = np.asarray(np.linalg.solve(weighted.T @ columns + pull, weighted.T @ logs), dtype=np.float64)
            weights = 1.0 / np.maximum(np.abs(logs - columns @ found), SMALLEST_OFF)
            weights *= n / np.add.reduce(weights)
        _, self._slope, self._curve = found.tolist()

"""What a rule remembers of the last so many seconds, in room that does not grow with what happens. Pure."""

from __future__ import annotations

import math
from collections import deque

import numpy as np


class WindowMean:
    """Mean of what was read within a window, one reading a tick."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._readings: deque[tuple[float, float]] = deque()

    def read(self, value: float, now_s: float) -> float:
        """The mean with this reading in it."""
        self._readings.append((now_s, value))
        while self._readings[0][0] < now_s - self.window_s + 1e-9 and len(self._readings) > 1:
            self._readings.popleft()
        return sum(value for _, value in self._readings) / len(self._readings)


class WindowMax:
    """The largest of what was read within a window, the reading itself included."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._falling: deque[tuple[float, float]] = deque()

    def read(self, value: float, now_s: float) -> float:
        """The largest with this reading in it."""
        while self._falling and self._falling[-1][1] <= value:
            self._falling.pop()
        self._falling.append((now_s, value))
        while self._falling[0][0] < now_s - self.window_s:
            self._falling.popleft()
        return self._falling[0][1]


class WindowMin(WindowMax):
    """The smallest of what was read within a window, the reading itself included."""

    def read(self, value: float, now_s: float) -> float:
        """The smallest with this reading in it."""
        return -super().read(-value, now_s)


class SlidingHistogram:
    """Quantiles of times seen within a window, as a histogram of Prometheus gives them: buckets, linear within.

    Bounds rise by a constant ratio from `least_s` to `most_s`; what is above counts as there.
    """

    def __init__(
        self, *, window_s: float, slots: int = 12, least_s: float = 1e-3, most_s: float = 1e4, buckets: int = 160
    ) -> None:
        """The window moves on by one slot of `slots` at a time."""
        self._slot_s = window_s / slots
        self._least_s = least_s
        self._log_ratio = math.log(most_s / least_s) / buckets
        self._bounds = np.concatenate(([0.0], least_s * np.exp(self._log_ratio * np.arange(buckets + 1))))
        self._counts = np.zeros((slots, buckets + 1))
        self._latest: int | None = None

    def add(self, seconds: float, now_s: float) -> None:
        """One was seen."""
        self._go_on_to(now_s)
        bucket = 0 if seconds <= self._least_s else math.ceil(math.log(seconds / self._least_s) / self._log_ratio)
        slots, buckets = self._counts.shape
        assert self._latest is not None
        self._counts[self._latest % slots, min(bucket, buckets - 1)] += 1

    def count(self, now_s: float) -> int:
        """How many are in the window."""
        self._go_on_to(now_s)
        return int(self._counts.sum())

    def quantile(self, share: float, now_s: float) -> float | None:
        """Seconds within which such a share of them was; None when there is none."""
        self._go_on_to(now_s)
        sums = np.cumsum(self._counts.sum(axis=0))
        if not sums[-1]:
            return None
        rank = share * sums[-1]
        bucket = int(np.searchsorted(sums, rank))
        before = sums[bucket - 1] if bucket else 0.0
        low, high = self._bounds[bucket], self._bounds[bucket + 1]
        return float(low + (high - low) * (rank - before) / (sums[bucket] - before))

    def _go_on_to(self, now_s: float) -> None:
        slot = int(now_s // self._slot_s)
        if self._latest is not None:
            slots = len(self._counts)
            for number in range(max(self._latest + 1, slot + 1 - slots), slot + 1):
                self._counts[number % slots] = 0.0
            slot = max(slot, self._latest)
        self._latest = slot

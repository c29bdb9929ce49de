"""How long starts of a group take, as measured. Pure."""

from __future__ import annotations

from collections import deque

KEPT = 20
"""Starts; older ones were of another image, another disk."""
PRIOR_WEIGHT = 1
"""How many measured starts the configured time counts for."""


class StartTimes:
    """The last starts of one group, and how many in a row have failed."""

    def __init__(self, prior_s: float) -> None:
        self._prior_s = prior_s
        self._seconds: deque[float] = deque(maxlen=KEPT)
        self.failures = 0

    def ready(self, seconds: float | None) -> None:
        """One has come up, after so long; None: nobody knows."""
        if seconds is not None:
            self._seconds.append(seconds)
        self.failures = 0

    def failed(self) -> None:
        """One has not."""
        self.failures += 1

    def quantile(self, share: float) -> float:
        """Seconds within which such a share of the starts come up; before any has: as configured."""
        if not self._seconds:
            return self._prior_s
        prior = [self._prior_s] * (PRIOR_WEIGHT if len(self._seconds) < PRIOR_WEIGHT + 2 else 0)
        known = sorted([*self._seconds, *prior])
        place = share * (len(known) - 1)
        below = min(int(place), len(known) - 2) if len(known) > 1 else 0
        above = min(below + 1, len(known) - 1)
        return known[below] + (place - below) * (known[above] - known[below])

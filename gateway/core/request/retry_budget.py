"""How many attempts beyond the first a fleet may see: a token bucket fed by arrivals. Pure.

Retries that failures beget multiply the load of a fleet that is failing already. So each arrival adds `share` of a
retry, and there are never more than `burst` saved up. The bucket begins full, so that one lost node, whatever it ran,
is no reason to give a request up; when all nodes fail, the fleet sees at most 1 + `share` times its load.
"""

from __future__ import annotations


class RetryBudget:
    """`share` (>= 0) of arrivals may be retried in the long run, `burst` (>= 0) requests at once."""

    def __init__(self, *, share: float, burst: int) -> None:
        self._share = share
        self._burst = float(burst)
        self._saved = float(burst)

    @property
    def left(self) -> int:
        """Retries that could be had now."""
        return int(self._saved)

    def earn(self) -> None:
        """A request has arrived."""
        self._saved = min(self._burst, self._saved + self._share)

    def spend(self) -> bool:
        """Takes one retry; False when none is left."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True

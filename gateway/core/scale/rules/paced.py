"""Rules that decide every so often, and hold what they have said in between. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod

from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import Deaf, Wish

SLACK = 1e-6
"""Seconds by which a tick may be early: clocks add up."""


class Paced(Deaf, ABC):
    """`decide` is asked at the first tick and then at the first that is `interval_s` after the last it was asked at."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._decided_s: float | None = None
        self._said: Wish | None = None

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        """What was decided now or last."""
        if self._decided_s is None or now_s - self._decided_s >= self.interval_s - SLACK:
            self._decided_s = now_s
            self._said = self.decide(fleet, now_s)
        return self._said

    @abstractmethod
    def decide(self, fleet: FleetState, now_s: float) -> Wish | None:
        """What is wanted from now on; None: there is nothing to go by."""

"""Whether a node's engine and its trace are alive, as the gateway sees it from outside. Pure.

Tokens prove steps, and each step moves the trace. So tokens without a moving trace mean that the trace is frozen while
the engine works: what the node says of its state, and what it forecasts from it, is of the past. Neither tokens nor
trace while it has requests of ours mean that the engine has stopped.
"""

from __future__ import annotations

import math

FROZEN_AFTER_S = 0.8
"""Tokens this long after the trace last moved were not in it; trace and tokens of a step come within milliseconds."""


class Liveness:
    """Signs of life of one node, in its trace and in the tokens that come from it."""

    __slots__ = ("_busy_s", "_seq", "_tokens_s", "may_be_frozen", "moved_s")

    def __init__(self) -> None:
        self._seq = -1
        self.moved_s = math.inf
        self.may_be_frozen = False
        """False: `frozen_s` is 0. Looked at for every node at every decision."""
        self._tokens_s = -math.inf
        self._busy_s = -math.inf

    def trace(self, seq: int, now_s: float) -> None:
        """A note tells the sequence number of the trace."""
        if seq != self._seq:
            self._seq = seq
            self.moved_s = now_s
            self.may_be_frozen = False

    def tokens(self, now_s: float) -> None:
        self._tokens_s = now_s
        self.may_be_frozen = now_s - self.moved_s > FROZEN_AFTER_S

    def busy(self, now_s: float) -> None:
        """The node, idle as far as we know, gets a request."""
        self._busy_s = now_s

    @property
    def frozen_s(self) -> float:
        """Seconds for which tokens have come without a word of them in the trace; 0: the trace is alive."""
        behind_s = self._tokens_s - self.moved_s
        if behind_s <= FROZEN_AFTER_S:
            return 0.0
        behind_s = min(behind_s, self._tokens_s - self._busy_s)
        return behind_s if behind_s > FROZEN_AFTER_S else 0.0

    def quiet_s(self, now_s: float) -> float:
        """Seconds since the last sign of life of a node that has requests of ours."""
        moved_s = self.moved_s if self.moved_s < math.inf else -math.inf
        return now_s - max(moved_s, self._tokens_s, self._busy_s)

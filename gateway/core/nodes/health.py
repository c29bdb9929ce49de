"""Whether a node may get new requests, by what came of those it had. Pure.

Failures in a row eject a node; after a pause it is half open: one request probes it. From there it starts slowly, as
TCP does: each first token that comes when it was forecast doubles the number it may have at once, so the pace is set by
what the node does and not by a timer. "Full" (429, 503) is no failure, it is advice for a moment. None of this ever
keeps a request from the last node there is: who asks takes the best `Standing` that anyone has.
"""

from __future__ import annotations

import enum

FAILURES = 3
"""Failures in a row that eject a node."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
"""The pause of an ejection doubles each time until the node has recovered."""
PUSHBACK_S = 0.2
"""How long a node that says that it is full gets nothing new: about the time in which a seat becomes free."""
RECOVERED_AT = 64
"""Requests at once with which a slow start is over."""


class Standing(enum.IntEnum):
    """How fit a node is for new requests; lower is better."""

    HEALTHY = 0
    BACKING_OFF = 1
    """It has all that its slow start allows, or has just said that it is full."""
    EJECTED = 2
    """Ejected, suspected of being gone, or stalled."""


class Health:
    """The health of one node: ejected, backing off, slowly started, or none of these. Times are the router's."""

    def __init__(self) -> None:
        self.suspicion = ""
        """Why the shell thinks that it may be gone; empty when it does not."""
        self.stalled = ""
        """Why the router thinks that its engine has stopped."""
        self.window = 0
        """Requests that it may have at once while it recovers; 0: any number."""
        self._failures = 0
        self._ejected_until_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._full_until_s = 0.0
        self._last_failure = ""

    @property
    def is_healthy(self) -> bool:
        """Nothing is the matter, now or later: `standing` is HEALTHY whatever the time."""
        return not (self.suspicion or self.stalled or self.window or self._ejected_until_s or self._full_until_s)

    def standing(self, in_flight: int, now_s: float) -> Standing:
        if self.suspicion or self.stalled or now_s < self._ejected_until_s:
            return Standing.EJECTED
        if now_s < self._full_until_s or (self.window and in_flight >= self.window):
            return Standing.BACKING_OFF
        self._full_until_s = 0.0
        return Standing.HEALTHY

    def start_slowly(self) -> None:
        """A new session of a node that was lost, or the first beside others that have proved themselves."""
        self.window = 1
        self.suspicion = self.stalled = ""
        self._failures = 0
        self._full_until_s = 0.0

    def failed(self, why: str, now_s: float) -> None:
        """The engine failed a request."""
        self._failures += 1
        self._last_failure = why
        if self._failures >= FAILURES or self.window:
            self.window = 1
            self._ejected_until_s = now_s + self._pause_s
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)

    def pushed_back(self, now_s: float) -> None:
        """It said that it is full."""
        self._full_until_s = now_s + PUSHBACK_S

    def delivered(self, *, in_time: bool) -> None:
        """The first token of a request came; `in_time`: when it was forecast, if it was."""
        self._failures = 0
        self._ejected_until_s = 0.0
        if self.window and in_time:
            self.window *= 2
            if self.window >= RECOVERED_AT:
                self.window = 0
                self._pause_s = FIRST_PAUSE_S

    @property
    def alarm(self) -> str:
        """Why the node is ejected or backing off, for operators; empty when all is well."""
        if self.suspicion or self.stalled:
            return self.suspicion or self.stalled
        if self._ejected_until_s:
            return f"ejected: {self._last_failure}"
        if self.window and self._last_failure:
            return f"recovering, up to {self.window} at once after: {self._last_failure}"
        return ""

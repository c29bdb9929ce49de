"""Signs of life for clients whose streamed answers take long to begin: one timer for all of them."""

from __future__ import annotations

import asyncio
from typing import Literal, Protocol

TICK_S = 0.25

Beat = Literal["sent", "not yet", "over"]


class Waiter(Protocol):
    """An answer that has not begun."""

    def beat(self) -> Beat:
        """Lets its client see something, unless it is too early for that, or too late."""


class Heartbeats:
    """Each waiter has its beat once it has waited for the interval, and then again and again; one that says `not yet`
    is asked at the next tick."""

    def __init__(self, interval_s: float) -> None:
        """0: nobody ever has one."""
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._due_s: dict[Waiter, float] = {}
        """In the order of time, as all wait equally long."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waiter: Waiter) -> None:
        if self._interval_s:
            self._due_s[waiter] = self._loop.time() + self._interval_s
            if self._timer is None:
                self._tick_later()

    def discard(self, waiter: Waiter) -> None:
        self._due_s.pop(waiter, None)

    def _tick_later(self) -> None:
        self._timer = self._loop.call_later(min(TICK_S, self._interval_s), self._tick)

    def _tick(self) -> None:
        now_s = self._loop.time()
        due = []
        for waiter, due_s in self._due_s.items():
            if due_s > now_s:
                break
            due.append(waiter)
        for waiter in due:
            outcome = waiter.beat()
            if outcome != "not yet":
                self._due_s.pop(waiter, None)
            if outcome == "sent":
                self._due_s[waiter] = now_s + self._interval_s
        self._timer = None
        if self._due_s:
            self._tick_later()

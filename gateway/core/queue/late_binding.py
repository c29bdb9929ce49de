"""Late binding: a request that every node would keep waiting waits here, and goes to the first that can take it. Pure.

Held requests are tried from the front of one queue, a few at a time: at each look (a timer, running only while somebody
is held) those nodes are asked that have room by what they stream. A request that no node took is tried again when a
node has been freed, and otherwise when the nearest one was forecast to be free.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import msgspec

from gateway.core.queue.queue import HoldConfig
from gateway.core.request.ledger import Ledger
from gateway.core.request.lifecycle import State, Trigger
from gateway.core.request.live import LiveRequest
from simcore.types import Outcome

LONGEST_PAUSE_S = 0.2
"""A held request is tried again after this long even if nothing was heard: other gateways free nodes as well."""
RATE_OVER = 64
"""Placements from the queue over which its pace is measured."""
UNKNOWN_WAIT_S = 1.0
"""Predicted wait before the queue has moved."""


class HoldingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The queue for operators and metrics."""

    held: int = 0
    """Requests."""
    held_tokens: int = 0
    oldest_arrival_s: float | None = None
    """When the longest waiting came, on the router's clock; None when nobody is held."""
    predicted_wait_s: float = 0.0
    """How long a request that joins last would wait."""
    held_total: int = 0
    """Requests that were ever held."""
    shed_total: int = 0
    """Requests turned away because of the bounds."""


class LateBinding:
    """One per router. `place` tries to place a request that has been called from the queue."""

    def __init__(self, config: HoldConfig, ledger: Ledger, rng: random.Random, *, refuse_infeasible: bool) -> None:
        self.config = config
        self.refuse_infeasible = refuse_infeasible
        self._ledger = ledger
        self._queue = ledger.queue
        self._rng = rng
        self._timer_id = 0
        self._left_s: deque[float] = deque(maxlen=RATE_OVER)
        self._held_total = 0
        self._shed_total = 0

    # --- what placing asks --------------------------------------------------------------------------------------------

    def must_wait_in_line(self, live: LiveRequest) -> bool:
        """Whether others are held for its model already: a newcomer asks nobody, it stands in the queue."""
        return self._may_hold(live) and self._queue.holds_model(live.shape.model) and live not in self._queue

    def is_patient(self, live: LiveRequest, now_s: float) -> bool:
        """Whether the request may (still) be held; if not, it is placed whatever it has to wait for.

        One whose client has seen tokens already is never held: it would stand still in the middle of its answer.
        """
        return self._may_hold(live) and now_s - live.arrival_s < self.config.max_s

    def refuses(self, live: LiveRequest, now_s: float) -> bool:
        """Whether the first token is bound to come later than asked, by the length of the queue alone; then it has
        been refused."""
        ttft_s = live.shape.slo.ttft_s
        wait_s = self._predicted_wait_s(len(self._queue))
        if not self.refuse_infeasible or ttft_s is None or wait_s <= ttft_s:
            return False
        detail = f"{len(self._queue)} requests are held for a free node: the first token, asked within {ttft_s:g} s, "
        detail += f"would come after {wait_s:.3g} s"
        self._ledger.end(live, Trigger.REFUSED, Outcome.OVERLOADED, detail, now_s, retry_after_s=wait_s - ttft_s)
        return True

    def demote(self, live: LiveRequest) -> None:
        """It will miss what it asks for wherever it goes: all others go first."""
        held = live in self._queue
        if held:
            self._queue.leave(live)
        live.infeasible = True
        if held:
            self._queue.join(live)

    def hold(self, live: LiveRequest, now_s: float, *, again_in_s: float = 0.0) -> None:
        """Nobody takes it now: it is held, or turned away if there is no room for it."""
        pause_s = min(max(again_in_s, self.config.recheck_s), LONGEST_PAUSE_S)
        live.again_s = now_s + pause_s
        if live not in self._queue:
            if not self._make_room(live, now_s):
                return
            self._queue.join(live)
            self._held_total += 1
        self._ledger.move(live, Trigger.HELD)
        self._wind(now_s)

    # --- what the router tells ----------------------------------------------------------------------------------------

    def placed(self, live: LiveRequest, now_s: float) -> None:
        """A request is about to be dispatched."""
        if live in self._queue:
            self._left_s.append(now_s)

    def is_tick(self, timer_id: int) -> bool:
        return timer_id == self._timer_id

    def tick(self, now_s: float, place: Callable[[LiveRequest, float], None]) -> None:
        """Tries those at the front.

        One that has waited for `aging_s` is passed by nobody: as long as no node takes it, nodes run empty for it.
        """
        self._timer_id = 0
        freed, self._ledger.freed = self._ledger.freed, False
        blocked: set[str] = set()
        for live in self._queue.heads():
            if live.shape.model in blocked:
                continue
            if live.state is State.HELD and (freed or live.again_s <= now_s or not self.is_patient(live, now_s)):
                self._ledger.move(live, Trigger.CALLED)
                place(live, now_s)
            if live in self._queue and now_s - live.arrival_s >= self.config.aging_s:
                blocked.add(live.shape.model)
        self._wind(now_s)

    def status(self) -> HoldingStatus:
        queue = self._queue
        return HoldingStatus(
            held=len(queue),
            held_tokens=queue.tokens,
            oldest_arrival_s=queue.oldest_arrival_s(),
            predicted_wait_s=self._predicted_wait_s(len(queue)),
            held_total=self._held_total,
            shed_total=self._shed_total,
        )

    # --- inside -------------------------------------------------------------------------------------------------------

    def _may_hold(self, live: LiveRequest) -> bool:
        when = self.config.when
        held = when == "always" or (when == "forecast" and live.policy.needs_forecasts)
        return held and not live.resumed_tokens

    def _make_room(self, live: LiveRequest, now_s: float) -> bool:
        """Whether the newcomer may join; if not, it has ended."""
        queue, shape = self._queue, live.shape
        if queue.turns_away(live, self._rng) and queue.fill_with(shape) <= 1.0:
            self._shed(live, now_s)
            return False
        while queue.fill_with(shape) > 1.0:
            victim = queue.victim_for(live)
            self._shed(victim or live, now_s)
            if victim is None:
                return False
        return True

    def _shed(self, live: LiveRequest, now_s: float) -> None:
        self._shed_total += 1
        wait_s = self._predicted_wait_s(len(self._queue))
        detail = (
            f"{len(self._queue)} requests with {self._queue.tokens} tokens are held for a free node (limits: "
            f"{self.config.max_requests} and {self.config.max_tokens}); try again in {wait_s:.3g} s"
        )
        self._ledger.end(live, Trigger.REFUSED, Outcome.OVERLOADED, detail, now_s, retry_after_s=wait_s)

    def _predicted_wait_s(self, ahead: int) -> float:
        """Requests ahead over the pace at which the last ones were placed."""
        left_s = self._left_s
        if not ahead:
            return 0.0
        if len(left_s) < 2 or left_s[-1] <= left_s[0]:
            return UNKNOWN_WAIT_S
        return ahead * (left_s[-1] - left_s[0]) / (len(left_s) - 1)

    def _wind(self, now_s: float) -> None:
        if len(self._queue) and not self._timer_id:
            # Not in step with other gateways: two that look at the same moment see the same seat free.
            pause_s = self.config.recheck_s * (0.5 + self._rng.random())
            self._timer_id = self._ledger.new_timer(now_s + pause_s)

"""Late binding: a request that every node would keep waiting stays in the gateway's queue, and goes to the first node
that can start it. Pure.

Queued requests are tried from the front, a few at a time: at each look (a timer, running only while somebody is queued)
those nodes are asked that have room by what they stream. A request that no node took is tried again when capacity has
changed, and otherwise when the nearest node was forecast to be free. This says who must wait, who is shed and who is
due; the router acts on it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

import msgspec

from gateway.core.queue.queue import GatewayQueue, HoldConfig
from gateway.core.request.lifecycle import State
from gateway.core.request.live import LiveRequest
from gateway.core.request.verdict import Refusal, Wait
from simcore.types import Outcome, class_of

LONGEST_PAUSE_S = 0.2
"""A queued request is tried again after this long even if nothing was heard: other gateways free nodes as well."""
RATE_OVER = 64
"""Placements from the queue over which its pace is measured."""
UNKNOWN_WAIT_S = 1.0
"""Predicted wait before the queue has moved."""


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The queue for operators and metrics."""

    held: int = 0
    """Requests."""
    held_tokens: int = 0
    held_prompt_tokens: int = 0
    """Of them, those of prompts."""
    oldest_arrival_s: float | None = None
    """When the longest waiting came, on the router's clock; None when nobody is queued."""
    predicted_wait_s: float = 0.0
    """How long a request that joins last would wait."""
    held_total: int = 0
    """Requests that were ever queued."""
    shed_total: int = 0
    """Requests turned away because of the bounds."""


class LateBinding:
    """Who joins one router's queue, who is tried again when, and who is shed."""

    def __init__(self, config: HoldConfig, queue: GatewayQueue, rng: random.Random, *, refuse_infeasible: bool) -> None:
        self.config = config
        self._refuse_infeasible = refuse_infeasible
        self._queue = queue
        self._rng = rng
        self._timer_id = 0
        self._left_s: deque[float] = deque(maxlen=RATE_OVER)
        self._held_total = 0
        self._shed_total = 0

    # --- what a decision asks -----------------------------------------------------------------------------------------

    def line_up(self, live: LiveRequest) -> Wait | Refusal | None:
        """What becomes of a newcomer if others wait for its model already: it asks nobody, it joins the queue, unless
        its first token is bound to come later than asked by the length of the queue alone. None if nobody waits."""
        queue = self._queue
        if not self._may_queue(live) or not queue.holds_model(live.shape.model) or live in queue:
            return None
        ttft_s = live.shape.slo.ttft_s
        ahead = queue.ahead_of(live)
        wait_s = self._predicted_wait_s(ahead)
        if not self._refuse_infeasible or ttft_s is None or wait_s <= ttft_s:
            return Wait()
        detail = f"{ahead} requests are held for a free node before it: the first token, asked within {ttft_s:g} s, "
        detail += f"would come after {wait_s:.3g} s"
        return Refusal(Outcome.OVERLOADED, detail, wait_s - ttft_s)

    def may_wait(self, live: LiveRequest, now_s: float) -> bool:
        """Whether the request may (still) be queued; if not, it is placed whatever it has to wait for.

        One whose client has seen tokens already is never queued: it would stand still in the middle of its answer.
        """
        return self._may_queue(live) and now_s - live.arrival_s < self.config.max_s

    def models(self) -> list[str]:
        """Models for which requests are held."""
        return self._queue.models()

    # --- what the router does -----------------------------------------------------------------------------------------

    def hold(self, live: LiveRequest, now_s: float, *, again_in_s: float) -> list[tuple[LiveRequest, Refusal]]:
        """Nobody takes it now: it joins the queue or keeps its place there. Returns whom the bounds shed, the request
        itself, if at all, as the last; they have left the queue."""
        pause_s = min(max(again_in_s, self.config.recheck_s), LONGEST_PAUSE_S)
        live.again_s = now_s + pause_s
        if live in self._queue:
            return []
        shed = self._make_room(live)
        if not shed or shed[-1][0] is not live:
            self._queue.join(live)
            self._held_total += 1
        return shed

    def demote(self, live: LiveRequest) -> None:
        """It will miss what it asks for wherever it goes: all others go first."""
        queued = live in self._queue
        if queued:
            self._queue.leave(live)
        live.infeasible = True
        if queued:
            self._queue.join(live)

    def placed(self, live: LiveRequest, now_s: float) -> None:
        """A request is about to be dispatched."""
        if self._queue.places and live in self._queue:
            self._left_s.append(now_s)

    def due(self, now_s: float, *, capacity_changed: bool) -> Iterator[LiveRequest]:
        """Those at the front that are to be tried now. Each must have been tried before the next is taken.

        One that has waited for `aging_s` is passed by nobody, and one that has not by nobody of a lower class: as long
        as no node takes it, nodes run empty for it.
        """
        blocked: set[str] = set()
        highest: dict[str, int] = {}
        for live in self._queue.heads():
            model, own = live.shape.model, class_of(live.shape.priority)
            if model in blocked or own > highest.get(model, own):
                continue
            if live.state is State.HELD and (
                capacity_changed or live.again_s <= now_s or not self.may_wait(live, now_s)
            ):
                yield live
            if live in self._queue:
                highest[model] = min(own, highest.get(model, own))
                if now_s - live.arrival_s >= self.config.aging_s:
                    blocked.add(model)

    # --- the timer of the next recheck --------------------------------------------------------------------------------

    def next_recheck_s(self, now_s: float) -> float | None:
        """When a timer is to fire for the next recheck of the queue; None when none is needed, or one runs already."""
        if not len(self._queue) or self._timer_id:
            return None
        # Not in step with other gateways: two that look at the same moment see the same seat free.
        return now_s + self.config.recheck_s * (0.5 + self._rng.random())

    def timer_started(self, timer_id: int) -> None:
        self._timer_id = timer_id

    def is_recheck(self, timer_id: int) -> bool:
        """Whether this timer is that of the next recheck."""
        return timer_id == self._timer_id

    def timer_fired(self) -> None:
        self._timer_id = 0

    def status(self) -> QueueStatus:
        queue = self._queue
        return QueueStatus(
            held=len(queue),
            held_tokens=queue.tokens,
            held_prompt_tokens=queue.prompt_tokens,
            oldest_arrival_s=queue.oldest_arrival_s(),
            predicted_wait_s=self._predicted_wait_s(len(queue)),
            held_total=self._held_total,
            shed_total=self._shed_total,
        )

    # --- inside -------------------------------------------------------------------------------------------------------

    def _may_queue(self, live: LiveRequest) -> bool:
        when = self.config.when
        queues = when == "always" or (when == "forecast" and live.needs_forecasts)
        return queues and not live.resumed_tokens

    def _make_room(self, live: LiveRequest) -> list[tuple[LiveRequest, Refusal]]:
        """Whom the bounds shed for the newcomer, or the newcomer, as the last."""
        queue, shape = self._queue, live.shape
        if queue.turns_away(live, self._rng) and queue.fill_with(shape) <= 1.0:
            return [self._shed(live)]
        shed = []
        while queue.fill_with(shape) > 1.0:
            victim = queue.victim_for(live)
            shed.append(self._shed(victim or live))
            if victim is None:
                break
            queue.leave(victim)
        return shed

    def _shed(self, live: LiveRequest) -> tuple[LiveRequest, Refusal]:
        self._shed_total += 1
        wait_s = self._predicted_wait_s(len(self._queue))
        detail = (
            f"{len(self._queue)} requests with {self._queue.tokens} tokens are held for a free node (limits: "
            f"{self.config.max_requests} and {self.config.max_tokens}); try again in {wait_s:.3g} s"
        )
        return live, Refusal(Outcome.OVERLOADED, detail, wait_s)

    def _predicted_wait_s(self, ahead: int) -> float:
        """Requests ahead over the pace at which the last ones were placed."""
        left_s = self._left_s
        if not ahead:
            return 0.0
        if len(left_s) < 2 or left_s[-1] <= left_s[0]:
            return UNKNOWN_WAIT_S
        return ahead * (left_s[-1] - left_s[0]) / (len(left_s) - 1)

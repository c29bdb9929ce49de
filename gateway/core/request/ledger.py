"""The books of a router: live requests, open asks, wanted timers, and the actions of the event in hand. Pure.

Nothing here decides. The one rule it keeps: a state changes in `move` only, so accounts, asks and timers are given back
there on every path.
"""

from __future__ import annotations

from gateway.core import events as ev
from gateway.core.queue.queue import HoldConfig, HoldingQueue
from gateway.core.request.explanation import Explanation, ExplanationLog
from gateway.core.request.lifecycle import HOLDS_ACCOUNT, IN_LINE, State, Trigger, follow
from gateway.core.request.live import Asking, LiveRequest
from simcore.types import Outcome


class Ledger:
    """One per router. `explain_keep` ended requests stay explainable."""

    def __init__(self, explain_keep: int, hold: HoldConfig) -> None:
        self.live: dict[str, LiveRequest] = {}
        self.asks: dict[int, LiveRequest] = {}
        self.timers: dict[int, LiveRequest] = {}
        self.queue = HoldingQueue(hold)
        self.freed = False
        """Set when a request leaves its node; reset by whoever has looked what has become free."""
        self.log = ExplanationLog(explain_keep)
        self._last_ask_id = 0
        self._last_timer_id = 0
        self._actions: list[ev.AnyAction] = []

    # --- actions ------------------------------------------------------------------------------------------------------

    def begin(self) -> list[ev.AnyAction]:
        """A new event is taken in hand: the list to which its actions will be added."""
        actions: list[ev.AnyAction] = []
        self._actions = actions
        return actions

    def want(self, action: ev.AnyAction) -> None:
        self._actions.append(action)

    def start_timer(self, live: LiveRequest, at_s: float) -> int:
        timer_id = self.new_timer(at_s)
        self.timers[timer_id] = live
        return timer_id

    def new_timer(self, at_s: float) -> int:
        """A timer that belongs to no request."""
        self._last_timer_id = timer_id = self._last_timer_id + 1
        self._actions.append(ev.StartTimer(timer_id=timer_id, at_s=at_s))
        return timer_id

    def open_ask(self, live: LiveRequest) -> int:
        """The number of a new question of this request."""
        ask_id = self.new_ask_id()
        self.asks[ask_id] = live
        return ask_id

    def new_ask_id(self) -> int:
        """The number of a question that belongs to no request."""
        self._last_ask_id += 1
        return self._last_ask_id

    # --- requests -----------------------------------------------------------------------------------------------------

    def running(self, request_id: str, node_id: str, attempt: int) -> LiveRequest | None:
        """The live request if this node has it now, in this attempt."""
        live = self.live.get(request_id)
        if live is None or live.node is None or live.node.node_id != node_id or live.attempt != attempt:
            return None
        return live

    def move(self, live: LiveRequest, trigger: Trigger) -> None:
        """The only place where a state changes, and so the only one where accounts, asks and timers are given back."""
        old = live.state
        new = follow(old, trigger)
        live.state = new
        if old in HOLDS_ACCOUNT and new not in HOLDS_ACCOUNT:
            assert live.node is not None, f"a request that is {old.value} has a node"
            live.node.release(live.shape.request_id)
            live.node = None
            self.freed = True
        if new not in IN_LINE and live in self.queue:
            self.queue.leave(live)
        if new is State.ENDED:
            self.stop_asking(live)
            self.timers.pop(live.deadline_timer_id, None)
            del self.live[live.shape.request_id]

    def stop_asking(self, live: LiveRequest) -> Asking | None:
        """Closes the round of forecasts, if one is open, and hands it over."""
        asking = live.asking
        if asking is not None:
            live.asking = None
            self.timers.pop(asking.timer_id, None)
            for ask_id in asking.pending:
                self.asks.pop(ask_id, None)
        return asking

    def end(
        self,
        live: LiveRequest,
        trigger: Trigger,
        outcome: Outcome,
        detail: str,
        now_s: float,
        *,
        retry_after_s: float | None = None,
    ) -> None:
        """The one end of a request: books closed, client told."""
        self.move(live, trigger)
        if self.log.keeps:
            self.log.add(live.explain(outcome=outcome, detail=detail, e2e_s=now_s - live.arrival_s))
        request_id = live.shape.request_id
        self._actions.append(
            ev.Finish(request_id=request_id, outcome=outcome, detail=detail, retry_after_s=retry_after_s)
        )

    def explain(self, request_id: str) -> Explanation | None:
        live = self.live.get(request_id)
        return self.log.get(request_id) if live is None else live.explain()

    def check_quiescent(self) -> None:
        """Raises AssertionError unless nothing is under way."""
        assert not self.live, f"requests still live: {list(self.live)[:5]}"
        assert not len(self.queue), f"{len(self.queue)} requests still held"
        assert self.queue.tokens == 0, f"{self.queue.tokens} tokens still held"
        assert not self.asks, f"asks still open: {list(self.asks)[:5]}"
        assert not self.timers, f"timers still wanted: {list(self.timers)[:5]}"

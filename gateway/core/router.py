"""The router: events in, actions out. Pure; `now_s` is the caller's clock, and events come in its order.

Owns every decision about a request: who gets it, whether it is tried again, when it is given up. The live gateway and
the simulated cluster drive the same class. Nothing here waits: what must be waited for is asked for with an action and
comes back as an event. `placement` chooses, `lifecycle` says what may follow what; this file keeps the books.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gateway.core import events as ev
from gateway.core.candidates import NodeTable, Refusal
from gateway.core.explanation import Explanation, ExplanationLog
from gateway.core.lifecycle import HOLDS_ACCOUNT, State, Trigger, follow
from gateway.core.live import Asking, LiveRequest
from gateway.core.node_account import Node, NodeStatus
from gateway.core.placement import Placer
from gateway.core.policies.base import NodeView
from gateway.core.policies.registry import PolicyError
from simcore.types import Candidate, Decision, Forecast, Outcome

RETRYABLE = frozenset({Outcome.ENGINE_FAILED, Outcome.NODE_LOST, Outcome.NO_NODE, Outcome.OVERLOADED, Outcome.INTERNAL})
"""Ends that another node may avoid, as long as no token has gone out."""


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a router decides."""

    policy: str = "min_total_latency"
    sample: int = 0
    """Nodes drawn at random for each request; 0: the policy's own default."""
    seed: int = 0
    forecast_timeout_s: float = 0.05
    """How long a placement waits for forecasts."""
    max_attempts: int = 3
    """Placements of one request, the first included."""
    state_stale_s: float = 5.0
    """A busy node silent for longer is unknown to policies that score its load."""
    fallback: str = "least_requests"
    """Policy that steps in when the chosen one can price no node. Must not need forecasts."""
    explain_keep: int = 10_000
    """Ended requests that can still be explained."""

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise ValueError(f"sample must be >= 0, got {self.sample}")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be >= 1, got {self.max_attempts}")
        if not self.forecast_timeout_s > 0:
            raise ValueError(f"forecast_timeout_s must be > 0, got {self.forecast_timeout_s}")
        if not self.state_stale_s > 0:
            raise ValueError(f"state_stale_s must be > 0, got {self.state_stale_s}")


class Router:
    """One router. Raises PolicyError when its policy or fallback is unknown or does not serve."""

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self._table = NodeTable()
        self._placer = Placer(
            self._table,
            fallback=config.fallback,
            sample=config.sample,
            stale_after_s=config.state_stale_s,
            seed=config.seed,
        )
        self._policy = self._placer.policy(config.policy)
        self._live: dict[str, LiveRequest] = {}
        self._asks: dict[int, LiveRequest] = {}
        self._timers: dict[int, LiveRequest] = {}
        self._last_ask_id = 0
        self._last_timer_id = 0
        self._log = ExplanationLog(config.explain_keep)
        self._actions: list[ev.AnyAction] = []
        self._handlers: dict[type[ev.Event], Callable[[Any, float], None]] = {
            ev.Arrived: self._on_arrived,
            ev.NodeJoined: self._on_node_joined,
            ev.NodeLost: self._on_node_lost,
            ev.NodeRemoved: self._on_node_removed,
            ev.LoadNoted: self._on_load_noted,
            ev.ForecastArrived: self._on_forecast_arrived,
            ev.TimerFired: self._on_timer_fired,
            ev.TokensSeen: self._on_tokens_seen,
            ev.StreamEnded: self._on_stream_ended,
            ev.ClientGone: self._on_client_gone,
            ev.DrainAsked: self._on_drain_asked,
            ev.PolicySet: self._on_policy_set,
        }

    # --- what a shell calls -------------------------------------------------------------------------------------------

    def handle(self, event: ev.AnyEvent, now_s: float) -> list[ev.AnyAction]:
        """What must be done now, in this order.

        Late events (for requests that have ended, of earlier attempts, from unknown nodes) change nothing.

        Raises:
            ValueError: `Arrived` with the id of a live request. A shell gives unique ids or refuses with `is_live`; the
                first request is not disturbed.
            PolicyError: `PolicySet` with an unknown name.
        """
        actions: list[ev.AnyAction] = []
        self._actions = actions
        self._handlers[type(event)](event, now_s)
        return actions

    def is_live(self, request_id: str) -> bool:
        """Whether a request with this id has arrived and not ended."""
        return request_id in self._live

    @property
    def policy_name(self) -> str:
        """The policy for requests that come now."""
        return self._policy.name

    def explain(self, request_id: str) -> Explanation | None:
        """Decisions and course of a live request or one of the last to end; None if it is unknown."""
        live = self._live.get(request_id)
        return self._log.get(request_id) if live is None else live.explain()

    def nodes(self) -> list[NodeStatus]:
        """All nodes, in the order in which they joined."""
        return [node.status() for node in self._table.nodes.values()]

    def models(self) -> list[str]:
        """All models that nodes serve, sorted."""
        return self._table.models()

    def check_quiescent(self) -> None:
        """Raises AssertionError unless nothing is under way and every counter is back at zero."""
        assert not self._live, f"requests still live: {list(self._live)[:5]}"
        assert not self._asks, f"asks still open: {list(self._asks)[:5]}"
        assert not self._timers, f"timers still wanted: {list(self._timers)[:5]}"
        for node in self._table.nodes.values():
            assert not node.held, f"{node.node_id} still holds {list(node.held)[:5]}"

    # --- requests -----------------------------------------------------------------------------------------------------

    def _on_arrived(self, event: ev.Arrived, now_s: float) -> None:
        shape = event.request
        if shape.request_id in self._live:
            raise ValueError(f"request {shape.request_id!r} is live already; give the new one an id of its own")
        live = LiveRequest(shape=shape, arrival_s=now_s, policy=self._policy)
        self._live[shape.request_id] = live
        if shape.policy:
            try:
                live.policy = self._placer.policy(shape.policy)
            except PolicyError as problem:
                self._end(live, Trigger.REFUSED, Outcome.INVALID, str(problem), now_s)
                return
        deadline_s = shape.slo.deadline_s
        if deadline_s is not None:
            if not (deadline_s > 0 and math.isfinite(deadline_s)):
                detail = f"deadline_s is {deadline_s}; give the answer a number of seconds above 0"
                self._end(live, Trigger.REFUSED, Outcome.INVALID, detail, now_s)
                return
            live.deadline_timer_id = self._start_timer(live, now_s + deadline_s)
        self._place(live, now_s)

    def _on_tokens_seen(self, event: ev.TokensSeen, now_s: float) -> None:
        live = self._running(event.request_id, event.node_id)
        if live is None or event.tokens < 1:
            return
        if live.state is State.SENT:
            live.ttft_s = now_s - live.arrival_s
            # Only the first tokens change the state; those after them come a thousand times as often.
            self._move(live, Trigger.TOKENS)
        live.output_tokens += event.tokens

    def _on_stream_ended(self, event: ev.StreamEnded, now_s: float) -> None:
        live = self._running(event.request_id, event.node_id)
        if live is None:
            return
        if event.outcome in RETRYABLE:
            self._failed(live, event.outcome, event.detail, now_s)
        else:
            self._end(live, Trigger.NODE_ENDED, event.outcome, event.detail, now_s)

    def _on_client_gone(self, event: ev.ClientGone, now_s: float) -> None:
        live = self._live.get(event.request_id)
        if live is not None:
            outcome = Outcome.CANCELLED if event.cancelled else Outcome.CLIENT_LEFT
            self._abort_and_end(live, Trigger.CLIENT_ENDED, outcome, "", now_s)

    def _on_timer_fired(self, event: ev.TimerFired, now_s: float) -> None:
        live = self._timers.pop(event.timer_id, None)
        if live is None:
            return
        if live.asking is not None and live.asking.timer_id == event.timer_id:
            self._decide(live, now_s)
            return
        deadline_s = live.shape.slo.deadline_s
        detail = f"not complete {deadline_s:g} s after it arrived"
        self._abort_and_end(live, Trigger.DEADLINE, Outcome.DEADLINE, detail, now_s)

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _on_node_joined(self, event: ev.NodeJoined, now_s: float) -> None:
        self._table.join(event.node_id, event.config, event.profile)

    def _on_node_lost(self, event: ev.NodeLost, now_s: float) -> None:
        node = self._table.nodes.get(event.node_id)
        if node is not None:
            self._table.lose(event.node_id, event.detail)
            self._abandon(node, f"node {event.node_id} was lost", event.detail, now_s)

    def _on_node_removed(self, event: ev.NodeRemoved, now_s: float) -> None:
        node = self._table.nodes.get(event.node_id)
        if node is not None:
            node.lose("removed")
            self._table.remove(event.node_id)
            self._abandon(node, f"node {event.node_id} was removed", "", now_s)

    def _on_load_noted(self, event: ev.LoadNoted, now_s: float) -> None:
        node = self._table.nodes.get(event.load.node_id)
        if node is not None and node.up:
            node.hear(event.load, event.dispatch_seq, now_s)

    def _on_drain_asked(self, event: ev.DrainAsked, now_s: float) -> None:
        if event.node_id in self._table.nodes:
            self._table.drain(event.node_id, not event.undo)

    def _on_policy_set(self, event: ev.PolicySet, now_s: float) -> None:
        self._policy = self._placer.policy(event.policy)

    def _abandon(self, node: Node, what: str, detail: str, now_s: float) -> None:
        """A node has gone: its requests fail, and nobody waits for its forecasts."""
        detail = f"{what}: {detail}" if detail else what
        for request_id in list(node.held):
            self._failed(self._live[request_id], Outcome.NODE_LOST, detail, now_s)
        for ask_id, live in list(self._asks.items()):
            if live.asking is not None and live.asking.pending.get(ask_id) == node.node_id:
                self._answered(live, ask_id, None, detail, now_s)

    # --- placing ------------------------------------------------------------------------------------------------------

    def _place(self, live: LiveRequest, now_s: float) -> None:
        """First half of a placement: refuse, ask for forecasts, or decide at once."""
        found = self._placer.shortlist(live, now_s)
        if isinstance(found, Refusal):
            self._end(live, Trigger.REFUSED, found.outcome, found.detail, now_s)
        elif live.policy.needs_forecasts:
            self._ask(live, found, now_s)
        else:
            self._commit(live, self._placer.decide(live, found, now_s), now_s)

    def _ask(self, live: LiveRequest, views: Sequence[NodeView], now_s: float) -> None:
        shape = live.shape
        candidate = Candidate(
            request_id=shape.request_id,
            prompt_tokens=shape.prompt_tokens,
            max_output_tokens=shape.max_output_tokens,
            belief=shape.belief,
            priority=shape.priority,
        )
        shortlist = [self._table.nodes[view.node_id] for view in views]
        pending: dict[int, str] = {}
        for node in shortlist:
            self._last_ask_id = ask_id = self._last_ask_id + 1
            pending[ask_id] = node.node_id
            self._asks[ask_id] = live
            self._actions.append(ev.AskForecast(ask_id=ask_id, node_id=node.node_id, candidate=candidate))
        live.asking = Asking(
            timer_id=self._start_timer(live, now_s + self.config.forecast_timeout_s),
            shortlist=shortlist,
            pending=pending,
            asked_seq={node.node_id: node.dispatch_seq for node in shortlist},
        )

    def _on_forecast_arrived(self, event: ev.ForecastArrived, now_s: float) -> None:
        live = self._asks.get(event.ask_id)
        if live is not None:
            self._answered(live, event.ask_id, event.forecast, event.error or "it gave no forecast", now_s)

    def _answered(self, live: LiveRequest, ask_id: int, forecast: Forecast | None, error: str, now_s: float) -> None:
        asking = live.asking
        assert asking is not None, "an open ask belongs to a request that is asking"
        del self._asks[ask_id]
        node_id = asking.pending.pop(ask_id)
        if forecast is not None:
            asking.forecasts[node_id] = forecast
        else:
            asking.failures[node_id] = error
        if not asking.pending:
            self._decide(live, now_s)

    def _decide(self, live: LiveRequest, now_s: float) -> None:
        """Second half of a placement, with the forecasts that came; from the start if the shortlist has gone."""
        asking = self._stop_asking(live)
        assert asking is not None, "a decision with forecasts follows asking for them"
        decision = self._placer.decide_with_forecasts(
            live, asking, timeout_s=self.config.forecast_timeout_s, now_s=now_s
        )
        if decision is None:
            self._place(live, now_s)
        else:
            self._commit(live, decision, now_s)

    def _commit(self, live: LiveRequest, decision: Decision, now_s: float) -> None:
        request_id = live.shape.request_id
        live.decisions.append(decision)
        node = self._table.nodes[decision.node_id]
        held = self._placer.held(live, node, decision)
        if live.shape.place_only:
            node.promise(held, now_s)
            self._move(live, Trigger.PLACED)
            self._log.add(live.explain())
            self._actions.append(ev.Placed(request_id=request_id, decision=decision))
            return
        node.take(held, now_s)
        live.node = node
        self._move(live, Trigger.DISPATCHED)
        seq = held.dispatch_seq
        self._actions.append(
            ev.Dispatch(request_id=request_id, node_id=node.node_id, dispatch_seq=seq, decision=decision)
        )

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _failed(self, live: LiveRequest, outcome: Outcome, detail: str, now_s: float) -> None:
        """The node that has it failed it: try elsewhere while the client has seen nothing, else say so."""
        assert live.node is not None, "only a request that a node has can be failed by it"
        if live.state is State.SENT and live.attempt < self.config.max_attempts:
            live.tried.append(live.node.node_id)
            live.attempt += 1
            self._move(live, Trigger.RETRIED)
            self._place(live, now_s)
            return
        if live.output_tokens:
            detail = f"{detail} (after {live.output_tokens} tokens)" if detail else f"after {live.output_tokens} tokens"
        self._end(live, Trigger.NODE_ENDED, outcome, detail, now_s)

    def _abort_and_end(self, live: LiveRequest, trigger: Trigger, outcome: Outcome, detail: str, now_s: float) -> None:
        if live.node is not None:
            self._actions.append(ev.Abort(request_id=live.shape.request_id, node_id=live.node.node_id))
        self._end(live, trigger, outcome, detail, now_s)

    def _end(self, live: LiveRequest, trigger: Trigger, outcome: Outcome, detail: str, now_s: float) -> None:
        self._move(live, trigger)
        self._log.add(live.explain(outcome=outcome, detail=detail, e2e_s=now_s - live.arrival_s))
        self._actions.append(ev.Finish(request_id=live.shape.request_id, outcome=outcome, detail=detail))

    # --- bookkeeping --------------------------------------------------------------------------------------------------

    def _move(self, live: LiveRequest, trigger: Trigger) -> None:
        """The only place where a state changes, and so the only one where accounts, asks and timers are given back."""
        old = live.state
        new = follow(old, trigger)
        live.state = new
        if old in HOLDS_ACCOUNT and new not in HOLDS_ACCOUNT:
            assert live.node is not None, f"a request that is {old.value} has a node"
            live.node.release(live.shape.request_id)
            live.node = None
        if new is State.ENDED:
            self._stop_asking(live)
            self._timers.pop(live.deadline_timer_id, None)
            del self._live[live.shape.request_id]

    def _stop_asking(self, live: LiveRequest) -> Asking | None:
        asking = live.asking
        if asking is not None:
            live.asking = None
            self._timers.pop(asking.timer_id, None)
            for ask_id in asking.pending:
                self._asks.pop(ask_id, None)
        return asking

    def _running(self, request_id: str, node_id: str) -> LiveRequest | None:
        """The live request if this node has it now."""
        live = self._live.get(request_id)
        return live if live is not None and live.node is not None and live.node.node_id == node_id else None

    def _start_timer(self, live: LiveRequest, at_s: float) -> int:
        self._last_timer_id += 1
        self._timers[self._last_timer_id] = live
        self._actions.append(ev.StartTimer(timer_id=self._last_timer_id, at_s=at_s))
        return self._last_timer_id

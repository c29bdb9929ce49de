"""The router: events in, actions out. Pure; `now_s` is the caller's clock, and events come in its order.

Owns every decision about a request: who gets it, whether it is tried again, when it is given up. The live gateway and
the simulated cluster drive the same class. Nothing here waits: what must be waited for is asked for with an action and
comes back as an event. `lifecycle` says what may follow what, `ledger` keeps the books, `placement` chooses, `placing`
carries the choice out; this file says what each event means.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gateway.core import events as ev
from gateway.core.decision.placement import Placer
from gateway.core.decision.placing import Placing
from gateway.core.decision.policies.registry import PolicyError
from gateway.core.nodes.monitor import Watch
from gateway.core.nodes.node import Node, NodeStatus
from gateway.core.nodes.pool import NodeTable
from gateway.core.queue.late_binding import HoldingStatus, LateBinding
from gateway.core.request.explanation import Explanation
from gateway.core.request.ledger import Ledger
from gateway.core.request.lifecycle import State, Trigger
from gateway.core.request.live import LiveRequest
from gateway.core.request.resume import remainder, why_not_resumed
from gateway.core.request.retry_budget import RetryBudget
from gateway.core.router_config import RouterConfig
from simcore.types import Outcome

__all__ = ["RETRYABLE", "Router", "RouterConfig"]

RETRYABLE = frozenset({Outcome.ENGINE_FAILED, Outcome.NODE_LOST, Outcome.NO_NODE, Outcome.OVERLOADED, Outcome.INTERNAL})
"""Ends that another node may avoid."""

UNASKED = frozenset({Outcome.CANCELLED, Outcome.CLIENT_LEFT})
"""Ends that a node tells only of requests that nobody stopped: of one that was, the router has let go before."""


class Router:
    """One router. Raises PolicyError when its policy or fallback is unknown or does not serve."""

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self._table = NodeTable()
        self._placer = Placer(self._table, config)
        self._policy = self._placer.policy(config.policy)
        self._ledger = Ledger(config.explain_keep, config.hold)
        self._late = LateBinding(
            config.hold, self._ledger, self._placer.rng, refuse_infeasible=config.infeasible == "refuse"
        )
        self._watch = Watch(self._table, stall_s=config.stall_s)
        self._budget = RetryBudget(share=config.retry_share, burst=config.retry_burst)
        self._placing = Placing(
            self._ledger, self._table, self._placer, self._late, forecast_timeout_s=config.forecast_timeout_s
        )
        self._handlers: dict[type[ev.Event], Callable[[Any, float], None]] = {
            ev.Arrived: self._on_arrived,
            ev.NodeJoined: self._on_node_joined,
            ev.NodeLost: self._on_node_lost,
            ev.NodeRemoved: self._on_node_removed,
            ev.NodeSuspected: self._on_node_suspected,
            ev.LoadNoted: self._on_load_noted,
            ev.ForecastArrived: self._placing.forecast_arrived,
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
        actions = self._ledger.begin()
        self._handlers[type(event)](event, now_s)
        return actions

    def is_live(self, request_id: str) -> bool:
        """Whether a request with this id has arrived and not ended."""
        return request_id in self._ledger.live

    def wants(self, timer_id: int) -> bool:
        """Whether something still waits for this timer."""
        return timer_id in self._ledger.timers or self._late.is_tick(timer_id)

    @property
    def policy_name(self) -> str:
        """The policy for requests that come now."""
        return self._policy.name

    def explain(self, request_id: str) -> Explanation | None:
        """Decisions and course of a live request or one of the last to end; None if it is unknown."""
        return self._ledger.explain(request_id)

    def nodes(self) -> list[NodeStatus]:
        """All nodes, in the order in which they joined."""
        return [node.status() for node in self._table.nodes.values()]

    def holding(self) -> HoldingStatus:
        """The queue of requests that no node can take yet."""
        return self._late.status()

    def models(self) -> list[str]:
        """All models that nodes serve, sorted."""
        return self._table.models()

    def check_quiescent(self) -> None:
        """Raises AssertionError unless nothing is under way and every counter is back at zero."""
        self._ledger.check_quiescent()
        for node in self._table.nodes.values():
            assert not node.held, f"{node.node_id} still holds {list(node.held)[:5]}"

    # --- requests -----------------------------------------------------------------------------------------------------

    def _on_arrived(self, event: ev.Arrived, now_s: float) -> None:
        shape = event.request
        ledger = self._ledger
        if shape.request_id in ledger.live:
            raise ValueError(f"request {shape.request_id!r} is live already; give the new one an id of its own")
        live = LiveRequest(shape=shape, prompt_tokens=shape.prompt_tokens, arrival_s=now_s, policy=self._policy)
        ledger.live[shape.request_id] = live
        self._budget.earn()
        if shape.policy:
            try:
                live.policy = self._placer.policy(shape.policy)
            except PolicyError as problem:
                ledger.end(live, Trigger.REFUSED, Outcome.INVALID, str(problem), now_s)
                return
        deadline_s = shape.slo.deadline_s
        if deadline_s is not None:
            if not (deadline_s > 0 and math.isfinite(deadline_s)):
                detail = f"deadline_s is {deadline_s}; give the answer a number of seconds above 0"
                ledger.end(live, Trigger.REFUSED, Outcome.INVALID, detail, now_s)
                return
            live.deadline_timer_id = ledger.start_timer(live, now_s + deadline_s)
        self._placing.place(live, now_s)

    def _on_tokens_seen(self, event: ev.TokensSeen, now_s: float) -> None:
        live = self._ledger.running(event.request_id, event.node_id, event.attempt)
        if live is None or event.tokens < 1:
            return
        if live.state is State.SENT:
            if live.ttft_s is None:
                live.ttft_s = now_s - live.arrival_s
            self._watch.first_token(live, now_s)
            # Only the first tokens change the state; those after them come a thousand times as often.
            self._ledger.move(live, Trigger.TOKENS)
        live.output_tokens += event.tokens
        self._watch.tokens(live, event.tokens, now_s)

    def _on_stream_ended(self, event: ev.StreamEnded, now_s: float) -> None:
        live = self._ledger.running(event.request_id, event.node_id, event.attempt)
        if live is None:
            return
        outcome = event.outcome
        if outcome in UNASKED:
            self._failed(live, Outcome.ENGINE_FAILED, event.detail or "the engine gave the request up unasked", now_s)
        elif outcome in RETRYABLE or (live.resumed_tokens and outcome is Outcome.INVALID):
            self._failed(live, outcome, event.detail, now_s)
        else:
            self._watch.ended(live, event.outcome, now_s)
            self._ledger.end(live, Trigger.NODE_ENDED, event.outcome, event.detail, now_s)

    def _on_client_gone(self, event: ev.ClientGone, now_s: float) -> None:
        live = self._ledger.live.get(event.request_id)
        if live is not None:
            self._abort_and_end(live, Trigger.CLIENT_ENDED, event.outcome, event.detail, now_s)

    def _on_timer_fired(self, event: ev.TimerFired, now_s: float) -> None:
        if self._late.is_tick(event.timer_id):
            self._late.tick(now_s, self._placing.place)
            return
        live = self._ledger.timers.pop(event.timer_id, None)
        if live is None:
            return
        if live.asking is not None and live.asking.timer_id == event.timer_id:
            self._placing.decide(live, now_s)
            return
        deadline_s = live.shape.slo.deadline_s
        detail = f"not complete {deadline_s:g} s after it arrived"
        self._abort_and_end(live, Trigger.DEADLINE, Outcome.DEADLINE, detail, now_s)

    def _failed(self, live: LiveRequest, outcome: Outcome, detail: str, now_s: float) -> None:
        """The node that has it failed it: another one begins, or goes on with the answer, unless that is not to be."""
        assert live.node is not None, "only a request that a node has can be failed by it"
        self._watch.failed(live.node, outcome, detail, now_s)
        begun_tokens = live.output_tokens - live.resumed_tokens
        if begun_tokens and begun_tokens >= live.shape.max_output_tokens:
            # All that was asked for has come; only the word that it ended is missing.
            self._ledger.end(live, Trigger.NODE_ENDED, Outcome.LENGTH, "", now_s)
            return
        if live.failure is not None and outcome is Outcome.INVALID:
            outcome, detail = live.failure[0], f"{live.failure[1]}; another node refused to go on: {detail}"
        refusal = self._why_given_up(live)
        if refusal:
            if live.output_tokens:
                refusal = f"after {live.output_tokens} tokens; {refusal}"
            detail = f"{detail} ({refusal})" if detail else refusal
            self._ledger.end(live, Trigger.NODE_ENDED, outcome, detail, now_s)
            return
        live.tried[live.node.node_id] = live.node.session
        live.failure = (outcome, f"{detail} (after {live.output_tokens} tokens)" if live.output_tokens else detail)
        self._go_on_elsewhere(live, begun_tokens, now_s)

    def _go_on_elsewhere(self, live: LiveRequest, begun_tokens: int, now_s: float) -> None:
        if begun_tokens:
            live.shape = remainder(live.shape, begun_tokens)
        self._ledger.move(live, Trigger.RETRIED if live.state is State.SENT else Trigger.RESUMED)
        live.attempt += 1
        self._placing.place(live, now_s)

    def _why_given_up(self, live: LiveRequest) -> str:
        """Why no other node gets it, for people; empty when one does, and then it is paid for."""
        attempts = live.attempt - live.moves
        if attempts >= self.config.max_attempts:
            return f"{attempts} of {self.config.max_attempts} attempts made"
        if live.output_tokens and (why := why_not_resumed(live.shape)):
            return f"not resumed: {why}"
        if not self._budget.spend():
            return "too many requests are being tried again already"
        return ""

    def _abort_and_end(self, live: LiveRequest, trigger: Trigger, outcome: Outcome, detail: str, now_s: float) -> None:
        if live.node is not None:
            self._ledger.want(
                ev.Abort(request_id=live.shape.request_id, node_id=live.node.node_id, attempt=live.attempt)
            )
        self._ledger.end(live, trigger, outcome, detail, now_s)

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _on_node_joined(self, event: ev.NodeJoined, now_s: float) -> None:
        self._table.join(event.node_id, event.config, event.profile)
        self._ledger.freed = True

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
            stalled = self._watch.stalled(node, now_s)
            if stalled:
                self._abandon(node, stalled, "", now_s, stop=True)

    def _on_node_suspected(self, event: ev.NodeSuspected, now_s: float) -> None:
        node = self._table.nodes.get(event.node_id)
        if node is not None and node.up:
            self._watch.suspected(node, event.detail)

    def _on_drain_asked(self, event: ev.DrainAsked, now_s: float) -> None:
        if event.node_id in self._table.nodes:
            self._table.drain(event.node_id, not event.undo)
            self._ledger.freed = True
            if event.evict and not event.undo:
                self._evict(self._table.nodes[event.node_id], now_s)

    def _on_policy_set(self, event: ev.PolicySet, now_s: float) -> None:
        self._policy = self._placer.policy(event.policy)

    def _evict(self, node: Node, now_s: float) -> None:
        """Moves what may go on elsewhere and finds room there; the rest stays to its end.

        A move is nobody's failure: it counts neither against the node nor as an attempt.
        """
        for request_id in list(node.held):
            live = self._ledger.live[request_id]
            begun_tokens = live.output_tokens - live.resumed_tokens
            is_over = begun_tokens >= live.shape.max_output_tokens
            if (
                is_over
                or (live.output_tokens and why_not_resumed(live.shape))
                or not self._placing.has_room(live, now_s)
            ):
                continue
            self._ledger.want(ev.Abort(request_id=request_id, node_id=node.node_id, attempt=live.attempt))
            live.moves += 1
            self._go_on_elsewhere(live, begun_tokens, now_s)

    def _abandon(self, node: Node, what: str, detail: str, now_s: float, *, stop: bool = False) -> None:
        """A node has gone: its requests fail, and nobody waits for its forecasts. `stop`: it can still be told so."""
        detail = f"{what}: {detail}" if detail else what
        for request_id in list(node.held):
            if stop:
                attempt = self._ledger.live[request_id].attempt
                self._ledger.want(ev.Abort(request_id=request_id, node_id=node.node_id, attempt=attempt))
            self._failed(self._ledger.live[request_id], Outcome.NODE_LOST, detail, now_s)
        self._placing.node_gone(node, detail, now_s)

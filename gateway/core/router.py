"""The router: events in, actions out. Pure; `now_s` is the caller's clock, and events come in its order.

Owns the life of every request: who gets it, whether it is tried again, when it is given up. The live gateway and the
simulated cluster drive the same class. Nothing here waits: what must be waited for is asked for with an action and
comes back as an event. `decision.pipeline` decides, this file carries its verdicts out, and it alone ends a request;
`request.lifecycle` says what may follow what, `request.ledger` keeps the books.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gateway.core import events as ev
from gateway.core.decision.pipeline import DecisionPipeline
from gateway.core.decision.policies.registry import PolicyError
from gateway.core.ledger import Ledger
from gateway.core.monitor import NodeMonitor
from gateway.core.nodes.node import Node, NodeStatus
from gateway.core.nodes.pool import NodePool
from gateway.core.outcomes import COMPLETE
from gateway.core.queue.late_binding import LateBinding, QueueStatus
from gateway.core.queue.queue import GatewayQueue
from gateway.core.request.attempt import Attempt
from gateway.core.request.explanation import Explanation
from gateway.core.request.lifecycle import State, Trigger
from gateway.core.request.live import LiveRequest
from gateway.core.request.resume import attempt_id, remainder, why_not_resumed
from gateway.core.request.retry_budget import RetryBudget
from gateway.core.request.verdict import Ask, Chosen, Refusal, Verdict, Wait
from gateway.core.router_config import RouterConfig
from simcore.types import Candidate, Forecast, Outcome

__all__ = ["RETRYABLE", "Router", "RouterConfig"]

RETRYABLE = frozenset({Outcome.ENGINE_FAILED, Outcome.NODE_LOST, Outcome.NO_NODE, Outcome.OVERLOADED, Outcome.INTERNAL})
"""Ends that another node may avoid."""

NEVER_ON_THEIR_OWN = frozenset({Outcome.CANCELLED, Outcome.CLIENT_LEFT})
"""Ends by which a node answers an abort of ours. Of a request that the router has aborted it hears no more, so from a
node that still has the request they mean that the engine gave it up by itself."""


class Router:
    """Decides for every request of one gateway, event by event.

    Raises PolicyError when its policy or fallback is unknown or does not serve.
    """

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        rng = random.Random(config.seed)
        queue = GatewayQueue(config.hold)
        self._pool = NodePool(stale_after_s=config.state_stale_s, weights=config.weights)
        self._ledger = Ledger(config.explain_keep, queue)
        self._late = LateBinding(config.hold, queue, rng, refuse_infeasible=config.infeasible == "refuse")
        self._pipeline = DecisionPipeline(self._pool, self._late, config, rng)
        self._ledger.on_left = self._pipeline.left
        self._policy = self._pipeline.policy(config.policy)
        self._monitor = NodeMonitor(self._pool, stall_s=config.stall_s)
        self._budget = RetryBudget(share=config.retry_share, burst=config.retry_burst)
        self._probes: dict[str, tuple[int, float]] = {}
        """The last question to each silent node, and when it was asked."""
        self._handlers: dict[type[ev.Event], Callable[[Any, float], None]] = {
            ev.Arrived: self._on_arrived,
            ev.NodeJoined: self._on_node_joined,
            ev.NodeServes: self._on_node_serves,
            ev.AdaptersUsed: self._on_adapters_used,
            ev.PaceTold: self._on_pace_told,
            ev.NodeLost: self._on_node_lost,
            ev.NodeRemoved: self._on_node_removed,
            ev.NodeSuspected: self._on_node_suspected,
            ev.LoadNoted: self._on_load_noted,
            ev.CacheTold: self._on_cache_told,
            ev.ForecastArrived: self._on_forecast_arrived,
            ev.TimerFired: self._on_timer_fired,
            ev.TokensSeen: self._on_tokens_seen,
            ev.AnswerBegan: self._on_answer_began,
            ev.AnswerTied: self._on_answer_tied,
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
        actions = self._ledger.actions = []
        self._handlers[type(event)](event, now_s)
        return actions

    def is_live(self, request_id: str) -> bool:
        """Whether a request with this id has arrived and not ended."""
        return request_id in self._ledger.live

    def wants(self, timer_id: int) -> bool:
        """Whether something still waits for this timer."""
        return timer_id in self._ledger.timers or self._late.is_recheck(timer_id)

    @property
    def policy_name(self) -> str:
        """The policy for requests that come now."""
        return self._policy.name

    def explain(self, request_id: str) -> Explanation | None:
        """Decisions and course of a live request or one of the last to end; None if it is unknown."""
        return self._ledger.explain(request_id)

    def nodes(self) -> list[NodeStatus]:
        """All nodes, in the order in which they joined."""
        return [node.status() for node in self._pool.nodes.values()]

    def queue_status(self) -> QueueStatus:
        """The queue of requests that no node can take yet."""
        return self._late.status()

    def why_unknown(self, model: str) -> str:
        """Why no node could ever serve the model, for people; empty while one could, or while there are no nodes."""
        serving = self._pool.serving(model) if model and self._pool.nodes else None
        return serving if isinstance(serving, str) else ""

    def models(self) -> list[str]:
        """All models that nodes serve, sorted."""
        return self._pool.models()

    def check_quiescent(self) -> None:
        """Raises AssertionError unless nothing is under way and every counter is back at zero."""
        self._ledger.check_quiescent()
        for node in self._pool.nodes.values():
            assert not node.in_flight, f"{node.node_id} still holds {list(node.in_flight)[:5]}"

    # --- a request comes and is placed --------------------------------------------------------------------------------

    def _on_arrived(self, event: ev.Arrived, now_s: float) -> None:
        request, ledger = event.request, self._ledger
        if request.request_id in ledger.live:
            raise ValueError(f"request {request.request_id!r} is live already; give the new one an id of its own")
        policy = self._policy
        live = LiveRequest.arrived(request, policy.name, now_s, needs_forecasts=policy.needs_forecasts)
        ledger.live[request.request_id] = live
        self._budget.earn()
        if request.policy:
            try:
                policy = self._pipeline.policy(request.policy)
                live.policy, live.needs_forecasts = policy.name, policy.needs_forecasts
            except PolicyError as problem:
                ledger.end(live, Trigger.REFUSED, Outcome.INVALID, str(problem), now_s)
                return
        deadline_s = request.slo.deadline_s
        if deadline_s is not None:
            if not (deadline_s > 0 and math.isfinite(deadline_s)):
                detail = f"deadline_s is {deadline_s}; give the answer a number of seconds above 0"
                ledger.end(live, Trigger.REFUSED, Outcome.INVALID, detail, now_s)
                return
            live.deadline_timer_id = ledger.start_timer(live, now_s + deadline_s)
        self._place(live, now_s)

    def _place(self, live: LiveRequest, now_s: float) -> None:
        self._apply(self._pipeline.begin(live, now_s), live, now_s)

    def _conclude(self, live: LiveRequest, now_s: float) -> None:
        """All forecasts of the round are here, or its time is up."""
        asked = self._ledger.close_round(live)
        assert asked is not None, "a decision with forecasts follows asking for them"
        for node_id in asked.pending.values():
            if (node := self._pool.nodes.get(node_id)) is not None:
                node.accuracy.unanswered(now_s)
        self._apply(self._pipeline.conclude(live, asked, now_s), live, now_s)

    def _apply(self, verdict: Verdict, live: LiveRequest, now_s: float) -> None:
        match verdict:
            case Ask():
                self._ask(live, verdict.nodes, now_s)
            case Chosen():
                self._commit(live, verdict, now_s)
            case Wait():
                self._hold(live, verdict, now_s)
            case Refusal():
                self._refuse(live, verdict, now_s)

    def _ask(self, live: LiveRequest, nodes: Sequence[Node], now_s: float) -> None:
        shape = live.shape
        candidate = Candidate(
            request_id=attempt_id(shape.request_id, live.next_attempt),
            prompt_tokens=shape.prompt_tokens,
            max_output_tokens=shape.max_output_tokens,
            belief=shape.belief,
            priority=shape.priority,
            block_hashes=shape.block_hashes,
        )
        asks: dict[int, str] = {}
        failures: dict[str, str] = {}
        for node in nodes:
            if not node.accuracy.is_silent:
                asks[self._ledger.ask(node, candidate)] = node.node_id
                continue
            failures[node.node_id] = "its predictor has not answered lately"
            if node.accuracy.probe_due(now_s):
                # Nobody waits for the answer: it tells whether the node answers again.
                self._probes[node.node_id] = (self._ledger.ask(node, candidate), now_s)
        asked = self._ledger.open_round(live, nodes, asks, now_s + self.config.forecast_timeout_s)
        asked.failures = failures
        if not asks:
            self._conclude(live, now_s)

    def _commit(self, live: LiveRequest, chosen: Chosen, now_s: float) -> None:
        self._late.placed(live, now_s)
        if not live.shape.place_only:
            self._pipeline.placed(live, chosen.node, now_s)
        node, names = chosen.node, live.shape.block_hashes
        if names:
            request_id = None if live.shape.place_only else live.request_id
            node.prefixes.sent(request_id, names, node.config, now_s)
        if live.shape.place_only:
            self._ledger.promise(live, chosen, now_s)
        else:
            self._ledger.dispatch(live, chosen, now_s)

    def _hold(self, live: LiveRequest, wait: Wait, now_s: float) -> None:
        """It joins the queue, unless the bounds shed it; others may have to make room."""
        if wait.behind_all:
            self._late.demote(live)
        for shed, refusal in self._late.hold(live, now_s, again_in_s=wait.again_in_s):
            self._refuse(shed, refusal, now_s)
            if shed is live:
                return
        self._ledger.move(live, Trigger.HELD)
        self._plan_next_look(now_s)

    def _refuse(self, live: LiveRequest, refusal: Refusal, now_s: float) -> None:
        """A request that a node has failed ends with that failure, which is what its client can act on, unless there is
        a time after which it may be taken."""
        outcome, detail, retry_after_s = refusal
        if live.failure is not None and retry_after_s is None:
            outcome, why = live.failure
            detail = f"{why}; and {detail}" if why else detail
        self._ledger.end(live, Trigger.REFUSED, outcome, detail, now_s, retry_after_s=retry_after_s)

    # --- answers and timers -------------------------------------------------------------------------------------------

    def _on_forecast_arrived(self, event: ev.ForecastArrived, now_s: float) -> None:
        live = self._ledger.asks.get(event.ask_id)
        node = self._pool.nodes.get(event.node_id)
        if live is None:
            ask_id, asked_s = self._probes.get(event.node_id, (0, 0.0))
            in_time = now_s - asked_s <= self.config.forecast_timeout_s
            if node is not None and ask_id == event.ask_id and in_time:
                node.accuracy.answered()
            return
        if node is not None:
            node.accuracy.answered()
        self._answered(live, event.ask_id, event.forecast, event.error or "it gave no forecast", now_s)

    def _answered(self, live: LiveRequest, ask_id: int, forecast: Forecast | None, error: str, now_s: float) -> None:
        asked = live.round
        assert asked is not None, "an open question belongs to a request that is asking"
        del self._ledger.asks[ask_id]
        node_id = asked.pending.pop(ask_id)
        if forecast is not None:
            asked.forecasts[node_id] = forecast
        else:
            asked.failures[node_id] = error
        if not asked.pending:
            self._conclude(live, now_s)

    def _on_timer_fired(self, event: ev.TimerFired, now_s: float) -> None:
        if self._late.is_recheck(event.timer_id):
            self._look_at_queue(now_s)
            return
        live = self._ledger.timers.pop(event.timer_id, None)
        if live is None:
            return
        if live.round is not None and live.round.timer_id == event.timer_id:
            self._conclude(live, now_s)
            return
        deadline_s = live.shape.slo.deadline_s
        detail = f"not complete {deadline_s:g} s after it arrived"
        self._abort_and_end(live, Trigger.DEADLINE, Outcome.DEADLINE, detail, now_s)

    def _look_at_queue(self, now_s: float) -> None:
        self._late.timer_fired()
        for live in self._late.due(now_s, capacity_changed=self._ledger.take_capacity_changed()):
            self._ledger.move(live, Trigger.RECHECKED)
            self._place(live, now_s)
        self._plan_next_look(now_s)

    def _plan_next_look(self, now_s: float) -> None:
        at_s = self._late.next_recheck_s(now_s)
        if at_s is not None:
            self._late.timer_started(self._ledger.new_timer(at_s))

    # --- tokens and ends ----------------------------------------------------------------------------------------------

    def _on_tokens_seen(self, event: ev.TokensSeen, now_s: float) -> None:
        found = self._ledger.at_node(event.request_id, event.node_id, event.attempt)
        if found is None or event.tokens < 1:
            return
        live, attempt = found
        if not attempt.output_tokens:
            attempt.first_token_s = None if event.whole else now_s
            attempt.node.prefixes.computed(event.request_id, now_s)
            self._monitor.first_token(attempt, now_s, is_timed=not event.whole)
            self._pipeline.began(attempt)
        if live.streaming is attempt:
            if live.ttft_s is None and not event.whole:
                live.ttft_s = now_s - live.arrival_s
            if live.state is State.SENT:
                # Only the first tokens change the state; those after them come a thousand times as often.
                self._ledger.move(live, Trigger.TOKENS)
            live.output_tokens += event.tokens
        attempt.output_tokens += event.tokens
        self._monitor.tokens(attempt, event.tokens, now_s)

    def _on_answer_began(self, event: ev.AnswerBegan, now_s: float) -> None:
        found = self._ledger.at_node(event.request_id, event.node_id, event.attempt)
        if found is None:
            return
        live, attempt = found
        if live.streaming is attempt:
            live.has_begun = True
            if live.state is State.SENT:
                self._ledger.move(live, Trigger.TOKENS)

    def _on_answer_tied(self, event: ev.AnswerTied, now_s: float) -> None:
        found = self._ledger.at_node(event.request_id, event.node_id, event.attempt)
        if found is not None:
            live = found[0]
            live.shape = msgspec.structs.replace(live.shape, continuation="impossible")

    def _on_stream_ended(self, event: ev.StreamEnded, now_s: float) -> None:
        found = self._ledger.at_node(event.request_id, event.node_id, event.attempt)
        if found is None:
            return
        live, attempt = found
        outcome = event.outcome
        if event.found_tokens is not None:
            blocks = event.found_tokens // attempt.node.config.block_size_tokens
            attempt.node.prefixes.over(event.request_id, blocks)
        if outcome in NEVER_ON_THEIR_OWN:
            detail = event.detail or "the engine gave the request up unasked"
            self._failed(live, attempt, Outcome.ENGINE_FAILED, detail, now_s)
        elif outcome in RETRYABLE or (live.resumed_tokens and outcome is Outcome.INVALID):
            self._failed(live, attempt, outcome, event.detail, now_s)
        else:
            self._monitor.ended(attempt, outcome, now_s)
            attempt.served_s = now_s if outcome in COMPLETE else None
            if live.streaming is attempt:
                self._ledger.end(live, Trigger.NODE_ENDED, outcome, event.detail, now_s)
            else:
                self._ledger.over(live, attempt)

    def _on_client_gone(self, event: ev.ClientGone, now_s: float) -> None:
        live = self._ledger.live.get(event.request_id)
        if live is not None:
            self._abort_and_end(live, Trigger.CLIENT_ENDED, event.outcome, event.detail, now_s)

    def _failed(self, live: LiveRequest, attempt: Attempt, outcome: Outcome, detail: str, now_s: float) -> None:
        """A node failed an attempt: another one begins, or goes on with the answer, unless `_why_given_up`."""
        self._monitor.failed(attempt.node, outcome, detail, now_s)
        if live.streaming is not attempt:
            # The client does not depend on it.
            self._ledger.over(live, attempt)
            return
        if attempt.output_tokens >= attempt.asked.max_output_tokens and not live.has_begun:
            # All that was asked for has come; only the word that it ended is missing.
            self._ledger.end(live, Trigger.NODE_ENDED, Outcome.LENGTH, "", now_s)
            return
        if live.failure is not None and outcome is Outcome.INVALID:
            outcome, detail = live.failure[0], f"{live.failure[1]}; another node refused to go on: {detail}"
        refusal = self._why_given_up(live, attempt)
        if refusal:
            if live.output_tokens:
                refusal = f"after {live.output_tokens} tokens; {refusal}"
            detail = f"{detail} ({refusal})" if detail else refusal
            self._ledger.end(live, Trigger.NODE_ENDED, outcome, detail, now_s)
            return
        live.tried[attempt.node.node_id] = attempt.node.session
        live.failure = (outcome, f"{detail} (after {live.output_tokens} tokens)" if live.output_tokens else detail)
        self._go_on_elsewhere(live, attempt, now_s)

    def _go_on_elsewhere(self, live: LiveRequest, attempt: Attempt, now_s: float) -> None:
        if attempt.output_tokens:
            live.shape = remainder(live.shape, attempt.output_tokens)
        self._ledger.move(live, Trigger.RETRIED if live.state is State.SENT else Trigger.RESUMED)
        self._place(live, now_s)

    def _why_given_up(self, live: LiveRequest, attempt: Attempt) -> str:
        """Why no other node gets it, for people; empty when one does, which spends a retry of the budget."""
        attempts = len(live.attempts) - live.moves
        if attempts >= self.config.max_attempts:
            return f"{attempts} of {self.config.max_attempts} attempts made"
        if (live.output_tokens or live.has_begun) and (why := why_not_resumed(live.shape)):
            return f"not resumed: {why}"
        if attempt.output_tokens >= attempt.asked.max_output_tokens:
            return "not resumed: as many tokens as were asked for have come, only the word that it ended is missing"
        if not self._budget.spend():
            return "too many requests are being tried again already"
        return ""

    def _abort_and_end(self, live: LiveRequest, trigger: Trigger, outcome: Outcome, detail: str, now_s: float) -> None:
        for attempt in live.at_nodes:
            self._abort(live, attempt)
        self._ledger.end(live, trigger, outcome, detail, now_s)

    def _abort(self, live: LiveRequest, attempt: Attempt) -> None:
        """Its node is told to stop."""
        node_id = attempt.node.node_id
        self._ledger.want(ev.Abort(request_id=live.request_id, node_id=node_id, attempt=attempt.number))

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _on_node_joined(self, event: ev.NodeJoined, now_s: float) -> None:
        self._pool.join(event.node_id, event.config, event.profile)
        if event.config.prefix_cache_traced:
            self._ledger.want(ev.AskCache(node_id=event.node_id))
        self._ledger.capacity_changed()

    def _on_node_serves(self, event: ev.NodeServes, now_s: float) -> None:
        if event.node_id not in self._pool.nodes:
            return
        gone = self._pool.rename(event.node_id, event.names)
        self._ledger.capacity_changed()
        for live in [live for live in self._ledger.live.values() if live.state is State.HELD]:
            # The queue's next look would come to the first few of them only.
            if live.shape.model in gone:
                self._ledger.move(live, Trigger.RECHECKED)
                self._place(live, now_s)

    def _on_adapters_used(self, event: ev.AdaptersUsed, now_s: float) -> None:
        node = self._pool.nodes.get(event.node_id)
        if node is not None and node.up:
            self._pool.use_adapters(node, event.names)

    def _on_pace_told(self, event: ev.PaceTold, now_s: float) -> None:
        node = self._pool.nodes.get(event.node_id)
        if node is not None and node.up:
            self._pool.set_pace(node, event.pace)

    def _on_node_lost(self, event: ev.NodeLost, now_s: float) -> None:
        node = self._pool.nodes.get(event.node_id)
        if node is not None:
            self._pool.lose(event.node_id, event.detail)
            self._abandon(node, f"node {event.node_id} was lost", event.detail, now_s)

    def _on_node_removed(self, event: ev.NodeRemoved, now_s: float) -> None:
        node = self._pool.nodes.get(event.node_id)
        if node is not None:
            node.lose("removed")
            self._pool.remove(event.node_id)
            self._abandon(node, f"node {event.node_id} was removed", "", now_s)

    def _on_load_noted(self, event: ev.LoadNoted, now_s: float) -> None:
        node = self._pool.nodes.get(event.load.node_id)
        if node is not None and node.up:
            node.hear(event.load, event.dispatch_seq, now_s)
            stalled = self._monitor.stalled(node, now_s)
            if stalled:
                self._abandon(node, stalled, "", now_s, stop=True)

    def _on_cache_told(self, event: ev.CacheTold, now_s: float) -> None:
        node = self._pool.nodes.get(event.node_id)
        if node is not None and node.up and node.prefixes.hear(event.summary, now_s):
            self._ledger.want(ev.AskCache(node_id=event.node_id))

    def _on_node_suspected(self, event: ev.NodeSuspected, now_s: float) -> None:
        node = self._pool.nodes.get(event.node_id)
        if node is not None and node.up:
            self._monitor.suspected(node, event.detail)

    def _on_drain_asked(self, event: ev.DrainAsked, now_s: float) -> None:
        if event.node_id in self._pool.nodes:
            self._pool.drain(event.node_id, not event.undo)
            self._ledger.capacity_changed()
            if event.evict and not event.undo:
                self._evict(self._pool.nodes[event.node_id], now_s)

    def _on_policy_set(self, event: ev.PolicySet, now_s: float) -> None:
        self._policy = self._pipeline.policy(event.policy)

    def _evict(self, node: Node, now_s: float) -> None:
        """Moves what may go on elsewhere and finds room there; the rest stays to its end.

        A move is nobody's failure: it counts neither against the node nor as an attempt.
        """
        for live, attempt in self._attempts_at(node):
            if (
                live.streaming is not attempt
                or attempt.output_tokens >= attempt.asked.max_output_tokens
                or ((live.output_tokens or live.has_begun) and why_not_resumed(live.shape))
                or not self._pipeline.has_room(live, now_s)
            ):
                continue
            self._abort(live, attempt)
            live.moves += 1
            self._go_on_elsewhere(live, attempt, now_s)

    def _abandon(self, node: Node, what: str, detail: str, now_s: float, *, stop: bool = False) -> None:
        """A node has gone: its requests fail, and nobody waits for its forecasts. `stop`: it can still be told so."""
        detail = f"{what}: {detail}" if detail else what
        for live, attempt in self._attempts_at(node):
            if stop:
                self._abort(live, attempt)
            self._failed(live, attempt, Outcome.NODE_LOST, detail, now_s)
        for ask_id, live in list(self._ledger.asks.items()):
            if live.round is not None and live.round.pending.get(ask_id) == node.node_id:
                self._answered(live, ask_id, None, detail, now_s)

    def _attempts_at(self, node: Node) -> list[tuple[LiveRequest, Attempt]]:
        """What the node has of ours, in the order of dispatch."""
        held = [self._ledger.live[request_id] for request_id in node.in_flight]
        return [(live, attempt) for live in held for attempt in live.at_nodes if attempt.node is node]

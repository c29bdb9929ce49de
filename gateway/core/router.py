"""The router: events in, actions out. Pure; `now_s` is the caller's clock, and events come in its order.

Owns the life of every request: who gets it, whether it is tried again, when it is given up. The live gateway and the
simulated cluster drive the same class. Nothing here waits: what must be waited for is asked for with an action and
comes back as an event. `decision.pipeline` decides, this file carries its verdicts out, and it alone ends a request;
`request.lifecycle` says what may follow what, `request.ledger` keeps the books.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from gateway.core import events as ev
from gateway.core.decision.pipeline import DecisionPipeline
from gateway.core.decision.policies.registry import PolicyError
from gateway.core.ledger import Ledger
from gateway.core.monitor import NodeMonitor
from gateway.core.moves.mover import Mover, MovesStatus
from gateway.core.nodes.expected_work import ExpectedSendings
from gateway.core.nodes.node import Node, NodeStatus
from gateway.core.nodes.pool import NodePool
from gateway.core.nodes.view import NodeView
from gateway.core.outcomes import COMPLETE
from gateway.core.queue.late_binding import LateBinding, QueueStatus
from gateway.core.queue.queue import GatewayQueue
from gateway.core.request.attempt import Attempt
from gateway.core.request.explanation import Explanation, MoveTold
from gateway.core.request.lifecycle import State, Trigger
from gateway.core.request.live import LiveRequest
from gateway.core.request.migration import Move
from gateway.core.request.resume import BY_PROXY, attempt_id, remainder, why_not_resumed
from gateway.core.request.retry_budget import RetryBudget
from gateway.core.request.verdict import Ask, Chosen, Refusal, Verdict, Wait
from gateway.core.router_config import RouterConfig
from simcore.types import Candidate, ExpectedWork, Forecast, Outcome

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
        self._mover = Mover(
            config.moves,
            self._pool,
            self._ledger,
            self._pipeline,
            self,
            priority=config.priority,
            state_stale_s=config.state_stale_s,
            rng=rng,
        )
        self._ledger.on_ended = self._mover.ended
        self._policy = self._pipeline.policy(config.policy)
        self._expected = ExpectedSendings()
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
            ev.NodesExpected: self._on_nodes_expected,
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
            ev.MoveAsked: self._on_move_asked,
            ev.RetirementTold: self._on_retirement_told,
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
        return timer_id in self._ledger.timers or self._late.is_recheck(timer_id) or self._mover.wants(timer_id)

    def progress_due(self, timer_id: int) -> Collection[str]:
        """Requests on whose progress it depends what happens when the timer fires: a shell that does not tell of all
        tokens as they come tells of theirs before."""
        return self._mover.progress_due(timer_id)

    def why_not_moved(self, request_id: str, node_id: str) -> str:
        """Why a request cannot go on at this node now, for people; empty when it can be tried (`MoveAsked`)."""
        live = self._ledger.live.get(request_id)
        if live is None:
            return f"no request {request_id!r} is under way here"
        return self._mover.why_not_to(live, node_id)

    @property
    def moving(self) -> Sequence[str]:
        """Requests on their way from one node to another."""
        return list(self._mover.moves)

    def moves_status(self) -> MovesStatus:
        """Counts of moves."""
        return self._mover.status()

    def last_move(self, request_id: str) -> MoveTold | None:
        """The latest move of a live request; None where it has none."""
        live = self._ledger.live.get(request_id)
        return live.told_moves[-1] if live is not None and live.told_moves else None

    def take_moves(self) -> list[MoveTold]:
        """Moves that have ended since this was last asked."""
        return self._mover.take_told()

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

    def views(self, now_s: float) -> list[NodeView]:
        """All nodes as policies see them, in the same order."""
        return [node.view(now_s, self.config.state_stale_s) for node in self._pool.nodes.values()]

    def queue_status(self, now_s: float = 0.0) -> QueueStatus:
        """The queue of requests that no node can take yet."""
        status = self._late.status()
        waits_s = [self._pool.expected_in_s(model, now_s) for model in self.waiting_models()] if status.held else []
        if not waits_s:
            return status
        return msgspec.structs.replace(status, predicted_wait_s=max(status.predicted_wait_s, *waits_s))

    def awaited_in_s(self, model: str, now_s: float) -> float | None:
        """How long until a node comes that takes requests for the model (empty: for the only one), if none takes any
        now and one can be had; else None."""
        serving = self._pool.serving(model)
        if not isinstance(serving, str) and serving.ready:
            return None
        return None if self._pool.expected(model) is None else self._pool.expected_in_s(model, now_s)

    def waiting_models(self) -> tuple[str, ...]:
        """Models for which requests are held although no node takes any; empty name: of the only model."""
        return tuple(
            model
            for model in self._late.models()
            if isinstance(serving := self._pool.serving(model), str) or not serving.ready
        )

    def why_unknown(self, model: str) -> str:
        """Why no node could ever serve the model, for people; empty while one could, or while there are no nodes."""
        serving = self._pool.serving(model) if model and self._pool.nodes else None
        return serving if isinstance(serving, str) and self._pool.expected(model) is None else ""

    def models(self) -> list[str]:
        """All models that nodes serve, sorted."""
        return self._pool.models()

    def check_quiescent(self) -> None:
        """Raises AssertionError unless nothing is under way and every counter is back at zero."""
        self._ledger.check_quiescent()
        self._mover.check_quiescent()
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
        if live.is_inquiry:
            move = self._mover.moves[live.request_id]
            source = move.source.node if move.priced else None
            self._mover.decided(move, self._pipeline.conclude_elsewhere(live, asked, source, now_s), now_s)
            return
        self._apply(self._pipeline.conclude(live, asked, now_s), live, now_s)

    def _apply(self, verdict: Verdict, live: LiveRequest, now_s: float) -> None:
        match verdict:
            case Chosen():
                self._commit(live, verdict, now_s)
            case Ask():
                self._ask(live, verdict.nodes, now_s)
            case Wait():
                self._hold(live, verdict, now_s)
            case Refusal():
                self._refuse(live, verdict, now_s)

    def _ask(self, live: LiveRequest, nodes: Sequence[Node], now_s: float, *, leaving: Attempt | None = None) -> None:
        """Asks for forecasts of the request; the node of the attempt `leaving`, of how that goes if it stays."""
        shape = live.shape
        candidate = Candidate(
            request_id=attempt_id(shape.request_id, live.next_attempt),
            prompt_tokens=shape.prompt_tokens,
            max_output_tokens=shape.max_output_tokens,
            belief=shape.belief,
            priority=shape.priority,
            block_hashes=shape.block_hashes,
            model=shape.model,
        )
        asks: dict[int, str] = {}
        failures: dict[str, str] = {}
        for node in nodes:
            if leaving is not None and node is leaving.node:
                stays = msgspec.structs.replace(
                    candidate, request_id=attempt_id(live.request_id, leaving.number), leaving=True
                )
                asks[self._ledger.ask(node, stays)] = node.node_id
                continue
            if not node.accuracy.is_silent:
                asks[self._ledger.ask(node, candidate, self._expected_of(node, now_s))] = node.node_id
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
        shape, node = live.shape, chosen.node
        place_only, names = shape.place_only, shape.block_hashes
        if not place_only:
            self._pipeline.placed(live, chosen)
        if not live.resumed_tokens:
            cached_tokens = node.cached_tokens(names, shape.prompt_tokens) if names else 0
            self._expected.sent(node, shape.prompt_tokens - cached_tokens, now_s)
        if names:
            node.prefixes.sent(None if place_only else live.request_id, names, node.config, now_s)
        if place_only:
            self._ledger.promise(live, chosen, now_s)
        else:
            self._ledger.dispatch(live, chosen, now_s)
            self._mover.plan(now_s)

    def ask_elsewhere(self, move: Move, ask: Ask, now_s: float) -> None:
        """Asks who might go on with a request that runs (`Mover`)."""
        self._ask(move.inquiry, ask.nodes, now_s, leaving=move.source if move.priced else None)

    def cut(self, move: Move, now_s: float) -> None:
        """A request goes on at the destination of its move (`Mover`).

        Should the destination fail before it has said a word, that is as if the source had: it is tried elsewhere.
        """
        live, attempt, chosen = move.live, move.source, move.chosen
        assert chosen is not None, "a move without a destination is not cut"
        self._ledger.abort(live, attempt)
        live.moves += 1
        if attempt.output_tokens:
            live.shape = remainder(live.shape, attempt.output_tokens)
        self._ledger.move(live, Trigger.RETRIED if live.state is State.SENT else Trigger.RESUMED)
        reason = f"moved from {attempt.node.node_id}, as {move.why}: {chosen.decision.reason}"
        decision = msgspec.structs.replace(chosen.decision, reason=reason, attempt=live.next_attempt)
        self._commit(live, chosen._replace(decision=decision, expected=None), now_s)

    def _expected_of(self, node: Node, now_s: float) -> ExpectedWork | None:
        """What the node is to be told of the work to come, if it is time for that."""
        if not self._expected.is_due(node, now_s):
            return None
        serving = self._pool.serving(node.config.model)
        fellows = () if isinstance(serving, str) else serving.ready
        return self._expected.tell(node, fellows, now_s)

    def _hold(self, live: LiveRequest, wait: Wait, now_s: float) -> None:
        """It joins the queue, unless the bounds shed it; others may have to make room."""
        if live.queued_s is None:
            live.queued_s = now_s
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
        if self._mover.fired(event.timer_id, now_s):
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
            if not attempt.is_stage:
                self._pipeline.began(attempt)
                if live.told_moves:
                    self._mover.first_token(live, attempt, now_s)
        if live.streaming is attempt:
            if live.ttft_s is None and not event.whole:
                live.ttft_s = now_s - live.arrival_s
            if live.state is State.SENT:
                # Only the first tokens change the state; those after them come a thousand times as often.
                self._ledger.move(live, Trigger.TOKENS)
            live.output_tokens += event.tokens
        attempt.output_tokens += event.tokens
        self._monitor.tokens(attempt, event.tokens, now_s)
        # An answer that has ended must not go on elsewhere.
        if self._mover.moves and not event.last:
            self._mover.token(live, attempt, now_s)

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
            config = attempt.node.config
            blocks = event.found_tokens // config.block_size_tokens + config.dropped_blocks
            attempt.node.prefixes.over(event.request_id, blocks)
            if not attempt.is_stage:
                live.found_tokens = event.found_tokens
                if (told := live.move_to(attempt.node.node_id)) is not None:
                    told.found_tokens = event.found_tokens
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
                self._stage_over(live, attempt, outcome, event.detail, now_s)

    def _stage_over(self, live: LiveRequest, attempt: Attempt, outcome: Outcome, detail: str, now_s: float) -> None:
        if outcome in COMPLETE:
            self._mover.staged(live, attempt, now_s)
        else:
            self._mover.lost_stage(live, attempt, detail or outcome.value, now_s)

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
            self._stage_over(live, attempt, outcome, detail, now_s)
            return
        if attempt.output_tokens >= attempt.asked.max_output_tokens and not live.has_begun:
            # All that was asked for has come; only the word that it ended is missing.
            self._ledger.end(live, Trigger.NODE_ENDED, Outcome.LENGTH, "", now_s)
            return
        if live.failure is not None and outcome is Outcome.INVALID:
            outcome, detail = live.failure[0], f"{live.failure[1]}; another node refused to go on: {detail}"
        if outcome is Outcome.NO_NODE and not (attempt.output_tokens or live.has_begun):
            # It was refused before it began, which is nobody's failure; each node can do so once.
            live.moves += 1
            refusal = ""
        else:
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
        self._mover.overtaken(live, now_s, "its node failed it first")
        if attempt.output_tokens:
            live.shape = remainder(live.shape, attempt.output_tokens)
        self._ledger.move(live, Trigger.RETRIED if live.state is State.SENT else Trigger.RESUMED)
        self._place(live, now_s)

    def _why_given_up(self, live: LiveRequest, attempt: Attempt) -> str:
        """Why no other node gets it, for people; empty when one does, which spends a retry of the budget."""
        if live.shape.lane == "by_proxy":
            return BY_PROXY
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
        if live.streaming is not None:
            self._ledger.abort(live, live.streaming)
        self._ledger.end(live, trigger, outcome, detail, now_s)

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _on_node_joined(self, event: ev.NodeJoined, now_s: float) -> None:
        self._pool.join(event.node_id, event.config, event.profile, now_s)
        self._expected.begins(self._pool.nodes[event.node_id], now_s)
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
            self._pool.remove(event.node_id)
            self._expected.left(event.node_id)
            self._abandon(node, f"node {event.node_id} was removed", "", now_s)

    def _on_nodes_expected(self, event: ev.NodesExpected, now_s: float) -> None:
        self._pool.expect(event.nodes, now_s)
        # Those who waited for a node that will not come now must hear it.
        self._ledger.capacity_changed()

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
            self._pool.nodes[event.node_id].may_stay = event.stay
            self._ledger.capacity_changed()
            self._empty_if_leaving(event.node_id, now_s)
            if event.undo:
                self._expected.begins(self._pool.nodes[event.node_id], now_s)

    def _on_retirement_told(self, event: ev.RetirementTold, now_s: float) -> None:
        node = self._pool.nodes.get(event.node_id)
        if node is not None and node.up:
            self._pool.retire(event.node_id, event.retiring)
            self._ledger.capacity_changed()
            if not event.retiring:
                self._expected.begins(node, now_s)
            self._empty_if_leaving(event.node_id, now_s)

    def _empty_if_leaving(self, node_id: str, now_s: float) -> None:
        node = self._pool.nodes[node_id]
        if node.to_be_emptied and node.in_flight:
            self._mover.leaving(node, now_s)

    def _on_move_asked(self, event: ev.MoveAsked, now_s: float) -> None:
        live = self._ledger.live.get(event.request_id)
        if live is not None and not self._mover.why_not_to(live, event.node_id):
            self._mover.begin(
                live,
                "an operator wants it there",
                now_s,
                cause="operator",
                node_id=event.node_id,
                urgent=not event.gently,
                priced=False,
            )

    def _on_policy_set(self, event: ev.PolicySet, now_s: float) -> None:
        self._policy = self._pipeline.policy(event.policy)

    def _abandon(self, node: Node, what: str, detail: str, now_s: float, *, stop: bool = False) -> None:
        """A node has gone: its requests fail, and nobody waits for its forecasts. `stop`: it can still be told so."""
        detail = f"{what}: {detail}" if detail else what
        for live, attempt in self._ledger.attempts_at(node):
            if stop:
                self._ledger.abort(live, attempt)
            self._failed(live, attempt, Outcome.NODE_LOST, detail, now_s)
        for ask_id, live in list(self._ledger.asks.items()):
            if live.round is not None and live.round.pending.get(ask_id) == node.node_id:
                self._answered(live, ask_id, None, detail, now_s)

"""The placement of one request, from the wish to the dispatch: refuse, ask, decide, commit. Pure.

`placement.Placer` plans, this carries the plan into the books: it opens asks, takes accounts, and says what must be
sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core import events as ev
from gateway.core.decision.placement import Infeasible, NotNow, Placer
from gateway.core.decision.policies.base import NodeView, remembering
from gateway.core.nodes.node import Node
from gateway.core.nodes.pool import NodeTable, Refusal
from gateway.core.queue.late_binding import LateBinding
from gateway.core.request.ledger import Ledger
from gateway.core.request.lifecycle import Trigger
from gateway.core.request.live import Asking, LiveRequest
from gateway.core.request.resume import attempt_id
from simcore.types import Candidate, Decision, Forecast, Outcome


class Placing:
    """One per router. `forecast_timeout_s` is how long a placement waits for forecasts."""

    def __init__(
        self, ledger: Ledger, table: NodeTable, placer: Placer, late: LateBinding, *, forecast_timeout_s: float
    ) -> None:
        self._ledger = ledger
        self._late = late
        self._table = table
        self._placer = placer
        self._forecast_timeout_s = forecast_timeout_s
        self._probes: dict[str, tuple[int, float]] = {}
        """The last question to each silent node, and when it was asked."""

    def place(self, live: LiveRequest, now_s: float) -> None:
        """First half of a placement: refuse, ask for forecasts, or decide at once."""
        if self._late.must_wait_in_line(live):
            refusal = self._table.refusal(live.shape)
            if refusal is not None and refusal.outcome is Outcome.INVALID:
                self._refuse(live, refusal, now_s)
            elif not self._late.refuses(live, now_s):
                self._late.hold(live, now_s)
            return
        found = self._placer.shortlist(live, now_s, patient=self._late.is_patient(live, now_s))
        if not found:
            self._late.hold(live, now_s)
        elif isinstance(found, Refusal):
            self._refuse(live, found, now_s)
        elif live.policy.needs_forecasts:
            self._ask(live, found, now_s)
        else:
            self._commit(live, self._placer.decide(live, found, now_s), now_s)

    def has_room(self, live: LiveRequest, now_s: float) -> bool:
        """Whether any node could take it, now or in its queue."""
        return self._table.refusal(live.shape) is None and bool(
            self._table.eligible(live.shape, live.tried, now_s=now_s)
        )

    def _refuse(self, live: LiveRequest, refusal: Refusal, now_s: float) -> None:
        """A request that a node has failed ends with that failure: it is what its client can act on."""
        outcome, detail = refusal
        if live.failure is not None:
            outcome, why = live.failure
            detail = f"{why}; and {detail}" if why else detail
        self._ledger.end(live, Trigger.REFUSED, outcome, detail, now_s)

    def forecast_arrived(self, event: ev.ForecastArrived, now_s: float) -> None:
        live = self._ledger.asks.get(event.ask_id)
        node = self._table.nodes.get(event.node_id)
        if live is None:
            ask_id, asked_s = self._probes.get(event.node_id, (0, 0.0))
            if node is not None and ask_id == event.ask_id and now_s - asked_s <= self._forecast_timeout_s:
                node.trust.answered()
            return
        if node is not None:
            node.trust.answered()
        self._answered(live, event.ask_id, event.forecast, event.error or "it gave no forecast", now_s)

    def node_gone(self, node: Node, detail: str, now_s: float) -> None:
        """Nobody waits for its forecasts any longer."""
        for ask_id, live in list(self._ledger.asks.items()):
            if live.asking is not None and live.asking.pending.get(ask_id) == node.node_id:
                self._answered(live, ask_id, None, detail, now_s)

    def decide(self, live: LiveRequest, now_s: float) -> None:
        """Second half of a placement, with the forecasts that came; from the start if the shortlist has gone."""
        asking = self._ledger.stop_asking(live)
        assert asking is not None, "a decision with forecasts follows asking for them"
        for node_id in asking.pending.values():
            if (node := self._table.nodes.get(node_id)) is not None:
                node.trust.unanswered(now_s)
        patient = self._late.is_patient(live, now_s)
        decision = self._placer.decide_with_forecasts(live, asking, now_s=now_s, patient=patient)
        if decision is None:
            self.place(live, now_s)
        elif isinstance(decision, Infeasible):
            self._infeasible(live, decision, now_s)
        elif isinstance(decision, NotNow):
            self._late.hold(live, now_s, again_in_s=decision.again_in_s)
        else:
            self._commit(live, decision, now_s, asking)

    def _infeasible(self, live: LiveRequest, found: Infeasible, now_s: float) -> None:
        """Refused, or held as the last of all."""
        again_s = found.again_in_s
        if self._late.refuse_infeasible:
            self._ledger.end(live, Trigger.REFUSED, Outcome.OVERLOADED, found.detail, now_s, retry_after_s=again_s)
        else:
            self._late.demote(live)
            self._late.hold(live, now_s, again_in_s=again_s)

    def _ask(self, live: LiveRequest, views: Sequence[NodeView], now_s: float) -> None:
        shape = live.shape
        candidate = Candidate(
            request_id=attempt_id(shape.request_id, live.attempt),
            prompt_tokens=shape.prompt_tokens,
            max_output_tokens=shape.max_output_tokens,
            belief=shape.belief,
            priority=shape.priority,
            block_hashes=shape.block_hashes,
        )
        shortlist = [self._table.nodes[view.node_id] for view in views]
        pending: dict[int, str] = {}
        failures: dict[str, str] = {}
        for node in shortlist:
            if node.trust.is_silent:
                failures[node.node_id] = "its predictor has not answered lately"
                if node.trust.probe_due(now_s):
                    self._probe(node, candidate, now_s)
                continue
            ask_id = self._ledger.open_ask(live)
            pending[ask_id] = node.node_id
            self._ledger.want(ev.AskForecast(ask_id=ask_id, node_id=node.node_id, candidate=candidate))
        live.asking = Asking(
            timer_id=self._ledger.start_timer(live, now_s + self._forecast_timeout_s),
            shortlist=shortlist,
            pending=pending,
            asked_seq={node.node_id: node.dispatch_seq for node in shortlist},
            failures=failures,
        )
        if not pending:
            self.decide(live, now_s)

    def _probe(self, node: Node, candidate: Candidate, now_s: float) -> None:
        """Asks a silent node, for whose answer nobody waits, whether it answers again."""
        ask_id = self._ledger.new_ask_id()
        self._probes[node.node_id] = (ask_id, now_s)
        self._ledger.want(ev.AskForecast(ask_id=ask_id, node_id=node.node_id, candidate=candidate))

    def _answered(self, live: LiveRequest, ask_id: int, forecast: Forecast | None, error: str, now_s: float) -> None:
        asking = live.asking
        assert asking is not None, "an open ask belongs to a request that is asking"
        del self._ledger.asks[ask_id]
        node_id = asking.pending.pop(ask_id)
        if forecast is not None:
            asking.forecasts[node_id] = forecast
        else:
            asking.failures[node_id] = error
        if not asking.pending:
            self.decide(live, now_s)

    def _commit(self, live: LiveRequest, decision: Decision, now_s: float, asking: Asking | None = None) -> None:
        request_id = live.shape.request_id
        self._late.placed(live, now_s)
        live.decisions.append(decision)
        node = self._table.nodes[decision.node_id]
        expected = delay_s = None
        if asking is not None:
            expected = asking.expected.get(node.node_id)
            if decision.scores[0].forecast is not None:
                delay_s = asking.delays_s.get(node.node_id)
        held = self._placer.held(live, node, delay_s)
        if (remember := remembering(live.policy)) is not None:
            remember.placed(live.shape, node.node_id)
        if live.shape.place_only:
            node.promise(held, now_s)
            self._ledger.move(live, Trigger.PLACED)
            self._ledger.log.add(live.explain())
            self._ledger.want(ev.Placed(request_id=request_id, decision=decision))
            return
        node.take(held, now_s)
        live.node = node
        live.dispatched_s = now_s
        live.expected, live.paced = expected, False
        self._ledger.move(live, Trigger.DISPATCHED)
        self._ledger.want(
            ev.Dispatch(
                request_id=request_id,
                node_id=node.node_id,
                dispatch_seq=held.dispatch_seq,
                decision=decision,
                attempt=live.attempt,
                resumed=live.shape if live.resumed_tokens else None,
            )
        )

"""The bookkeeping of a router: live requests, open questions, wanted timers, actions of the event in hand. Pure.

Nothing here decides. The one rule it keeps: a state changes in `move` only, so accounts, questions and timers are given
back there on every path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.core import events as ev
from gateway.core.events import RequestShape
from gateway.core.nodes.node import InFlight, Node
from gateway.core.queue.queue import GatewayQueue
from gateway.core.request.attempt import Attempt, ForecastRound
from gateway.core.request.explanation import Explanation, ExplanationLog
from gateway.core.request.lifecycle import HOLDS_ACCOUNT, IN_LINE, State, Trigger, follow
from gateway.core.request.live import LiveRequest
from gateway.core.request.verdict import Chosen
from simcore.types import Candidate, ExpectedWork, Outcome, class_of


class Ledger:
    """What one router has in hand. `explain_keep` ended requests stay explainable."""

    def __init__(self, explain_keep: int, queue: GatewayQueue) -> None:
        self.live: dict[str, LiveRequest] = {}
        self.asks: dict[int, LiveRequest] = {}
        self.timers: dict[int, LiveRequest] = {}
        self.log = ExplanationLog(explain_keep)
        self.on_left: Callable[[Attempt], None] | None = None
        """Told of each attempt that is over, stages of moves apart."""
        self.on_ended: Callable[[LiveRequest, float], None] | None = None
        """Told of each request that is about to end."""
        self._queue = queue
        self._capacity_changed = False
        self._last_ask_id = 0
        self._last_timer_id = 0
        self.actions: list[ev.AnyAction] = []
        """Of the event in hand: the router puts a fresh list here for each."""

    # --- actions ------------------------------------------------------------------------------------------------------

    def want(self, action: ev.AnyAction) -> None:
        self.actions.append(action)

    def start_timer(self, live: LiveRequest, at_s: float) -> int:
        timer_id = self.new_timer(at_s)
        self.timers[timer_id] = live
        return timer_id

    def new_timer(self, at_s: float) -> int:
        """A timer that belongs to no request."""
        self._last_timer_id = timer_id = self._last_timer_id + 1
        self.actions.append(ev.StartTimer(timer_id=timer_id, at_s=at_s))
        return timer_id

    def ask(self, node: Node, candidate: Candidate, expected: ExpectedWork | None = None) -> int:
        """Asks a node for a forecast; the number of the question, which belongs to no request yet."""
        self._last_ask_id = ask_id = self._last_ask_id + 1
        self.actions.append(ev.AskForecast(ask_id=ask_id, node_id=node.node_id, candidate=candidate, expected=expected))
        return ask_id

    # --- capacity -----------------------------------------------------------------------------------------------------

    def capacity_changed(self) -> None:
        """A node came, or may get requests again."""
        self._capacity_changed = True

    def take_capacity_changed(self) -> bool:
        """Whether room has come about somewhere since this was last asked: also when a request left its node."""
        changed, self._capacity_changed = self._capacity_changed, False
        return changed

    # --- requests -----------------------------------------------------------------------------------------------------

    def at_node(self, request_id: str, node_id: str, number: int) -> tuple[LiveRequest, Attempt] | None:
        """The live request and its attempt of that number, if this node has it now."""
        live = self.live.get(request_id)
        if live is None or not 0 < number <= len(live.attempts):
            return None
        attempt = live.attempts[number - 1]
        return (live, attempt) if attempt.is_at_node and attempt.node.node_id == node_id else None

    def open_round(self, live: LiveRequest, nodes: Sequence[Node], asks: dict[int, str], at_s: float) -> ForecastRound:
        """The request waits for the answers to `asks` (node per question), until `at_s` at the latest."""
        self.asks.update(dict.fromkeys(asks, live))
        live.round = ForecastRound(
            timer_id=self.start_timer(live, at_s),
            nodes=list(nodes),
            pending=asks,
            asked_seq={node.node_id: node.dispatch_seq for node in nodes},
        )
        return live.round

    def dispatch(self, live: LiveRequest, chosen: Chosen, now_s: float) -> None:
        """An attempt begins: its node's account holds it, and its tokens will go to the client."""
        node = chosen.node
        sent = self._in_flight(live.request_id, live.shape, chosen)
        node.take(sent, now_s)
        attempt = Attempt(
            number=live.next_attempt,
            node=node,
            asked=live.shape,
            decision=chosen.decision,
            dispatched_s=now_s,
            # Several answers at once take other times than one with as many tokens.
            expected=chosen.expected if live.shape.answers == 1 else None,
        )
        live.attempts.append(attempt)
        live.streaming = attempt
        live.decisions.append(chosen.decision)
        self.move(live, Trigger.DISPATCHED)
        self.actions.append(
            ev.Dispatch(
                request_id=live.request_id,
                node_id=node.node_id,
                dispatch_seq=sent.dispatch_seq,
                decision=chosen.decision,
                attempt=attempt.number,
                resumed=live.shape if live.resumed_tokens else None,
            )
        )

    def stage(
        self, live: LiveRequest, chosen: Chosen, rest: RequestShape, asked: RequestShape, kv_source: str, now_s: float
    ) -> Attempt:
        """A stage of a move begins: the destination's account holds the `rest` of the request, it is sent `asked`."""
        node = chosen.node
        sent = self._in_flight(live.request_id, rest, chosen)
        node.take(sent, now_s)
        attempt = Attempt(
            number=live.next_attempt,
            node=node,
            asked=asked,
            decision=chosen.decision,
            dispatched_s=now_s,
            is_stage=True,
        )
        live.attempts.append(attempt)
        self.actions.append(
            ev.Dispatch(
                request_id=live.request_id,
                node_id=node.node_id,
                dispatch_seq=sent.dispatch_seq,
                decision=chosen.decision,
                attempt=attempt.number,
                resumed=asked,
                stage=True,
                kv_source=kv_source,
            )
        )
        return attempt

    def promise(self, live: LiveRequest, chosen: Chosen, now_s: float) -> None:
        """Somebody else will carry the placement out: all that was wanted is the decision."""
        chosen.node.promise(self._in_flight(live.request_id, live.shape, chosen), now_s)
        live.decisions.append(chosen.decision)
        self.move(live, Trigger.PLACED)
        self.log.add(live.explain())
        self.actions.append(ev.Placed(request_id=live.request_id, decision=chosen.decision))

    def over(self, live: LiveRequest, attempt: Attempt) -> None:
        """An attempt has ended, or is given up: its place in the account of its node is given back."""
        attempt.is_at_node = False
        attempt.node.release(live.request_id)
        if self.on_left is not None and not attempt.is_stage:
            self.on_left(attempt)
        self._capacity_changed = True
        if live.streaming is attempt:
            live.streaming = None

    def abort(self, live: LiveRequest, attempt: Attempt) -> None:
        """Its node is told to stop."""
        node_id = attempt.node.node_id
        self.actions.append(ev.Abort(request_id=live.request_id, node_id=node_id, attempt=attempt.number))

    def attempts_at(self, node: Node) -> list[tuple[LiveRequest, Attempt]]:
        """What the node has of ours, in the order of dispatch."""
        held = [self.live[request_id] for request_id in node.in_flight]
        return [(live, attempt) for live in held for attempt in live.at_nodes if attempt.node is node]

    def move(self, live: LiveRequest, trigger: Trigger) -> None:
        """The only place where a state changes, and so the only one where accounts, asks and timers are given back."""
        old = live.state
        new = follow(old, trigger)
        live.state = new
        if old in HOLDS_ACCOUNT and new not in HOLDS_ACCOUNT:
            assert live.streaming is not None, f"a request that is {old.value} has a node"
            self.over(live, live.streaming)
        if self._queue.places and new not in IN_LINE and live in self._queue:
            self._queue.leave(live)
        if new is State.ENDED:
            for attempt in live.at_nodes:
                self.over(live, attempt)
            self.close_round(live)
            self.timers.pop(live.deadline_timer_id, None)
            del self.live[live.request_id]

    def close_round(self, live: LiveRequest) -> ForecastRound | None:
        """Closes the round of forecasts, if one is open, and hands it over."""
        asked = live.round
        if asked is not None:
            live.round = None
            self.timers.pop(asked.timer_id, None)
            for ask_id in asked.pending:
                self.asks.pop(ask_id, None)
        return asked

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
        if self.on_ended is not None:
            self.on_ended(live, now_s)
        for attempt in live.at_nodes:
            if attempt is not live.streaming:
                self.abort(live, attempt)
        self.move(live, trigger)
        if self.log.keeps:
            self.log.add(live.explain(outcome=outcome, detail=detail, e2e_s=now_s - live.arrival_s))
        self.actions.append(
            ev.Finish(request_id=live.request_id, outcome=outcome, detail=detail, retry_after_s=retry_after_s)
        )

    def explain(self, request_id: str) -> Explanation | None:
        live = self.live.get(request_id)
        return self.log.get(request_id) if live is None else live.explain()

    def _in_flight(self, request_id: str, shape: RequestShape, chosen: Chosen) -> InFlight:
        """The request's place in the account of the chosen node, with the next dispatch number."""
        node = chosen.node
        return InFlight(
            request_id=request_id,
            dispatch_seq=node.dispatch_seq + 1,
            prompt_blocks=node.config.blocks_for(shape.prompt_tokens),
            tokens=shape.prompt_tokens + round(shape.expected_tokens),
            prompt_tokens=shape.prompt_tokens,
            delay_s=chosen.delay_s,
            request_class=class_of(shape.priority),
        )

    def check_quiescent(self) -> None:
        """Raises AssertionError unless nothing is under way."""
        assert not self.live, f"requests still live: {list(self.live)[:5]}"
        assert not len(self._queue), f"{len(self._queue)} requests still queued"
        assert self._queue.tokens == 0, f"{self._queue.tokens} tokens still queued"
        assert not self.asks, f"asks still open: {list(self.asks)[:5]}"
        assert not self.timers, f"timers still wanted: {list(self.timers)[:5]}"

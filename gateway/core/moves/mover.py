"""Carries moves out: begins them for rules, leaving nodes and operators, and takes each from step to step. Pure.

`request.migration` says what comes next of one move, the decision pipeline where to, a rule why. Only the router lets a
request go on elsewhere (`Cutter`), as it alone changes a request's state.
"""

from __future__ import annotations

import functools
import math
import random
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import msgspec

from gateway.core import events as ev
from gateway.core.decision.pipeline import DecisionPipeline
from gateway.core.ledger import Ledger
from gateway.core.moves.config import MovesConfig
from gateway.core.moves.rule import MoveWish, NodeSeen, RequestSeen, RequestsThere
from gateway.core.moves.rules.registry import make_move_rule
from gateway.core.nodes.node import Node
from gateway.core.nodes.pool import NodePool
from gateway.core.priority import PriorityConfig
from gateway.core.request.attempt import Attempt
from gateway.core.request.explanation import MoveCause, MoveOutcome, MoveTold
from gateway.core.request.lifecycle import State
from gateway.core.request.live import LiveRequest
from gateway.core.request.migration import (
    CUT_WAIT_S,
    Cut,
    Move,
    next_step,
    stage_cost_s,
    stage_shape,
    stage_time_s,
    staged,
)
from gateway.core.request.resume import BY_PROXY, remainder, why_not_resumed
from gateway.core.request.verdict import Ask, Chosen, Refusal, Verdict
from simcore.types import class_of

TOLD = 4096
"""Moves that have ended and of which nobody has asked yet: so many are kept for metrics."""
PRICED_BY = "min_total_latency"
"""The policy whose costs say whether a move pays, whichever places requests: seconds of everybody together."""
AT_NODE = frozenset({State.SENT, State.STREAMING})


class Cutter(Protocol):
    """What the mover asks of the router."""

    def ask_elsewhere(self, move: Move, ask: Ask, now_s: float) -> None:
        """Asks these nodes for forecasts of the inquiry; the source, if it is among them, of its leaving."""

    def cut(self, move: Move, now_s: float) -> None:
        """The source is told to stop, and the destination goes on."""


class MovesStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Moves for operators and metrics."""

    under_way: int = 0
    done_total: int = 0
    given_up_total: int = 0
    """Begun, and not done: no room elsewhere, not worth it, the request ended first, a node failed."""
    stages_total: int = 0
    stage_tokens_total: int = 0
    """Prompt tokens that stages have had computed, at most."""
    out: dict[str, int] = {}
    """Under way, by the node that they leave."""
    into: dict[str, int] = {}
    """And by the node that they go to, once that is known."""


class Mover:
    """The moves of one router. Raises MovesError for an unknown rule or options that it does not have."""

    def __init__(
        self,
        config: MovesConfig,
        pool: NodePool,
        ledger: Ledger,
        pipeline: DecisionPipeline,
        cutter: Cutter,
        *,
        priority: PriorityConfig,
        state_stale_s: float,
        rng: random.Random,
    ) -> None:
        self.config = config
        self.moves: dict[str, Move] = {}
        """Under way, by request."""
        self._pool = pool
        self._ledger = ledger
        self._pipeline = pipeline
        self._cutter = cutter
        self._priority = priority
        self._state_stale_s = state_stale_s
        self._rule = make_move_rule(config, rng)
        if self._rule is not None:
            # It keeps accounts, from the first request on.
            pipeline.policy(PRICED_BY)
        self._timers: dict[int, Move] = {}
        self._tick_timer_id = 0
        self._done = self._given_up = self._stages = self._stage_tokens = 0
        self._told: deque[MoveTold] = deque(maxlen=TOLD)

    # --- who may move -------------------------------------------------------------------------------------------------

    def why_not(self, live: LiveRequest) -> str:
        """Why a request must not move now, wherever to; empty when it may."""
        if live.request_id in self.moves:
            move = self.moves[live.request_id]
            where = move.chosen.node.node_id if move.chosen is not None else "another node"
            return f"it is on its way to {where} already"
        attempt = live.streaming
        if live.state not in AT_NODE or attempt is None:
            return f"no node has it now (it is {live.state.value})"
        if live.shape.lane == "by_proxy":
            return BY_PROXY
        if attempt.output_tokens >= attempt.asked.max_output_tokens:
            return "its answer is whole but for the word that it ended"
        if live.shape.node:
            return f"it is bound to node {live.shape.node}"
        if (live.output_tokens or live.has_begun) and (why := why_not_resumed(live.shape)):
            return why
        return ""

    def why_not_to(self, live: LiveRequest, node_id: str) -> str:
        """Why it must not move to this node now; empty when it may."""
        if why := self.why_not(live):
            return why
        assert live.streaming is not None, "who may move has a node"
        node = self._pool.nodes.get(node_id)
        if node is None:
            return f"there is no node {node_id!r}; known are {', '.join(self._pool.nodes)}"
        if node is live.streaming.node:
            return f"it is at {node_id} already"
        if not node.up or node.draining:
            return f"{node_id} takes nothing new: it is {node.state()}"
        model = live.shape.model or live.streaming.node.config.model
        if not node.serves(model):
            return f"{node_id} serves {node.config.model}, not {model}"
        if live.shape.lane == "pass_through" and not node.config.forwards:
            return f"{node_id} does not hand calls on as they are"
        if live.shape.logprobs and not node.config.tells_logprobs:
            return f"{node_id} does not tell logprobs"
        tokens = live.request.prompt_tokens + live.request.max_output_tokens
        if tokens > node.longest_tokens and live.streaming.node.longest_tokens > node.longest_tokens:
            return (
                f"{node_id} would cut it short: it may have {tokens} tokens, and {node_id} holds {node.longest_tokens}"
            )
        return ""

    # --- beginning ----------------------------------------------------------------------------------------------------

    def begin(
        self,
        live: LiveRequest,
        why: str,
        now_s: float,
        *,
        cause: MoveCause = "rule",
        node_id: str = "",
        urgent: bool = False,
        priced: bool = True,
    ) -> str:
        """Begins a move of one that may move; otherwise says who has no room for it now."""
        attempt = live.streaming
        assert attempt is not None, "only who is at a node is moved"
        source = attempt.node
        shape = remainder(live.shape, attempt.output_tokens) if attempt.output_tokens else live.shape
        # What it asked for then may not tell one model from another now.
        shape = msgspec.structs.replace(shape, model=shape.model or source.config.model, node=node_id)
        priced = priced and not urgent
        inquiry = LiveRequest(
            request_id=live.request_id,
            request=live.request,
            arrival_s=live.arrival_s,
            policy=self._pipeline.policy(PRICED_BY).name if priced else live.policy,
            needs_forecasts=priced or live.needs_forecasts,
            shape=shape,
            tried={**live.tried, source.node_id: source.session},
            attempts=live.attempts,
            is_inquiry=True,
        )
        move = Move(
            live=live,
            source=attempt,
            prices=self.config.transfer,
            inquiry=inquiry,
            told=MoveTold(source=source.node_id, cause=cause, why=why, after_s=now_s - live.arrival_s),
            why=why,
            began_s=now_s,
            urgent=urgent,
            priced=priced,
        )
        verdict = self._pipeline.elsewhere(inquiry, source if move.priced else None, now_s)
        if isinstance(verdict, Refusal):
            if cause == "operator":
                move.told.outcome, move.told.detail, move.told.took_s = "no_room", verdict.detail, 0.0
                live.tell_move(move.told)
            return verdict.detail
        self.moves[live.request_id] = move
        live.tell_move(move.told)
        self.decided(move, verdict, now_s)
        return ""

    def leaving(self, node: Node, now_s: float) -> None:
        """A node that gets nothing new hands over what can go on elsewhere; what finds no room is tried again."""
        if not self.config.empty_leaving:
            return
        free = self.config.at_once_leaving - sum(1 for move in self.moves.values() if move.source.node is node)
        for live, attempt in list(self._ledger.attempts_at(node)):
            if free <= 0:
                break
            if live.streaming is attempt and not self.why_not(live):
                if self.begin(live, f"{node.node_id} is {node.state()}", now_s, cause="leaving", urgent=True):
                    break
                free -= 1
        self._plan_tick(now_s)

    def plan(self, now_s: float) -> None:
        """Something was sent to a node: a rule that is asked now and then has something to look at."""
        if self._rule is not None:
            self._plan_tick(now_s)

    # --- what a move waits for ----------------------------------------------------------------------------------------

    def decided(self, move: Move, verdict: Verdict, now_s: float) -> None:
        """Where it could go, or who has to be asked."""
        match verdict:
            case Ask():
                self._cutter.ask_elsewhere(move, verdict, now_s)
            case Chosen():
                move.chosen = verdict
                move.told.destination = verdict.node.node_id
                # Without stages its client would wait for all of it to be computed anew.
                halts = bool(move.live.output_tokens) and not move.stageable and not move.urgent
                if halts:
                    detail = f"{verdict.node.node_id} would have to compute all of it before it goes on"
                    self._give_up(move, "does_not_pay", detail, now_s)
                elif move.priced and not self._pays(move, now_s):
                    self._give_up(move, "does_not_pay", verdict.decision.reason, now_s)
                else:
                    self._go_on(move, now_s)
            case Refusal():
                self._give_up(move, "no_room", verdict.detail, now_s)
            case _:
                self._give_up(move, "no_room", "no node can start it now", now_s)

    def staged(self, live: LiveRequest, attempt: Attempt, now_s: float) -> None:
        """A stage has ended well."""
        move = self.moves.get(live.request_id)
        if move is None or move.stage is not attempt:
            return
        cost_s = stage_cost_s(move, now_s - attempt.dispatched_s)
        attempt.node.next_stage_s = max(attempt.node.next_stage_s, attempt.dispatched_s + cost_s / self.config.share)
        staged(move)
        self._go_on(move, now_s)

    def lost_stage(self, live: LiveRequest, attempt: Attempt, detail: str, now_s: float) -> None:
        """The destination has failed a stage: the request stays where it is."""
        move = self.moves.get(live.request_id)
        if move is not None and move.stage is attempt:
            move.stage = None
            self._give_up(move, "node_failed", f"{attempt.node.node_id}: {detail}", now_s)

    def token(self, live: LiveRequest, attempt: Attempt, now_s: float) -> None:
        """A token of the answer has come: a moment to cut."""
        move = self.moves.get(live.request_id)
        if move is not None and move.is_ready and move.source is attempt:
            self._cut(move, now_s)

    def first_token(self, live: LiveRequest, attempt: Attempt, now_s: float) -> None:
        """The first token of an attempt: if it began with a cut, its client has waited so long."""
        told = live.move_to(attempt.node.node_id)
        if told is not None and told.gap_s is None:
            told.gap_s = now_s - attempt.dispatched_s
            self._told.append(told)

    def overtaken(self, live: LiveRequest, now_s: float, detail: str) -> None:
        """A request goes on elsewhere for another reason, or not at all: its move is over."""
        move = self.moves.get(live.request_id)
        if move is not None:
            self._give_up(move, "ended", detail, now_s)

    def ended(self, live: LiveRequest, now_s: float) -> None:
        """A request is about to end, and so are its moves, whose gap nobody has seen if no token came after it."""
        self.overtaken(live, now_s, "it ended first")
        self._told.extend(told for told in live.told_moves if told.outcome == "moved" and told.gap_s is None)

    def take_told(self) -> list[MoveTold]:
        """Moves that have ended since this was last asked, at most the latest `TOLD`."""
        taken = list(self._told)
        self._told.clear()
        return taken

    def progress_due(self, timer_id: int) -> Collection[str]:
        """Requests on whose progress it depends what happens when this timer fires."""
        if timer_id == self._tick_timer_id:
            return self._ledger.live.keys()
        move = self._timers.get(timer_id)
        return () if move is None else (move.live.request_id,)

    def wants(self, timer_id: int) -> bool:
        """Whether a move, or the rule, waits for this timer."""
        return timer_id == self._tick_timer_id or timer_id in self._timers

    def fired(self, timer_id: int, now_s: float) -> bool:
        """Whether the timer was one of ours."""
        if timer_id == self._tick_timer_id:
            self._tick_timer_id = 0
            self._tick(now_s)
            return True
        move = self._timers.pop(timer_id, None)
        if move is None:
            return False
        move.timer_id = 0
        if move.is_ready:
            self._cut(move, now_s)
        else:
            self._go_on(move, now_s)
        return True

    def status(self) -> MovesStatus:
        out = Counter(move.source.node.node_id for move in self.moves.values())
        into = Counter(move.destination.node_id for move in self.moves.values() if move.chosen is not None)
        return MovesStatus(
            out=dict(out),
            into=dict(into),
            under_way=len(self.moves),
            done_total=self._done,
            given_up_total=self._given_up,
            stages_total=self._stages,
            stage_tokens_total=self._stage_tokens,
        )

    def check_quiescent(self) -> None:
        """Raises AssertionError unless nothing moves."""
        assert not self.moves, f"moves still under way: {list(self.moves)[:5]}"
        assert not self._timers, f"moves still wait for timers: {list(self._timers)[:5]}"

    # --- inside -------------------------------------------------------------------------------------------------------

    def _pays(self, move: Move, now_s: float) -> bool:
        """Whether the move saves everybody more than it costs, by the forecasts of both nodes. A second of
        each counts by its class.

        Not by the policy's costs, which say what one more is to a node: its present node has it already, and what that
        node will be to those who come later does not change by one that goes.
        """
        assert move.chosen is not None, "only a move with a destination has a price"
        source, destination = move.source.node, move.chosen.node
        forecasts = {score.node_id: score.forecast for score in move.chosen.decision.scores}
        stays, goes = forecasts.get(source.node_id), forecasts.get(destination.node_id)
        if stays is None or goes is None or destination is source:
            return False
        priority = move.live.shape.priority
        own = self._priority.weight_of(priority)
        stays_s = own * stays.e2e_s.mean + self._weight_beside(source, now_s, priority) * stays.harm_s.mean
        goes_s = own * goes.e2e_s.mean + self._weight_beside(destination, now_s) * goes.harm_s.mean
        share = self.config.gain_share if move.live.output_tokens else 0.0
        return stays_s - goes_s >= own * max(self.config.gain_s, share * stays.e2e_s.mean)

    def _weight_beside(self, node: Node, now_s: float, without: int | None = None) -> float:
        """What a second of those at a node counts for in the mean; `without` one of this priority."""
        view = node.view(now_s, self._state_stale_s)
        classes = dict(view.classes)
        here = view.in_flight if view.load is None else view.load.running + view.load.waiting
        if without is not None:
            here -= 1
            if classes.get(class_of(without)):
                classes[class_of(without)] -= 1
        return self._priority.weight_there(classes, here)

    def _go_on(self, move: Move, now_s: float) -> None:
        node = move.destination
        if not node.up or node.draining:
            self._give_up(move, "node_failed", f"{node.node_id} is {node.state()}", now_s)
            return
        if now_s - move.began_s > self.config.give_up_s:
            detail = f"{self.config.give_up_s:g} s were not enough: its stages do not catch up with the answer"
            self._give_up(move, "too_slow", detail, now_s)
            return
        step = next_step(move)
        if isinstance(step, Cut):
            if not move.live.output_tokens or not move.stageable:
                self._cut(move, now_s)
                return
            move.is_ready = True
            attempt = move.source
            self._ledger.want(
                ev.WatchToken(request_id=move.live.request_id, node_id=attempt.node.node_id, attempt=attempt.number)
            )
            self._wait(move, now_s + CUT_WAIT_S)
            return
        stage_s = stage_time_s(move, step.tokens)
        if stage_s != 0.0:
            if node.next_stage_s > now_s:
                self._wait(move, node.next_stage_s)
                return
            node.next_stage_s = now_s + (stage_s or 0.0) / self.config.share
        move.stage_tokens = step.tokens
        move.stages += 1
        move.live.moves += 1
        self._stages += 1
        self._stage_tokens += step.tokens - move.ready_tokens
        move.told.stages += 1
        move.told.stage_tokens += step.tokens - move.ready_tokens
        assert move.chosen is not None, "only a move with a destination has stages"
        if names := move.live.shape.block_hashes:
            node.prefixes.sent(move.live.request_id, names, node.config, now_s)
        move.stage = self._ledger.stage(
            move.live,
            move.chosen,
            move.inquiry.shape,
            stage_shape(move.inquiry.shape, step.tokens),
            "" if move.transfer is None else move.source.node.config.kv_source,
            now_s,
        )

    def _cut(self, move: Move, now_s: float) -> None:
        node, source = move.destination, move.source
        if source.output_tokens >= source.asked.max_output_tokens:
            self._give_up(move, "ended", "its answer is whole", now_s)
            return
        if not node.up or node.draining:
            self._give_up(move, "node_failed", f"{node.node_id} is {node.state()}", now_s)
            return
        self._forget(move)
        self._done += 1
        told = move.told
        told.outcome, told.took_s, told.tokens = "moved", now_s - move.began_s, move.tokens
        move.live.moved_s = now_s
        self._cutter.cut(move, now_s)
        if move.source.node.to_be_emptied:
            self.leaving(move.source.node, now_s)

    def _give_up(self, move: Move, outcome: MoveOutcome, detail: str, now_s: float) -> None:
        self._forget(move)
        self._given_up += 1
        told = move.told
        told.outcome, told.detail, told.took_s = outcome, detail, now_s - move.began_s
        self._told.append(told)
        if move.stage is not None and move.stage.is_at_node:
            self._ledger.abort(move.live, move.stage)
            self._ledger.over(move.live, move.stage)

    def _forget(self, move: Move) -> None:
        del self.moves[move.live.request_id]
        self._timers.pop(move.timer_id, None)
        self._ledger.close_round(move.inquiry)

    def _wait(self, move: Move, until_s: float) -> None:
        self._timers.pop(move.timer_id, None)
        move.timer_id = self._ledger.new_timer(until_s)
        self._timers[move.timer_id] = move

    def _plan_tick(self, now_s: float) -> None:
        if not self._tick_timer_id:
            self._tick_timer_id = self._ledger.new_timer(now_s + self.config.every_s)

    def _tick(self, now_s: float) -> None:
        busy = False
        for node in self._pool.nodes.values():
            if node.in_flight and node.to_be_emptied and self.config.empty_leaving:
                busy = True
                self.leaving(node, now_s)
        if self._rule is not None and self._ledger.live:
            busy = True
            self._follow(self._rule.tick(list(self._seen(now_s)), now_s), now_s)
        if busy:
            self._plan_tick(now_s)

    def _follow(self, wishes: Sequence[MoveWish], now_s: float) -> None:
        under_way: Counter[str] = Counter()
        for move in self.moves.values():
            under_way[move.source.node.node_id] += 1
            if move.chosen is not None:
                under_way[move.chosen.node.node_id] += 1
        for wish in wishes:
            live = self._ledger.live.get(wish.request_id)
            if live is None or live.streaming is None or not self._may_go(live, now_s):
                continue
            source_id = live.streaming.node.node_id
            if max(under_way[source_id], under_way[wish.node_id] if wish.node_id else 0) >= self.config.at_once:
                continue
            if wish.node_id and self.why_not_to(live, wish.node_id):
                continue
            if not self.begin(live, wish.why, now_s, node_id=wish.node_id, priced=wish.priced):
                under_way[source_id] += 1
                if wish.node_id:
                    under_way[wish.node_id] += 1

    def _may_go(self, live: LiveRequest, now_s: float) -> bool:
        return now_s - live.moved_s >= self.config.rest_s and not self.why_not(live)

    def _seen(self, now_s: float) -> Iterator[NodeSeen]:
        for node in self._pool.nodes.values():
            if node.up:
                yield NodeSeen(
                    view=node.view(now_s, self._state_stale_s),
                    leaving=node.draining,
                    slow=not node.health.is_healthy,
                    requests=RequestsThere(functools.partial(self._requests_seen, node, now_s)),
                )

    def _requests_seen(self, node: Node, now_s: float) -> list[RequestSeen]:
        return [
            self._request_seen(live, attempt, now_s)
            for live, attempt in self._ledger.attempts_at(node)
            if live.streaming is attempt
        ]

    def _request_seen(self, live: LiveRequest, attempt: Attempt, now_s: float) -> RequestSeen:
        shape = attempt.asked
        if attempt.output_tokens:
            shape = remainder(shape, min(attempt.output_tokens, shape.max_output_tokens - 1))
        return RequestSeen(
            request_id=live.request_id,
            prompt_tokens=live.request.prompt_tokens,
            output_tokens=live.output_tokens,
            expected_left_tokens=shape.expected_tokens if math.isfinite(shape.expected_tokens) else 0.0,
            priority=live.shape.priority,
            dispatched_s=attempt.dispatched_s,
            movable=self._may_go(live, now_s),
        )

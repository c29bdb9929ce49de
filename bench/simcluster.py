"""The simulated cluster: the live gateway's own router over simulated nodes, on an event heap. Pure.

Nothing of the router is modelled: `gateway.core.router.Router` gets the same events that the asyncio gateway gives it.
What is modelled is the world around it: how long messages take (`Delays`), engines (`simcore.node`), and predictors
(`simcore.lookahead`).

Nodes run in stretches within which nothing that they tell could come back to any of them; a message that reaches a node
first brings it to its own time. So the router hears everything in the order of time, and the result does not depend on
how long the stretches are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from bench.results import RequestResult, Summary, summarise, tpot_s
from bench.simcluster_account import RequestAccount
from bench.simcluster_heap import EventHeap, Rank
from bench.simcluster_node import ClusterNode, Delays, NodeSpec
from bench.simcluster_noise import Noise
from bench.workload.item import LengthKnowledge, WorkloadItem, belief_of
from gateway.core import events as ev
from gateway.core.outcomes import COMPLETE
from gateway.core.router import Router, RouterConfig
from length_model.belief import DEFAULT_PRIOR, truncated
from simcore.types import LengthBelief

# As plain numbers: looking up a member costs more than most events.
NODE_TOLD, FORECAST, CLIENT, TIMER, ABORT, DISPATCH, ASK = (
    int(rank) for rank in (Rank.NODE_TOLD, Rank.FORECAST, Rank.CLIENT, Rank.TIMER, Rank.ABORT, Rank.DISPATCH, Rank.ASK)
)

__all__ = ["Delays", "NodeSpec", "SimCluster", "SimResult"]

Observer = Callable[[float, ev.AnyEvent, Sequence[ev.AnyAction]], None]
"""Told of every event that the router handles, when it did, and of what it answered."""


class SimResult(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run."""

    results: list[RequestResult]
    """One per request, in the order of arrival."""
    preemptions: int
    """Of all engines."""
    steps: int
    """Engine steps run."""
    events: int
    """Events taken off the heap."""
    forecasts: int
    """What-ifs answered."""
    policies: dict[str, int]
    """Placements per policy that made them: more than one name when the fallback had to step in."""

    def summary(self) -> Summary:
        return summarise(self.results, preemptions=self.preemptions)


class _Course(msgspec.Struct):
    """One request as its client sees it."""

    item: WorkloadItem
    node_id: str = ""
    decision_s: float | None = None
    ttft_s: float | None = None
    output_tokens: int = 0
    attempt: int = 0
    resumed_tokens: int = 0
    """Of `output_tokens`, those that came from nodes before the present one."""
    result: RequestResult | None = None


class SimCluster:
    """One cluster for one run.

    `lengths` is what the router and the predictors are told of each answer's length, apart from its true length; with
    `none` they hold `prior`. `max_output_tokens` is the limit that requests carry. `scenarios` are those of a what-if,
    `noise` is put on what predictors believe and say.
    `observe` sees all that the router hears and wants, for recording.
    """

    def __init__(
        self,
        nodes: Sequence[NodeSpec],
        router: RouterConfig,
        delays: Delays | None = None,
        *,
        lengths: LengthKnowledge = "known",
        prior: LengthBelief = DEFAULT_PRIOR,
        max_output_tokens: int = 2048,
        scenarios: int = 8,
        noise: Noise | None = None,
        observe: Observer | None = None,
    ) -> None:
        if not nodes:
            raise ValueError("a cluster needs at least one node")
        if len({spec.node_id for spec in nodes}) < len(nodes):
            raise ValueError(f"node ids must differ, got {[spec.node_id for spec in nodes]}")
        self.delays = Delays() if delays is None else delays
        self.router = Router(router)
        self._heap = EventHeap()
        self._account = RequestAccount()
        self._nodes = {
            spec.node_id: ClusterNode(
                spec,
                self.delays,
                self._heap,
                account=self._account,
                scenarios=scenarios,
                lengths_known=lengths == "known",
                noise=noise,
                seed=router.seed,
            )
            for spec in nodes
        }
        self._lengths = lengths
        self._prior = prior
        self._max_output_tokens = max_output_tokens
        self._observe = observe
        self._courses: dict[str, _Course] = {}
        self._shapes: dict[str, ev.RequestShape] = {}
        self._policies: Counter[str] = Counter()

    def run(self, workload: Sequence[WorkloadItem], world: Sequence[tuple[float, ev.AnyEvent]] = ()) -> SimResult:
        """Runs until every request has ended.

        `world` holds what happens from outside, with times: `NodeLost` (the engine's requests are gone with it),
        `NodeJoined` (it comes back empty), `DrainAsked`, `ClientGone`, `PolicySet`.

        Raises:
            ValueError: two requests have one id, a node of `world` is not of this cluster, or it has run already.
        """
        if self._courses:
            raise ValueError("this cluster has run already; make another")
        items = sorted(workload, key=lambda item: item.arrival_s)
        self._courses = {item.request_id: _Course(item) for item in items}
        if len(self._courses) < len(items):
            raise ValueError("two requests of the workload have the same id")
        self._open(items[0].arrival_s if items else 0.0)
        for at_s, event in world:
            self._heap.push(at_s, Rank.WORLD, event)
        arrivals = iter(items)
        self._schedule_next(arrivals)
        events = self._drive(arrivals)
        nodes = self._nodes.values()
        for node in nodes:
            node.finish()
        results = [course.result for course in self._courses.values() if course.result is not None]
        assert len(results) == len(items), "a request has not ended although nothing is left to happen"
        return SimResult(
            results=results,
            preemptions=self.preemptions,
            steps=sum(node.steps for node in nodes),
            events=events,
            forecasts=sum(node.forecasts for node in nodes),
            policies=dict(self._policies),
        )

    def free_blocks(self) -> list[int]:
        """KV blocks that each engine has free after its last step."""
        return [node.free_blocks for node in self._nodes.values()]

    @property
    def preemptions(self) -> int:
        """Of all engines so far."""
        return self._account.preemptions.total()

    def _open(self, at_s: float) -> None:
        for node in self._nodes.values():
            self._join(node, at_s)

    def _join(self, node: ClusterNode, at_s: float) -> None:
        spec = node.spec
        self._tell(ev.NodeJoined(node_id=spec.node_id, config=spec.config, profile=spec.step_time.name), at_s)
        self._tell(ev.LoadNoted(load=node.load(at_s), dispatch_seq=0), at_s)

    def _schedule_next(self, arrivals: Iterator[WorkloadItem]) -> None:
        item = next(arrivals, None)
        if item is not None:
            self._heap.push(item.arrival_s, Rank.CLIENT, item)

    def _drive(self, arrivals: Iterator[WorkloadItem]) -> int:
        heap, nodes = self._heap, list(self._nodes.values())
        one_way_s = self.delays.network_one_way_s
        # What a node tells at t can reach a node, as the router's answer, this much later and no sooner.
        reaction_s = 2 * one_way_s + self.delays.decision_s
        events = 0
        while True:
            heard_s = heap.next_s - one_way_s if heap else math.inf
            soonest_s = min([node.next_s for node in nodes])
            if soonest_s < heard_s:
                until_s = max(min([node.tells_s for node in nodes]) + reaction_s, math.nextafter(soonest_s, math.inf))
                until_s = min(until_s, heard_s)
                for node in nodes:
                    if node.next_s < until_s:
                        node.run_until(until_s)
                continue
            if not heap:
                return events
            at_s, rank, _, what = heap.pop()
            events += 1
            if rank == NODE_TOLD:
                node, epoch, event = what
                if epoch == node.epoch:
                    self._tell(event, at_s)
                continue
            if rank >= ABORT:
                self._reach(rank, what, at_s)
                continue
            # The router may look at its nodes now.
            for node in nodes:
                note = node.note(at_s)
                if note is not None:
                    self._tell(note, at_s)
            if rank == FORECAST:
                node, epoch, event = what
                if epoch == node.epoch:
                    self._tell(event, at_s)
            elif rank == CLIENT:
                self._schedule_next(arrivals)
                self._tell(ev.Arrived(request=self._shape(what)), at_s)
            elif rank == TIMER:
                self._tell(what, at_s)
            else:
                self._change_world(what, at_s)

    def _reach(self, rank: int, what: Any, at_s: float) -> None:
        """A message reaches its node, unless that has broken since it was sent."""
        node, epoch, action = what
        if epoch != node.epoch:
            return
        if rank == DISPATCH:
            shape = action.resumed or self._shapes[action.request_id]
            item = self._courses[action.request_id].item
            rest_tokens = item.output_tokens - (shape.prompt_tokens - item.prompt_tokens)
            node.take(shape, rest_tokens, action.dispatch_seq, at_s, attempt=action.attempt)
        elif rank == ASK:
            node.answer(action, at_s)
        else:
            node.abort(action.request_id, at_s)

    def _change_world(self, event: ev.AnyEvent, at_s: float) -> None:
        if isinstance(event, (ev.NodeLost, ev.NodeRemoved)):
            self._break(self._node(event.node_id), at_s)
        elif isinstance(event, ev.NodeJoined):
            node = self._node(event.node_id)
            self._break(node, at_s)
            self._join(node, at_s)
            return
        self._tell(event, at_s)

    def _break(self, node: ClusterNode, at_s: float) -> None:
        """Engine and session are gone; what had left the node before has reached the router."""
        for request_id, tokens in node.progress(at_s).items():
            course = self._courses[request_id]
            news = course.resumed_tokens + tokens - course.output_tokens
            if course.result is None and course.node_id == node.node_id and news > 0:
                seen = ev.TokensSeen(request_id=request_id, node_id=node.node_id, tokens=news, attempt=course.attempt)
                self._tell(seen, at_s)
        node.restart()

    def _node(self, node_id: str) -> ClusterNode:
        node = self._nodes.get(node_id)
        if node is None:
            raise ValueError(f"the world names node {node_id!r}; this cluster has {', '.join(self._nodes)}")
        return node

    def _tell(self, event: ev.AnyEvent, at_s: float) -> None:
        """The router hears an event; its wishes are carried out."""
        if type(event) is ev.TokensSeen:
            self._tokens_came(event, at_s)
        actions = self.router.handle(event, at_s)
        if self._observe is not None:
            self._observe(at_s, event, actions)
        if not actions:
            return
        left_s = at_s + self.delays.decision_s
        there_s = left_s + self.delays.network_one_way_s
        for action in actions:
            match action:
                case ev.AskForecast():
                    self._send(there_s, Rank.ASK, action)
                case ev.StartTimer():
                    self._heap.push(max(at_s, action.at_s), Rank.TIMER, ev.TimerFired(timer_id=action.timer_id))
                case ev.Dispatch():
                    course = self._courses[action.request_id]
                    course.node_id, course.attempt = action.node_id, action.attempt
                    course.resumed_tokens = course.output_tokens
                    course.decision_s = left_s - course.item.arrival_s
                    self._policies[action.decision.policy] += 1
                    self._send(there_s, Rank.DISPATCH, action)
                case ev.Abort():
                    self._send(there_s, Rank.ABORT, action)
                case ev.Finish():
                    self._finish(action, at_s)
                case ev.Placed():
                    raise AssertionError("no request of a simulated cluster is placed by somebody else")

    def _send(self, at_s: float, rank: Rank, action: ev.AskForecast | ev.Dispatch | ev.Abort) -> None:
        node = self._nodes[action.node_id]
        self._heap.push(at_s, rank, (node, node.epoch, action))

    def _shape(self, item: WorkloadItem) -> ev.RequestShape:
        belief = belief_of(item, self._lengths) or self._prior
        shape = ev.RequestShape(
            request_id=item.request_id,
            prompt_tokens=item.prompt_tokens,
            max_output_tokens=self._max_output_tokens,
            belief=truncated(belief, self._max_output_tokens),
            priority=item.priority,
            session=item.session,
        )
        self._shapes[item.request_id] = shape
        return shape

    def _tokens_came(self, event: ev.TokensSeen, at_s: float) -> None:
        course = self._courses[event.request_id]
        if course.result is None and course.node_id == event.node_id and course.attempt == event.attempt:
            if course.ttft_s is None:
                course.ttft_s = at_s - course.item.arrival_s
            course.output_tokens += event.tokens

    def _finish(self, action: ev.Finish, at_s: float) -> None:
        course = self._courses[action.request_id]
        item, ttft_s = course.item, course.ttft_s
        complete = action.outcome in COMPLETE and ttft_s is not None
        account = self._account
        started_s = account.started_s.get(item.request_id)
        e2e_s = at_s - item.arrival_s if complete else None
        course.result = RequestResult(
            request_id=item.request_id,
            arrival_s=item.arrival_s,
            node_id=course.node_id,
            outcome=action.outcome,
            prompt_tokens=item.prompt_tokens,
            output_tokens=course.output_tokens,
            ttft_s=ttft_s,
            tpot_s=None
            if e2e_s is None or ttft_s is None
            else tpot_s(ttft_s=ttft_s, e2e_s=e2e_s, output_tokens=course.output_tokens),
            e2e_s=e2e_s,
            decision_s=course.decision_s,
            preemptions=account.preemptions[item.request_id],
            scheduling_delay_s=None if started_s is None else started_s - item.arrival_s,
            preemption_loss_s=account.lost_s.get(item.request_id, 0.0),
            priority=item.priority,
            detail=action.detail,
        )
        self._shapes.pop(item.request_id, None)

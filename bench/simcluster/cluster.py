"""The simulated cluster: the live gateway's own router over simulated nodes, on an event heap. Pure.

Nothing of the router is modelled: `gateway.core.router.Router` gets the same events that the asyncio gateway gives it.
Nor of the predictors: each node drives `predictor.core.node_predictor.NodePredictor`, as the daemon does. What is
modelled is the world around them: how long messages take (`Delays`), and engines (`simcore.node`).

Nodes run ahead to the next event that is not their own: tokens and complete answers make the router send nothing (it
looks at its nodes when something comes or a timer fires), which is checked. So it hears everything in the order of
time, and the result does not depend on how far nodes run at once. While a stage of a move is at a node, or a move waits
for a token, the router does act on what nodes tell: then those of the move run step by step, and no other runs ahead of
what they tell.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from heapq import heappop
from typing import Any, Literal, NamedTuple

import msgspec

from bench.measure.results import RequestResult, Summary, summarise
from bench.measure.scaling import ScalingResult
from bench.simcluster.agenda import Agenda
from bench.simcluster.heap import EventHeap, Rank
from bench.simcluster.node import ClusterNode, Delays, NextToken
from bench.simcluster.noise import Noise
from bench.simcluster.request import SimulatedRequest
from bench.simcluster.scaling import (
    ConnectorFails,
    ScaledFleet,
    ScaledNodes,
    ScalingEvent,
    Started,
    TakenAway,
    Tick,
)
from bench.simcluster.world import (
    CacheLies,
    ClockJumps,
    Evicts,
    Fault,
    Fills,
    GatewayRestarts,
    Joins,
    Leaves,
    Lies,
    NodeSpec,
    OrphansDropped,
    PredictorDies,
    PredictorReturns,
    RequestsFail,
    TraceFreezes,
    Vanishes,
    WorldEvent,
)
from bench.workload.item import LengthKnowledge, WorkloadItem, belief_of
from bench.workload.prefix import item_block_hashes
from gateway.core import events as ev
from gateway.core.decision.policies.registry import needs_forecasts
from gateway.core.events import Dispatch, Finish, ForecastArrived, LoadNoted, StreamEnded, TokensSeen
from gateway.core.moves.config import TransferConfig
from gateway.core.moves.rules.registry import OFF
from gateway.core.router import Router, RouterConfig
from length_model.core.belief import DEFAULT_PRIOR, truncated
from length_model.core.hints import Hint, LearnedHints
from simcore.types import LengthBelief, Outcome

# As plain numbers: looking up a member costs more than most events.
NODE_REPORT, FORECAST, CLIENT, TIMER, ABORT, DISPATCH, ASK = (
    int(rank)
    for rank in (Rank.NODE_REPORT, Rank.FORECAST, Rank.CLIENT, Rank.TIMER, Rank.ABORT, Rank.DISPATCH, Rank.ASK)
)

DRAIN_CHECK_S = 0.1
"""How often somebody looks whether a node that is to leave is empty."""

TURNAROUND_S = 0.01
"""From the end of an answer to the request that it lets a client send, at least."""

__all__ = ["Delays", "NodeSpec", "SimCluster", "SimResult"]

_ODD = 0x9E3779B97F4A7C15
"""Its multiples spread over all names."""

Observer = Callable[[float, ev.AnyEvent, Sequence[ev.AnyAction]], None]
"""Told of every event that the router handles, when it did, and of what it answered."""


class MovesResult(msgspec.Struct, frozen=True, kw_only=True):
    """The moves of a run, since its gateway last started."""

    done: int
    given_up: int
    stages: int
    stage_share: float
    """Share of all nodes' time that stages took: by the steps that they would have been alone."""


class SimResult(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run."""

    results: list[RequestResult]
    """One per request, in the order of arrival; none where they were handed over as requests ended."""
    preemptions: int
    """Of all engines."""
    steps: int
    """Engine steps run."""
    events: int
    """Events taken off the heap."""
    forecasts: int
    """What-ifs answered."""
    moves: MovesResult | None
    """None where no move was begun."""
    policies: dict[str, int]
    """Placements per policy that made them: more than one name when the fallback had to step in."""
    scaling: ScalingResult | None = None
    """None without a scaler."""

    def summary(self) -> Summary:
        return summarise(self.results, preemptions=self.preemptions)


class _Ready(NamedTuple):
    """A new node has started."""

    spec: NodeSpec


class _Drains(NamedTuple):
    """A node gets nothing new any more, and goes when it is empty."""

    node_id: str


class _Fetched(NamedTuple):
    """A node has the KV of the first tokens of a request: of a stage, or of one that waits for it."""

    action: Dispatch
    names: tuple[int, ...]
    """Of the blocks of prompt and answer."""
    tokens: int
    rest_tokens: int


class _Looks(NamedTuple):
    """Ends of answers are looked at: no node runs ahead of a request that one of them sets free."""


class SimCluster:
    """One cluster for one run.

    `lengths` is what the router and the predictors know of each answer's length, apart from its true length; with
    `none` they hold `prior`, and a single `predicted` number is worth to them what earlier ones came to, unless they
    are `trusting`. `max_output_tokens` is the limit that requests carry. `scenarios` are those of a what-if,
    `correcting` lets predictors correct them by experience, `noise` is put on what predictors believe and say.
    `observe` sees all that the router hears and wants, for recording; `came` is called after each arrival. Without
    `tells_priorities` neither router nor nodes hear of them. With `scaled` it has nodes beside `nodes` that a scaler
    starts and stops.
    """

    def __init__(
        self,
        nodes: Sequence[NodeSpec],
        router: RouterConfig,
        delays: Delays | None = None,
        *,
        lengths: LengthKnowledge = "known",
        prior: LengthBelief = DEFAULT_PRIOR,
        trusting: bool = False,
        max_output_tokens: int = 2048,
        scenarios: int = 8,
        correcting: bool | Literal["by size"] = True,
        noise: Noise | None = None,
        observe: Observer | None = None,
        came: Callable[[], object] | None = None,
        dress: Callable[[ev.RequestShape], ev.RequestShape] | None = None,
        tells_priorities: bool = True,
        scaled: ScaledFleet | None = None,
    ) -> None:
        of_scaler = [] if scaled is None else scaled.first_nodes()
        nodes = [*nodes, *of_scaler]
        kinds = nodes if scaled is None else [*nodes, *(group.node for group in scaled.groups.values())]
        if not kinds:
            raise ValueError("a cluster needs at least one node")
        if len({spec.node_id for spec in nodes}) < len(nodes):
            raise ValueError(f"node ids must differ, got {[spec.node_id for spec in nodes]}")
        self.delays = Delays() if delays is None else delays
        self.router = Router(router)
        self._heap = EventHeap()
        self._reports = EventHeap(self._heap)
        """Tokens and complete answers on their way to the router."""
        self._requests: dict[str, SimulatedRequest] = {}
        """Those that have come and not ended."""
        self._make_node = functools.partial(
            ClusterNode,
            delays=self.delays,
            heap=self._heap,
            reports=self._reports,
            requests=self._requests,
            scenarios=scenarios,
            lengths_known=lengths == "known",
            correcting=correcting,
            noise=noise,
            seed=router.seed,
        )
        self._nodes = {spec.node_id: self._make_node(spec) for spec in nodes}
        self._agenda = Agenda.of(self._nodes.values())
        self._left: list[ClusterNode] = []
        """Nodes that are not of the cluster any more."""
        self._naming = next((spec.config for spec in kinds if spec.config.enable_prefix_caching), kinds[0].config)
        """The router names blocks in the size of the first node that caches prefixes."""
        self._lengths = lengths
        self._prior = prior
        # The truth comes out as it was said: nothing is to be learned there.
        self._hints = LearnedHints() if lengths == "predicted" and not trusting else None
        self._max_output_tokens = max_output_tokens
        self._observe = observe
        self._came = came
        self._dress = dress
        self._tells_priorities = tells_priorities
        self._has_move_rule = router.moves.rule != OFF
        """Whether a rule says who moves: then nodes tell what is ahead of the requests that they have."""
        self._is_asked = dress is not None or needs_forecasts(router.policy) or self._has_move_rule
        """Whether nodes may be asked for forecasts."""
        self._has_names = False
        """Whether prompts of the workload have names for their blocks: only then nodes tell of their caches."""
        self._tell_s = math.inf
        """When the next node tells of its cache."""
        self._gateway = 0
        """Grows with each restart: timers of earlier gateways are lost."""
        self._ahead_s = 0.0
        """By how much the gateway's clock has jumped."""
        self._has_run = False
        self._coming = 0
        """Requests that are on their way to the gateway."""
        self._ended = 0
        """Requests."""
        self._hand_on: Callable[[RequestResult], object] | None = None
        self._results: list[tuple[float, int, RequestResult]] = []
        """With arrival and number, unless they are handed on."""
        self._last_end_s = 0.0
        self._scaled = None if scaled is None else ScaledNodes(scaled, _Stage(self))
        self._moves: dict[str, tuple[int, tuple[ClusterNode, ...]]] = {}
        """Moves of which the router hears next by what nodes tell: the attempt of the stage, if it is one, and the
        nodes."""
        self._moves_done = 0
        """By this gateway."""
        self._policies: Counter[str] = Counter()
        self._followers: dict[str, SimulatedRequest] = {}
        """By the request whose end each waits for."""
        self._queued: deque[SimulatedRequest] = deque()
        """Requests of a closed loop that are to be sent yet."""

    def run(
        self,
        workload: Iterable[WorkloadItem],
        world: Sequence[tuple[float, WorldEvent | ConnectorFails]] = (),
        *,
        at_once: int | None = None,
        ended: Callable[[RequestResult], object] | None = None,
    ) -> SimResult:
        """Runs until every request has ended.

        An iterator of requests, in the order of arrival, is read as they come, and `ended` gets each result when it is
        there: with both nothing is kept of a request that has ended.

        With `at_once` it is a closed loop: so many requests, or conversations of several, are under way, and the next
        one is sent when one has ended; arrival times only say in which order.

        `world` holds what happens from outside, with times: `NodeLost` (the engine's requests are gone unless only its
        daemon died), `NodeJoined` (it comes back empty), `DrainAsked`, `ClientGone`, `PolicySet`, any `Fault`, and
        nodes that come new (`Joins`) or go for good (`Leaves`).

        Raises:
            ValueError: two requests have one id, a node of `world` is not of this cluster, or it has run already; an
                iterator gives requests out of order, or such as are not sent by the clock alone.
        """
        if self._has_run:
            raise ValueError("this cluster has run already; make another")
        self._has_run = True
        self._hand_on = ended
        if isinstance(workload, Iterator):
            if at_once is not None:
                raise ValueError("a closed loop needs all of its requests beforehand; give a list of them")
            # What the prompts' blocks are called is seen when they come.
            self._has_names = True
            arrivals = _numbered(workload)
        else:
            items = sorted(workload, key=lambda item: item.arrival_s)
            self._has_names = any(item.prefix_ids for item in items)
            arrivals = self._sent_by_the_clock(items, at_once)
        self._is_asked |= any(isinstance(event, ev.PolicySet) for _, event in world)
        for node in self._nodes.values():
            self._set_up(node)
        first = next(arrivals, None)
        first_s = 0.0 if first is None else first.item.arrival_s
        self._open(first_s)
        for at_s, event in world:
            self._heap.push(at_s, Rank.WORLD, event)
        if self._followers or self._queued:
            self._heap.push(first_s, Rank.WORLD, _Looks())
        if first is not None:
            self._comes(first)
        events = self._drive(arrivals)
        nodes = [*self._nodes.values(), *self._left]
        for node in nodes:
            node.finish()
        assert not self.unfinished, "a request has not ended although nothing is left to happen"
        self._results.sort(key=lambda found: found[:2])
        return SimResult(
            results=[result for _, _, result in self._results],
            preemptions=self.preemptions,
            steps=sum(node.steps for node in nodes),
            events=events,
            forecasts=sum(node.forecasts for node in nodes),
            moves=self._moves_result(sum(node.stage_s for node in nodes), max(first_s, self._last_end_s) - first_s),
            policies=dict(self._policies),
            scaling=None if self._scaled is None else self._scaled.finish(max(first_s, self._last_end_s)),
        )

    def _moves_result(self, stage_s: float, course_s: float) -> MovesResult | None:
        status = self.router.moves_status()
        if not status.done_total + status.given_up_total:
            return None
        return MovesResult(
            done=status.done_total,
            given_up=status.given_up_total,
            stages=status.stages_total,
            stage_share=stage_s / max(course_s * (len(self._nodes) + len(self._left)), 1e-9),
        )

    def specs(self) -> list[NodeSpec]:
        """Of the nodes that are of the cluster now."""
        return [node.spec for node in self._nodes.values()]

    def busy_nodes(self) -> list[str]:
        """Nodes whose engines have requests."""
        return [node.node_id for node in self._nodes.values() if node.is_busy and not node.faults.vanished]

    def free_blocks(self) -> list[int]:
        """KV blocks that each engine has free after its last step."""
        return [node.free_blocks for node in self._nodes.values()]

    @property
    def followed(self) -> int:
        """Requests that the scaler still thinks to be under way; 0 without one."""
        return 0 if self._scaled is None else len(self._scaled.watch)

    @property
    def preemptions(self) -> int:
        """Of all engines so far."""
        return sum(node.preemptions for node in (*self._nodes.values(), *self._left))

    @property
    def unfinished(self) -> bool:
        """Whether a request has not ended, or is yet to come."""
        return bool(self._coming or self._requests or self._followers or self._queued)

    def _open(self, at_s: float) -> None:
        for node in self._nodes.values():
            self._join(node, at_s)
        if self._scaled is not None:
            self._scaled.begin(at_s)

    def _join(self, node: ClusterNode, at_s: float) -> None:
        spec, config = node.spec, node.spec.config
        if self._has_names and config.enable_prefix_caching:
            config = msgspec.structs.replace(config, prefix_cache_traced=True)
        if self.router.config.moves.transfer is not None:
            config = msgspec.structs.replace(config, kv_source=spec.node_id)
        self._hand_over(ev.NodeJoined(node_id=spec.node_id, config=config, profile=spec.step_time.name), at_s)
        self._hand_over(ev.PaceTold(node_id=spec.node_id, pace=spec.step_time.pace(config)), at_s)
        self._hand_over(ev.LoadNoted(load=node.load(at_s), dispatch_seq=0), at_s)

    def _sent_by_the_clock(self, items: list[WorkloadItem], at_once: int | None) -> Iterator[SimulatedRequest]:
        """Those that wait for nobody; the others are kept for when somebody ends. Raises ValueError."""
        names = {item.request_id for item in items}
        if len(names) < len(items):
            raise ValueError("two requests of the workload have the same id")
        waiting = [(number, item) for number, item in enumerate(items) if item.after]
        self._followers = {item.after: SimulatedRequest(item, number) for number, item in waiting}
        if len(self._followers) < len(waiting) or not names >= self._followers.keys():
            raise ValueError("two requests follow the same one, or one follows a request that is not there")
        free = (SimulatedRequest(item, number) for number, item in enumerate(items) if not item.after)
        if at_once is None:
            return free
        first = list(itertools.islice(free, at_once))
        for request in first:
            request.comes_at(items[0].arrival_s)
        self._queued.extend(free)
        return iter(first)

    def _send_next(self, request_id: str, at_s: float) -> None:
        """Somebody's request has ended: who waited for that comes."""
        request = self._followers.pop(request_id, None)
        if request is None and self._queued:
            request = self._queued.popleft()
        if request is not None:
            request.comes_at(at_s + max(request.item.think_s, TURNAROUND_S))
            self._comes(request)

    def _comes(self, request: SimulatedRequest) -> None:
        self._coming += 1
        self._heap.push(request.item.arrival_s, Rank.CLIENT, request)

    def _drive(self, arrivals: Iterator[SimulatedRequest]) -> int:
        heap, reports = self._heap.entries, self._reports.entries
        one_way_s = self.delays.network_one_way_s
        events, at_s, next_s, looked_s = 0, 0.0, -math.inf, -math.inf
        while True:
            first = heap[0]
            if first[0] != next_s or self._moves:
                next_s = self._run_closely(first[0]) if self._moves else first[0]
                heard_s = next_s - one_way_s
                for node in self._agenda.busy_before(heard_s):
                    node.run_until(heard_s)
            while reports[0] < first and reports[0][0] <= next_s:
                at_s, _, _, (node, epoch, heard) = heappop(reports)
                events += len(heard)
                if epoch == node.epoch:
                    if self._moves and any(event.request_id in self._moves for event in heard):
                        self._hear_notes(at_s)
                    for event in heard:
                        self._heard(node, event, at_s)
                    first = heap[0]
                    assert first[0] >= next_s, "the router sent something because of tokens or a complete answer"
            if first[0] > next_s:
                continue
            if next_s == math.inf:
                # Their last words, which nobody has asked to see.
                at_s += self.delays.note_interval_s + one_way_s
                self._hear_notes(at_s)
                return events
            at_s, rank, _, what = heappop(heap)
            events += 1
            if rank >= ABORT:
                self._reach(rank, what, at_s)
                looked_s = -math.inf
                continue
            if rank != NODE_REPORT and looked_s != at_s:
                # The router may look at its nodes now.
                self._hear_notes(at_s)
                looked_s = at_s
            if rank in (NODE_REPORT, FORECAST):
                node, epoch, event = what
                if epoch == node.epoch:
                    if type(event) is ForecastArrived:
                        self._tell_progress(self.router.moving, at_s)
                    self._heard(node, event, at_s)
            elif rank == CLIENT:
                self._coming -= 1
                if (request := next(arrivals, None)) is not None:
                    self._comes(request)
                self._hand_over(ev.Arrived(request=self._shape(what)), at_s)
                if self._came is not None:
                    self._came()
            elif rank == TIMER:
                gateway, event = what
                if gateway == self._gateway:
                    self._tell_progress(self.router.progress_due(event.timer_id), at_s)
                    self._hand_over(event, at_s)
            else:
                self._change_world(what, at_s)
                looked_s = -math.inf

    def _run_closely(self, next_s: float) -> float:
        """Runs the nodes of moves to the first thing that the router hears; when that is, `next_s` at the latest."""
        reports, one_way_s = self._reports.entries, self.delays.network_one_way_s
        nodes = {node.node_id: node for _, nodes in self._moves.values() for node in nodes}.values()
        while True:
            next_s = min(next_s, reports[0][0])
            node = min(nodes, key=lambda node: node.next_s)
            if node.next_s >= next_s - one_way_s:
                return next_s
            node.run_step()

    def _heard(self, node: ClusterNode, event: ev.AnyEvent | NextToken, at_s: float) -> None:
        """Something that a node has told of a request reaches the router."""
        if isinstance(event, NextToken):
            request = self._requests.get(event.request_id)
            if request is not None and request.attempt == event.attempt:
                self._catch_up(node, {event.request_id: event.tokens}, at_s)
            return
        if type(event) is StreamEnded and (move := self._moves.get(event.request_id)) and move[0] == event.attempt:
            del self._moves[event.request_id]
            self._tell_progress((event.request_id,), at_s)
        self._hand_over(event, at_s)

    def _tell_progress(self, request_ids: Collection[str], at_s: float) -> None:
        """What has come of these answers by now, which the router is about to look at."""
        heard_s = at_s - self.delays.network_one_way_s
        for request_id in list(request_ids):
            if (request := self._requests.get(request_id)) is None:
                continue
            node = self._nodes.get(request.node_id)
            # Of one whose first token is on its way nothing is told before.
            if node is not None and not node.faults.deaf and request.output_tokens > request.resumed_tokens:
                self._catch_up(node, {request_id: node.progress_of(request_id, heard_s)}, at_s)

    def _hear_notes(self, at_s: float) -> None:
        for node in self._agenda.noted_by(at_s):
            if (note := node.note(at_s)) is not None:
                self._hand_over(note, at_s)
        if self._tell_s <= at_s:
            self._hear_caches(at_s)

    def _hear_caches(self, at_s: float) -> None:
        for node in self._nodes.values():
            if node.tell_s <= at_s and (told := node.tell_cache(at_s)) is not None:
                self._hand_over(told, at_s)
        self._tell_s = min([node.tell_s for node in self._nodes.values()], default=math.inf)

    def _reach(self, rank: int, what: Any, at_s: float) -> None:
        """A message reaches its node, unless that has broken since it was sent."""
        node, epoch, action, request = what
        if epoch != node.epoch or node.faults.deaf:
            return
        if isinstance(action, _Fetched):
            self._fetched(node, action, at_s)
        elif type(action) is Dispatch:
            item, shape = request.item, action.resumed or request.shape
            assert shape is not None, "only a request that has come is dispatched"
            rest_tokens = 1 if action.stage else item.output_tokens - (shape.prompt_tokens - item.prompt_tokens)
            names = self._block_hashes(node, item, shape)
            transfer = self.router.config.moves.transfer
            halts = transfer is not None and not transfer.overlap and request.cut_s is not None
            if request.is_staged or halts:
                names = _own_names(item, names, (shape.prompt_tokens + rest_tokens) // node.block_size_tokens)
            if transfer is not None and (halts or action.kv_source) and node.caches:
                self._fetch(node, request, transfer, _Fetched(action, names, shape.prompt_tokens, rest_tokens), at_s)
                return
            node.take(
                shape,
                rest_tokens,
                action.dispatch_seq,
                at_s,
                attempt=action.attempt,
                block_hashes=names,
                is_stage=action.stage,
            )
        elif rank == ASK:
            node.answer(self._understood(node, action), at_s)
        else:
            node.abort(action.request_id, at_s, attempt=action.attempt)

    def _fetch(
        self, node: ClusterNode, request: SimulatedRequest, transfer: TransferConfig, fetched: _Fetched, at_s: float
    ) -> None:
        """A node begins to fetch the KV of a request from another, when both have ended earlier transfers."""
        blocks = fetched.tokens // node.block_size_tokens
        missing = blocks - node.cached_blocks(fetched.names[:blocks])
        begins_s = max(at_s, node.link_free_s, request.source.link_free_s if request.source is not None else at_s)
        ends_s = begins_s + transfer.seconds(missing * node.block_size_tokens)
        for end in (node, request.source):
            if end is not None:
                end.link_free_s = ends_s - transfer.fixed_s
        node.fetches(fetched.action.request_id, fetched.action.attempt, fetched.action.dispatch_seq, at_s)
        self._heap.push(ends_s, DISPATCH, (node, node.epoch, fetched, request))

    def _fetched(self, node: ClusterNode, fetched: _Fetched, at_s: float) -> None:
        """The KV of a request is there, unless that is not wanted any more."""
        action, names, tokens, rest_tokens = fetched
        if not node.has_fetched(action.request_id, action.attempt, names[: tokens // node.block_size_tokens], at_s):
            return
        if action.stage:
            ended = ev.StreamEnded(
                request_id=action.request_id, node_id=node.node_id, outcome=Outcome.STOP, attempt=action.attempt
            )
            self._reports.push(at_s + self.delays.network_one_way_s, NODE_REPORT, (node, node.epoch, (ended,)))
        else:
            shape = action.resumed
            assert shape is not None, "only who has begun elsewhere waits for a transfer"
            node.take(shape, rest_tokens, action.dispatch_seq, at_s, attempt=action.attempt, block_hashes=names)

    def _change_world(self, event: WorldEvent | _Ready | _Drains | _Looks | ScalingEvent, at_s: float) -> None:
        if isinstance(event, (Tick, Started, TakenAway, ConnectorFails)):
            assert self._scaled is not None, f"{event} is for a scaler, and this cluster has none"
            self._scaled.happen(event, at_s)
            return
        if isinstance(event, _Looks):
            if self._followers or self._queued:
                self._heap.push(at_s + TURNAROUND_S, Rank.WORLD, event)
            return
        if isinstance(event, Fault):
            self._go_wrong(event, at_s)
            return
        if isinstance(event, Joins):
            self._heap.push(at_s + event.startup_s, Rank.WORLD, _Ready(event.spec))
            return
        if isinstance(event, _Ready):
            self._add(event.spec, at_s)
            return
        if isinstance(event, Leaves):
            self._change_world(ev.DrainAsked(node_id=event.node_id), at_s)
            event = _Drains(event.node_id)
        if isinstance(event, _Drains):
            self._remove_when_empty(self._node(event.node_id), at_s)
            return
        if isinstance(event, (ev.NodeLost, ev.NodeRemoved)):
            if not self._node(event.node_id).faults.no_daemon:
                self._break(self._node(event.node_id), at_s)
        elif isinstance(event, (ev.DrainAsked, ev.RetirementTold)):
            node = self._node(event.node_id)
            self._tell_progress(node.held, at_s)
        elif isinstance(event, ev.MoveAsked):
            if self.router.why_not_moved(event.request_id, event.node_id):
                return
            self._tell_progress((event.request_id,), at_s)
        elif isinstance(event, ev.NodeJoined):
            node = self._node(event.node_id)
            self._break(node, at_s)
            node.faults.repair()
            self._join(node, at_s)
            return
        self._hand_over(event, at_s)

    def _add(self, spec: NodeSpec, at_s: float) -> None:
        if spec.node_id in self._nodes:
            raise ValueError(f"node {spec.node_id!r} joins, but one of that name is here")
        self._nodes[spec.node_id] = node = self._make_node(spec)
        self._agenda = Agenda.of(self._nodes.values())
        self._set_up(node)
        self._join(node, at_s)

    def _set_up(self, node: ClusterNode) -> None:
        node.is_asked = self._is_asked
        node.looks_ahead = self._has_move_rule

    def _remove_when_empty(self, node: ClusterNode, at_s: float) -> None:
        in_flight = next(status.in_flight for status in self.router.nodes() if status.node_id == node.node_id)
        if (in_flight or node.is_busy) and not node.faults.deaf:
            self._heap.push(at_s + DRAIN_CHECK_S, Rank.WORLD, _Drains(node.node_id))
            return
        self._take_away(node, at_s)

    def _take_away(self, node: ClusterNode, at_s: float) -> None:
        """A node is gone for good, with all that is on it."""
        self._break(node, at_s)
        self._left.append(self._nodes.pop(node.node_id))
        self._agenda = Agenda.of(self._nodes.values())
        self._hand_over(ev.NodeRemoved(node_id=node.node_id), at_s)

    def _go_wrong(self, fault: Fault, at_s: float) -> None:
        match fault:
            case Vanishes():
                node = self._node(fault.node_id)
                self._break(node, at_s)
                node.faults.vanished = True
            case TraceFreezes():
                self._node(fault.node_id).faults.frozen_s = None if fault.thaws else at_s
            case CacheLies():
                self._node(fault.node_id).claim_cached(fault.names)
            case Evicts():
                self._node(fault.node_id).evict(at_s)
            case Lies():
                self._node(fault.node_id).faults.lie = fault.factor
            case Fills():
                self._node(fault.node_id).faults.queue_limit = fault.queue_limit
            case RequestsFail():
                self._fail(self._node(fault.node_id), fault.count, at_s)
            case PredictorDies():
                node = self._node(fault.node_id)
                self._catch_up(node, node.progress(at_s), at_s)
                node.lose_daemon(at_s)
            case PredictorReturns():
                self._node(fault.node_id).find_daemon(at_s)
                self._join(self._node(fault.node_id), at_s)
            case OrphansDropped():
                self._node(fault.node_id).drop_orphans(at_s)
            case GatewayRestarts():
                self._restart_gateway(at_s)
            case ClockJumps():
                self._ahead_s += fault.by_s
                for _, _, _, timer in self._heap.of_rank(Rank.TIMER):
                    self._heap.push(at_s, Rank.TIMER, timer)

    def _fail(self, node: ClusterNode, count: int, at_s: float) -> None:
        progress = node.progress(at_s)
        for ended in node.fail(count, at_s):
            request = self._requests.get(ended.request_id)
            if request is not None and request.attempt == ended.attempt:
                self._catch_up(node, {ended.request_id: progress[ended.request_id]}, at_s)
            self._heard(node, ended, at_s)

    def _restart_gateway(self, at_s: float) -> None:
        self.router = Router(self.router.config)
        self._hints = None if self._hints is None else LearnedHints()
        self._gateway += 1
        self._moves.clear()
        self._moves_done = 0
        for request_id in sorted(self._requests, key=lambda request_id: self._requests[request_id].number):
            self._finish(
                ev.Finish(request_id=request_id, outcome=Outcome.INTERNAL, detail="the gateway was killed"), at_s
            )
            self._send_next(request_id, at_s)
        for node in self._nodes.values():
            if not node.faults.deaf:
                node.restart()
                self._join(node, at_s)
        if self._scaled is not None:
            self._scaled.gateway_restarted(at_s)

    def _finish(self, action: ev.Finish, at_s: float) -> SimulatedRequest:
        request = self._requests.pop(action.request_id)
        result = request.finish(action, at_s)
        if self._hand_on is None:
            self._results.append((result.arrival_s, request.number, result))
        else:
            self._hand_on(result)
        self._ended += 1
        self._last_end_s = at_s
        return request

    def _break(self, node: ClusterNode, at_s: float) -> None:
        """Engine and session are gone; what had left the node before has reached the router."""
        self._catch_up(node, node.progress(at_s), at_s)
        node.restart()

    def _catch_up(self, node: ClusterNode, progress: Mapping[str, int], at_s: float) -> None:
        """Between first token and end nodes tell nothing, to save events: what they would have told by now."""
        for request_id, tokens in progress.items():
            if (request := self._requests.get(request_id)) is None:
                continue
            unreported = request.resumed_tokens + tokens - request.output_tokens
            if request.node_id == node.node_id and unreported > 0:
                seen = ev.TokensSeen(
                    request_id=request_id, node_id=node.node_id, tokens=unreported, attempt=request.attempt
                )
                node.told(request_id, tokens)
                self._hand_over(seen, at_s)

    def _node(self, node_id: str) -> ClusterNode:
        node = self._nodes.get(node_id)
        if node is None:
            raise ValueError(f"the world names node {node_id!r}; this cluster has {', '.join(self._nodes)}")
        return node

    def _hand_over(self, event: ev.AnyEvent, at_s: float) -> None:
        """The router hears an event; its wishes are carried out."""
        if type(event) is TokensSeen:
            if (request := self._requests.get(event.request_id)) is not None:
                request.tokens_came(event, at_s)
        elif type(event) is StreamEnded and (request := self._requests.get(event.request_id)) is not None:
            request.attempt_ended(event)
        now_s = at_s + self._ahead_s
        actions = self.router.handle(event, now_s)
        if self._observe is not None:
            self._observe(at_s, event, actions)
        if self._scaled is not None and (actions or type(event) is not LoadNoted):
            self._scaled.saw(event, actions, now_s)
        if self._moves:
            moving = self.router.moving
            for request_id in [request_id for request_id in self._moves if request_id not in moving]:
                del self._moves[request_id]
        if actions:
            self._carry_out(actions, at_s)

    def _carry_out(self, actions: Sequence[ev.AnyAction], at_s: float) -> None:
        done = self._moves_done
        left_s = at_s + self.delays.decision_s
        there_s = left_s + self.delays.network_one_way_s
        for action in actions:
            match action:
                case Dispatch() if action.stage:
                    request = self._requests[action.request_id]
                    request.is_staged = True
                    request.source = self._nodes.get(request.node_id)
                    self._follow(request, action.attempt, action.node_id)
                    self._send(there_s, DISPATCH, action, request)
                case Dispatch():
                    request = self._requests[action.request_id]
                    if action.attempt > 1:
                        # Who goes on elsewhere in the turn in which a move ends has moved.
                        done = self.router.moves_status().done_total
                        if done > self._moves_done:
                            request.moved(self._nodes.get(request.node_id))
                    request.dispatched(action, left_s)
                    request.there_s = there_s
                    self._policies[action.decision.policy] += 1
                    self._send(there_s, DISPATCH, action, request)
                case Finish():
                    self._learn_length(self._finish(action, at_s), action.outcome)
                    if self._followers or self._queued:
                        self._send_next(action.request_id, at_s)
                case ev.AskForecast():
                    self._send(there_s, ASK, action)
                case ev.StartTimer():
                    timer = (self._gateway, ev.TimerFired(timer_id=action.timer_id))
                    self._heap.push(max(at_s, action.at_s - self._ahead_s), TIMER, timer)
                case ev.Abort():
                    # One that was dispatched at this very moment gets there first.
                    aborted = self._requests.get(action.request_id)
                    is_behind = aborted is not None and aborted.there_s == there_s
                    self._send(there_s, DISPATCH if is_behind else ABORT, action)
                case ev.AskCache():
                    self._nodes[action.node_id].ask_cache()
                    self._tell_s = -math.inf
                case ev.WatchToken():
                    self._follow(self._requests[action.request_id], 0)
                    self._nodes[action.node_id].watch(action.request_id)
                case ev.Placed():
                    raise AssertionError("no request of a simulated cluster is placed by somebody else")
        self._moves_done = done

    def _follow(self, request: SimulatedRequest, stage: int, *more: str) -> None:
        """The router hears of this move next by what its node, or one of `more`, tells."""
        nodes = tuple(node for node_id in (request.node_id, *more) if (node := self._nodes.get(node_id)) is not None)
        self._moves[request.item.request_id] = (stage, nodes)

    def _send(
        self,
        at_s: float,
        rank: int,
        action: ev.AskForecast | ev.Dispatch | ev.Abort,
        request: SimulatedRequest | None = None,
    ) -> None:
        """`request` goes with a dispatch: it may have ended when that gets there."""
        node = self._nodes[action.node_id]
        self._heap.push(at_s, rank, (node, node.epoch, action, request))

    def _block_hashes(self, node: ClusterNode, item: WorkloadItem, shape: ev.RequestShape) -> tuple[int, ...]:
        """Names of the prompt's blocks in the size of the node's own."""
        return shape.block_hashes if self._names_blocks_as(node) else item_block_hashes(item, node.spec.config)

    def _understood(self, node: ClusterNode, ask: ev.AskForecast) -> ev.AskForecast:
        """The question as the node can read it: names of blocks of another size are nothing that it knows."""
        if not ask.candidate.block_hashes or self._names_blocks_as(node):
            return ask
        candidate = msgspec.structs.replace(ask.candidate, block_hashes=())
        return msgspec.structs.replace(ask, candidate=candidate)

    def _names_blocks_as(self, node: ClusterNode) -> bool:
        return node.spec.config.block_size_tokens == self._naming.block_size_tokens

    def _learn_length(self, request: SimulatedRequest, outcome: Outcome) -> None:
        """As a gateway does it at every end (`gateway.intake.lengths`)."""
        if self._hints is not None and (hint := _hint_of(request.item)) is not None:
            self._hints.observe(hint, request.output_tokens, censored=outcome is not Outcome.STOP)

    def _shape(self, request: SimulatedRequest) -> ev.RequestShape:
        """The request as the router gets it; from now on it is under way."""
        item = request.item
        belief = belief_of(item, self._lengths) or self._prior
        if self._hints is not None and (hint := _hint_of(item)) is not None:
            belief = self._hints.belief(hint)
        shape = ev.RequestShape(
            request_id=item.request_id,
            prompt_tokens=item.prompt_tokens,
            max_output_tokens=self._max_output_tokens,
            model=item.model,
            belief=truncated(belief, self._max_output_tokens),
            priority=item.priority if self._tells_priorities else 0,
            session=item.session,
            block_hashes=item_block_hashes(item, self._naming),
        )
        if self._dress is not None:
            shape = self._dress(shape)
        request.shape = shape
        self._requests[item.request_id] = request
        return shape


def _numbered(items: Iterator[WorkloadItem]) -> Iterator[SimulatedRequest]:
    """Raises ValueError when they do not come in order, or not by the clock alone."""
    last_s = -math.inf
    for number, item in enumerate(items):
        if item.after:
            raise ValueError(f"{item.request_id} follows {item.after}: give a list of all requests")
        if item.arrival_s < last_s:
            raise ValueError(f"{item.request_id} comes before the one that was given before it; sort them by arrival")
        last_s = item.arrival_s
        yield SimulatedRequest(item, number)


def _hint_of(item: WorkloadItem) -> Hint | None:
    """The single number that its client predicts, if that is what it says."""
    said = belief_of(item, "predicted")
    return Hint(("", item.model), said.atoms_tokens[0]) if said is not None and len(said.atoms_tokens) == 1 else None


def _own_names(item: WorkloadItem, names: tuple[int, ...], blocks: int) -> tuple[int, ...]:
    """Names of so many blocks of one request's prompt and answer: `names`, and beyond them such as nobody else has."""
    if blocks <= len(names):
        return names[:blocks]
    first = int.from_bytes(blake2b(item.request_id.encode(), digest_size=8).digest(), "little")
    return (*names, *((first + index * _ODD) % 2**64 for index in range(len(names), blocks)))


class _Stage:
    """A cluster as its scaler acts on it (`scaling.ScaledStage`)."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster

    @property
    def router(self) -> Router:
        return self._cluster.router

    @property
    def ahead_s(self) -> float:
        return self._cluster._ahead_s

    @property
    def unfinished(self) -> bool:
        return self._cluster.unfinished

    @property
    def ended(self) -> int:
        return self._cluster._ended

    def tell_router(self, event: ev.AnyEvent, at_s: float) -> None:
        self._cluster._hand_over(event, at_s)

    def later(self, at_s: float, event: ScalingEvent) -> None:
        self._cluster._heap.push(at_s, Rank.WORLD, event)

    def add(self, spec: NodeSpec, at_s: float) -> None:
        self._cluster._add(spec, at_s)

    def take_away(self, node_id: str, at_s: float) -> None:
        self._cluster._take_away(self._cluster._node(node_id), at_s)

    def is_working(self, node_id: str) -> bool:
        return self._cluster._node(node_id).is_busy

"""One node of the simulated cluster: an engine, its predictor, and the wire between them and the router. Pure.

State is published as a real node does it: a note carries the state after the last step that has *ended*. Notes are made
when the router is about to look: one that a newer one has overtaken by then has been seen by nobody.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal

import msgspec

from bench.simcluster.engine import ObservedEngine
from bench.simcluster.heap import EventHeap, Rank
from bench.simcluster.noise import Noise, NoiseSource
from bench.simcluster.request import EngineWatch, RequestAccount
from bench.simcluster.world import NodeFaults, NodeSpec
from gateway.core.events import (
    AskForecast,
    CacheTold,
    ForecastArrived,
    LoadNoted,
    RequestShape,
    StreamEnded,
    TokensSeen,
)
from gateway.core.outcomes import COMPLETE
from length_model.core.belief import DEFAULT_PRIOR, truncated
from predictor.core.cache_teller import TELL_EVERY_S, CacheTeller
from predictor.core.calibration import Calibration
from predictor.core.node_predictor import NodePredictor
from simcore.cache_content import CacheContent
from simcore.node import NodeEvent, SimRequest
from simcore.trace import StepBatch
from simcore.tracing import NOBODY, TracingNode
from simcore.types import Candidate, Forecast, LengthBelief, NodeLoad, Outcome

NODE_REPORT = int(Rank.NODE_REPORT)


class Delays(msgspec.Struct, frozen=True, kw_only=True):
    """How long everything between the engines takes. All in seconds.

    The defaults are those of one rack: 0.2 ms each way through gRPC, 0.3 ms of gateway work per event, 0.5 ms for a
    predictor to answer, load notes every 5 ms, which is once per step.
    """

    network_one_way_s: float = 0.0002
    """Between gateway and node."""
    decision_s: float = 0.0003
    """From an event at the gateway to its actions leaving it. Placing with forecasts takes two such turns."""
    forecast_s: float = 0.0005
    """From a question at the node to its answer leaving it. What is answered is the state when it came."""
    note_interval_s: float = 0.005
    """Nodes tell their load at multiples of this, if it has changed; 0: at the end of every step."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and >= 0 seconds, got {value}")


class ClusterNode:
    """One node. Times given to its methods must not run backwards."""

    def __init__(
        self,
        spec: NodeSpec,
        delays: Delays,
        heap: EventHeap,
        reports: EventHeap,
        *,
        account: RequestAccount,
        scenarios: int,
        lengths_known: bool,
        correcting: bool | Literal["by size"] = True,
        noise: Noise | None = None,
        seed: int = 0,
    ) -> None:
        """`account` gets what becomes of each request; with `correcting` forecasts are corrected by what became of
        earlier ones, as the daemon does it ("by size": not by the arrival rate); `seed` is that of the noise."""
        self.spec = spec
        self.node_id = spec.node_id
        self.epoch = 0
        """Grows when the node breaks: messages of earlier epochs are lost."""
        self.next_s = math.inf
        """When it next has something to do; `run_until` before that does nothing."""
        self.note_s = math.inf
        """Before this moment the router has heard of no newer state; `note` before that gives nothing."""
        self.tell_s = math.inf
        """When it next tells what its prefix cache holds, if that has changed; inf before it is asked to."""
        self.faults = NodeFaults()
        self.steps = 0
        self.forecasts = 0
        self._delays = delays
        self._one_way_s = delays.network_one_way_s
        self._heap = heap
        self._reports = reports
        self._account = account
        self._correcting = correcting
        self._lengths_known = lengths_known and not (noise and noise.length)
        self._noise = None if noise is None else NoiseSource(noise, seed, spec.node_id)
        self._kept_s = 2 * _longest_step_s(spec) + delays.note_interval_s
        """Notes within so much of now are about states no older than that."""
        self._scenarios = scenarios
        self._changed = False
        """Whether the engine's state is newer than the last that was kept for a note."""
        self._cache_number: int | None = None
        """Of the last summary of the prefix cache that the router was told."""
        self._begin()

    def restart(self) -> None:
        """The engine and all that it held are gone; an empty one stands in its place."""
        self.steps += self._engine.seq
        self.epoch += 1
        self._begin()

    def lose_daemon(self, now_s: float) -> None:
        """All that the daemon knew and had on the way is gone. The engine goes on with its requests, now orphans."""
        self.run_until(now_s)
        self.epoch += 1
        self.faults.no_daemon = True
        for request_id in self._ends:
            self._watch.left(request_id, now_s)
        # A request may come back while its orphan is still here: requests are sent under a name per attempt.
        engine, names = self._engine, {}
        for request_id, known in engine.requests.items():
            if request_id not in self._orphans:
                names[request_id] = orphan = f"{request_id} of daemon {self.epoch}"
                self._orphans[orphan] = truncated(DEFAULT_PRIOR, known.request.max_output_tokens)
        engine.rename(names)
        engine.read(math.inf, 0.0)
        self._new_daemon()

    def find_daemon(self, now_s: float) -> None:
        """A new daemon finds the engine as it is; of each orphan's length it believes what is believed of anybody's."""
        self.run_until(now_s)
        self.faults.repair()
        self._known.beliefs.update(self._orphans)
        self._touch(now_s)

    def drop_orphans(self, now_s: float) -> None:
        """The engine aborts what a daemon that is gone had asked for."""
        self.run_until(now_s)
        for orphan in list(self._orphans):
            self._engine.abort(orphan)
            self._orphan_left(orphan, now_s)
        self._touch(now_s)

    def finish(self) -> None:
        """Closes the account of steps when a run has ended."""
        self.steps += self._engine.seq

    @property
    def is_busy(self) -> bool:
        """Whether its engine has requests."""
        return bool(self._ends or self._orphans)

    def load(self, now_s: float) -> NodeLoad:
        """The node's own summary."""
        load = self.predictor.load(now_s)
        assert load is not None, "a simulated engine is always known"
        return load

    @property
    def free_blocks(self) -> int:
        """Of the engine, after its last step."""
        return self._engine.free_blocks

    def run_until(self, until_s: float) -> None:
        """Runs every step that begins before `until_s`; tokens and ends go on the heap for the router."""
        engine, watch = self._engine, self._watch
        if engine.next_step_s >= until_s:
            return
        # States that will be old when `until_s` comes need not be kept, nor one that has been kept already.
        keep_from_s = until_s - self._kept_s
        if not self._changed:
            keep_from_s = max(keep_from_s, math.nextafter(engine.next_step_s, math.inf))
        while engine.next_step_s < until_s:
            watched = watch.watched
            events = engine.run(until_s, keep_from_s=keep_from_s, watched=watched, mark=self._mark)
            if events:
                self._report(events)
            elif watched == NOBODY:
                continue
            if watch.is_waiting:
                watch.after(engine.began_s)
        self._state_s = engine.next_step_s
        if self._state_s == math.inf:
            # An engine that has run dry ended its last step with somebody's last token.
            self._state_s = events[-1].at_s if events else engine.began_s
        self._changed = True
        self._plan()

    def note(self, now_s: float) -> LoadNoted | None:
        """The last word of the node that has reached the router by `now_s`, unless that was read before."""
        one_way_s = self._one_way_s
        if self.faults.frozen_s is not None or self.faults.deaf:
            return None
        engine = self._engine
        if self._changed and self._state_s + one_way_s <= now_s:
            engine.keep(self._state_s, self._mark)
            self._changed = False
        published = engine.read(now_s, one_way_s)
        self._plan()
        if published is None:
            return None
        load, mark = published
        if not mark % 2:
            load = msgspec.structs.replace(load, trusted=False)
        return LoadNoted(load=load, dispatch_seq=mark // 2)

    def ask_cache(self) -> None:
        """The router wants to know what the prefix cache holds, from the whole on."""
        self._cache_number = None
        self.tell_s = -math.inf

    def tell_cache(self, now_s: float) -> CacheTold | None:
        """What the router does not know yet of the prefix cache, the step in progress included."""
        if self.faults.frozen_s is not None or self.faults.deaf:
            return None
        teller, claims = self._teller, self.faults.claims
        if now_s >= teller.due_s:
            stored, evicted = self._cached.look(teller.one_in)
            teller.changed(stored, [name for name in evicted if name not in claims] if claims else evicted)
            teller.make(now_s)
        self.tell_s = max(teller.due_s, now_s + TELL_EVERY_S)
        summary = teller.after(self._cache_number)
        if summary is None:
            return None
        self._cache_number = summary.number
        if summary.number != teller.number:
            self.tell_s = now_s
        return CacheTold(node_id=self.node_id, summary=summary)

    def claim_cached(self, names: Collection[int]) -> None:
        """From now on it says that blocks of these names are cached, true or not."""
        self.faults.claims = frozenset(names)
        self._teller.changed_wholly()

    def progress(self, now_s: float) -> dict[str, int]:
        """Output tokens of each request here that have left the node by `now_s`."""
        self.run_until(now_s)
        snapshot = self._engine.snapshot(now_s)
        # The engine's books are those of the end of the step in progress.
        early = int(self._engine.has_work and self._engine.next_step_s > now_s)
        states = (*snapshot.running, *snapshot.waiting)
        mine = [state for state in states if state.request_id in self._ends]
        return {state.request_id: max(0, state.output_tokens - early) for state in mine}

    def take(
        self,
        shape: RequestShape,
        output_tokens: int,
        dispatch_seq: int,
        now_s: float,
        *,
        attempt: int = 1,
        block_hashes: tuple[int, ...] = (),
    ) -> None:
        """A dispatch arrives. The answer is cut where the engine's limits cut it; `block_hashes` name the prompt's
        blocks in the engine's own size."""
        self.run_until(now_s)
        limit = self.faults.queue_limit
        if limit is not None and self.load(now_s).waiting >= limit:
            full = StreamEnded(
                request_id=shape.request_id,
                node_id=self.node_id,
                outcome=Outcome.OVERLOADED,
                detail="the queue is full",
                attempt=attempt,
            )
            self._dispatched(dispatch_seq)
            self._touch(now_s)
            self._heap.push(now_s + self._delays.network_one_way_s, Rank.NODE_REPORT, (self, self.epoch, full))
            return
        config = self.spec.config
        room = min(config.max_model_len_tokens, config.num_blocks * config.block_size_tokens) - shape.prompt_tokens
        produced = min(output_tokens, shape.max_output_tokens, room)
        request = SimRequest(
            request_id=shape.request_id,
            prompt_tokens=shape.prompt_tokens,
            output_tokens=produced,
            max_output_tokens=min(shape.max_output_tokens, room),
            priority=shape.priority,
            block_hashes=block_hashes,
        )
        belief = shape.belief if self._noise is None else self._noise.believed(shape.request_id, shape.belief)
        candidate = Candidate(
            request_id=shape.request_id,
            prompt_tokens=shape.prompt_tokens,
            max_output_tokens=shape.max_output_tokens,
            belief=belief,
            priority=shape.priority,
            block_hashes=block_hashes,
        )
        self.predictor.dispatched(candidate, now_s)
        outcome = Outcome.STOP if produced == output_tokens else Outcome.LENGTH
        self._ends[shape.request_id] = (produced, outcome, attempt)
        self._engine.add_expected(request, now_s, round(belief.mean_tokens))
        self._watch.came(shape.request_id)
        self._dispatched(dispatch_seq)
        self._touch(now_s)

    def abort(self, request_id: str, now_s: float) -> None:
        """An abort arrives."""
        self.run_until(now_s)
        if not self.faults.deaf and self._engine.abort(request_id):
            self._watch.left(request_id, now_s)
            self._forget(request_id)
            self._touch(now_s)

    def answer(self, ask: AskForecast, now_s: float) -> None:
        """A question arrives; the answer goes on the heap."""
        self.run_until(now_s)
        candidate = ask.candidate
        if self._noise is not None:
            belief = self._noise.believed(candidate.request_id, candidate.belief)
            candidate = msgspec.structs.replace(candidate, belief=belief)
        (forecast,) = self.predictor.forecast((candidate,), now_s)
        # The router asks only nodes that can hold the prompt: a refusal here is a defect and stops the run.
        assert isinstance(forecast, Forecast), forecast
        if self._noise is not None:
            forecast = self._noise.forecast(forecast)
        if self.faults.lie != 1.0:
            forecast = forecast.slowed(self.faults.lie)
        self.forecasts += 1
        answer = ForecastArrived(ask_id=ask.ask_id, node_id=self.node_id, forecast=forecast)
        at_s = now_s + self._delays.forecast_s + self._delays.network_one_way_s
        self._heap.push(at_s, Rank.FORECAST, (self, self.epoch, answer))

    def _begin(self) -> None:
        self._engine = TracingNode(
            self.node_id,
            self.spec.config,
            self.spec.step_time,
            interval_s=self._delays.note_interval_s,
            lengths_known=self._lengths_known,
        )
        self._orphans: dict[str, LengthBelief] = {}
        """Requests in the engine that a dead daemon sent, and what the next one believes of them."""
        self._state_s = 0.0
        self.next_s = math.inf
        self._new_daemon()

    def _new_daemon(self) -> None:
        self._watch = EngineWatch(self._engine, self._account)
        self._known = ObservedEngine(self._engine, self.faults, scenarios=self._scenarios)
        self.predictor = NodePredictor(
            self._known, Calibration(arrivals=self._correcting is True), correcting=bool(self._correcting)
        )
        self._ends: dict[str, tuple[int, Outcome, int]] = {}
        self._cached = CacheContent(self._engine)
        self._teller = CacheTeller(lambda: [*self._cached.names(), *self.faults.claims])
        self._cache_number = None
        self.tell_s = math.inf
        self._dispatched(0)
        self._changed = False
        self.note_s = math.inf

    def _report(self, events: list[NodeEvent]) -> None:
        push, one_way_s, epoch, node_id = self._reports.push, self._one_way_s, self.epoch, self.node_id
        watch, predictor = self._watch, self.predictor
        for kind, request_id, at_s in events:
            if kind == "preempted":
                watch.preempted(request_id, at_s)
                continue
            if request_id in self._orphans:
                if kind != "first_token":
                    self._orphan_left(request_id, at_s)
                continue
            if kind == "first_token":
                attempt = self._ends[request_id][2]
                predictor.first_token(request_id, at_s)
                seen = TokensSeen(request_id=request_id, node_id=node_id, tokens=1, attempt=attempt)
                push(at_s + one_way_s, NODE_REPORT, (self, epoch, (seen,)))
                continue
            found_tokens = watch.found_tokens.get(request_id)
            watch.left(request_id, at_s)
            tokens, outcome, attempt = self._ends[request_id]
            if predictor.ended(request_id, at_s, complete=outcome in COMPLETE, output_tokens=tokens):
                self._mark ^= 1
            ended = StreamEnded(
                request_id=request_id, node_id=node_id, outcome=outcome, attempt=attempt, found_tokens=found_tokens
            )
            if tokens > 1:
                seen = TokensSeen(request_id=request_id, node_id=node_id, tokens=tokens - 1, attempt=attempt)
                push(at_s + one_way_s, NODE_REPORT, (self, epoch, (seen, ended)))
            else:
                push(at_s + one_way_s, NODE_REPORT, (self, epoch, (ended,)))
            del self._ends[request_id]

    def _orphan_left(self, orphan: str, at_s: float) -> None:
        self._watch.left(orphan, at_s)
        del self._orphans[orphan]
        self._known.ended(orphan)

    def _dispatched(self, dispatch_seq: int) -> None:
        # What a note says beside the load: up to which dispatch it counts, and whether forecasts are to be trusted.
        self._mark = 2 * dispatch_seq + self.predictor.trusted

    def _touch(self, now_s: float) -> None:
        """A message has changed the state; with a step in progress that is seen at its end."""
        self._state_s = max(now_s, self._engine.next_step_s) if self._engine.has_work else now_s
        self._changed = True
        self._plan()

    def _plan(self) -> None:
        engine = self._engine
        self.next_s = engine.next_step_s
        noted_s = engine.next_published_s
        if self._changed and self._state_s < noted_s:
            noted_s = self._state_s
        self.note_s = noted_s + self._one_way_s

    def _forget(self, request_id: str) -> None:
        del self._ends[request_id]
        self._known.ended(request_id)


def _longest_step_s(spec: NodeSpec) -> float:
    """No step takes longer: a full budget of prefill at the end of the longest prompt, and all of the KV read."""
    config = spec.config
    kv_tokens = config.num_blocks * config.block_size_tokens
    return spec.step_time.seconds(
        StepBatch(
            prefill_tokens=config.max_num_batched_tokens,
            prefill_work_tokens2=float(config.max_num_batched_tokens * config.max_model_len_tokens),
            prefill_seqs=config.max_num_seqs,
            decode_seqs=config.max_num_seqs,
            decode_kv_tokens=kv_tokens,
        )
    )

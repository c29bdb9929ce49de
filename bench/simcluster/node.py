"""One node of the simulated cluster: an engine, its predictor, and the wire between them and the router. Pure.

State is published as a real node does it: a note carries the state after the last step that has *ended*. Notes are made
when the router is about to look: one that a newer one has overtaken by then has been seen by nobody.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import msgspec

from bench.simcluster.agenda import Agenda
from bench.simcluster.engine import ObservedEngine
from bench.simcluster.heap import EventHeap, Rank
from bench.simcluster.noise import Noise, NoiseSource
from bench.simcluster.request import EngineWatch, SimulatedRequest
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
from gateway.core.request.resume import attempt_id
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


class NextToken(NamedTuple):
    """A token of a request whose next one was waited for has come: so many are there now."""

    request_id: str
    attempt: int
    tokens: int


class ClusterNode:
    """One node. Times given to its methods must not run backwards."""

    def __init__(
        self,
        spec: NodeSpec,
        delays: Delays,
        heap: EventHeap,
        reports: EventHeap,
        *,
        requests: Mapping[str, SimulatedRequest],
        scenarios: int,
        lengths_known: bool,
        correcting: bool | Literal["by size"] = True,
        noise: Noise | None = None,
        seed: int = 0,
    ) -> None:
        """`requests` are told what becomes of them; with `correcting` forecasts are corrected by what became of
        earlier ones, as the daemon does it ("by size": not by the arrival rate); `seed` is that of the noise."""
        self.spec = spec
        self.node_id = spec.node_id
        self.epoch = 0
        """Grows when the node breaks: messages of earlier epochs are lost."""
        self._agenda, self._row = Agenda(), 0
        self.next_s = math.inf
        """When it next has something to do; `run_until` before that does nothing."""
        self.note_s = math.inf
        """Before this moment the router has heard of no newer state; `note` before that gives nothing."""
        self.tell_s = math.inf
        """When it next tells what its prefix cache holds, if that has changed; inf before it is asked to."""
        self.faults = NodeFaults()
        self.is_asked = True
        """Whether anybody may want its forecasts; if not, its predictor need not hear what they would be judged by."""
        self.looks_ahead = False
        """Whether its loads tell what is ahead of the requests that it has; only where it is asked, too."""
        self.link_free_s = -math.inf
        """When it has ended the transfers of KV that have begun, to it and from it."""
        self.stage_s = 0.0
        """What stages of moves have cost it so far."""
        self._evicted = 0
        self.steps = 0
        self.preemptions = 0
        self.forecasts = 0
        self._delays = delays
        self._one_way_s = delays.network_one_way_s
        self._heap = heap
        self._reports = reports
        self._requests = requests
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

    def enter(self, agenda: Agenda, row: int) -> None:
        """From now on this row of the agenda is its own."""
        self._agenda, self._row = agenda, row
        agenda.next_s[row], agenda.note_s[row] = self.next_s, self.note_s

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
    def held(self) -> list[str]:
        """Requests whose answers its engine works on."""
        return [name for name in self._ends if name not in self._stages]

    @property
    def caches(self) -> bool:
        """Whether it has a prefix cache."""
        return self.spec.config.enable_prefix_caching

    def cached_blocks(self, names: tuple[int, ...]) -> int:
        """How many of the first blocks of these names its prefix cache holds."""
        return self._engine.cached_blocks(names, (len(names) + 1) * self.block_size_tokens)[0]

    def fetches(self, request_id: str, attempt: int, dispatch_seq: int, now_s: float) -> None:
        """A dispatch arrives for which it fetches KV from another node."""
        self.run_until(now_s)
        self._fetches.add((request_id, attempt))
        self._dispatched(dispatch_seq)
        self._touch(now_s)

    def has_fetched(self, request_id: str, attempt: int, names: tuple[int, ...], now_s: float) -> bool:
        """The KV is there. False: nobody wants it any more."""
        if (request_id, attempt) not in self._fetches:
            return False
        self.run_until(now_s)
        self._fetches.discard((request_id, attempt))
        self._engine.store_blocks(names)
        return True

    def evict(self, now_s: float) -> None:
        """What its prefix cache holds and nobody uses goes."""
        self.run_until(now_s)
        total = self.spec.config.num_blocks
        self._evicted += 1
        self._engine.store_blocks(tuple(range(self._evicted * total, (self._evicted + 1) * total)))

    @property
    def block_size_tokens(self) -> int:
        return self.spec.config.block_size_tokens

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
            if self._awaited:
                self._look_for_awaited()
            elif not events and watched == NOBODY:
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
        faults = self.faults
        if faults.frozen_s is not None or faults.deaf:
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
        if self.looks_ahead and self.is_asked:
            if self.predictor.is_look_due(now_s):
                self.predictor.look_ahead(now_s)
            load = self.predictor.lookout.told(load, now_s)
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
        """Output tokens of each request here that have left the node by `now_s`; stages of moves have none."""
        return {name: tokens for name, tokens in self._progress(now_s).items() if name not in self._stages}

    def progress_of(self, request_id: str, now_s: float) -> int:
        """Of one request; 0 if it is not here."""
        self.run_until(now_s)
        tokens = self._engine.output_tokens(request_id) if request_id in self._ends else None
        early = int(self._engine.has_work and self._engine.next_step_s > now_s)
        return 0 if tokens is None else max(0, tokens - early)

    def told(self, request_id: str, tokens: int) -> None:
        """The router has been told of so many tokens of a request that goes on here."""
        self._told[request_id] = tokens

    def watch(self, request_id: str) -> None:
        """The next token of the request is to be told as soon as it comes (`NextToken`)."""
        self._awaited[request_id] = self._told.get(request_id, 1)
        self._look_for_awaited()

    def run_step(self) -> None:
        """Runs the next step, which there must be."""
        self.run_until(math.nextafter(self.next_s, math.inf))

    def fail(self, count: int, now_s: float) -> list[StreamEnded]:
        """The engine fails so many of its requests, the first to run first; what the router will hear of it."""
        ended = []
        for name in list(self._progress(now_s))[:count]:
            attempt = self._ends[name][2]
            request_id = self._stages.get(name, name)
            self.abort(request_id, now_s, attempt=attempt)
            ended.append(
                StreamEnded(request_id=request_id, node_id=self.node_id, outcome=Outcome.ENGINE_FAILED, attempt=attempt)
            )
        return ended

    def _progress(self, now_s: float) -> dict[str, int]:
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
        is_stage: bool = False,
    ) -> None:
        """A dispatch arrives. The answer is cut where the engine's limits cut it; `block_hashes` name the prompt's
        blocks in the engine's own size. Of the stage of a move only the end is told."""
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
        # A stage may come to the node that goes on with the request, and must not be taken for it.
        name = attempt_id(shape.request_id, attempt) if is_stage else shape.request_id
        if is_stage:
            self._stages[name] = shape.request_id
            self._stage_tokens[name] = shape.prompt_tokens
        config = self.spec.config
        room = min(config.max_model_len_tokens, config.num_blocks * config.block_size_tokens) - shape.prompt_tokens
        produced = min(output_tokens, shape.max_output_tokens, room)
        request = SimRequest(
            request_id=name,
            prompt_tokens=shape.prompt_tokens,
            output_tokens=produced,
            max_output_tokens=min(shape.max_output_tokens, room),
            priority=shape.priority,
            block_hashes=block_hashes,
        )
        belief = shape.belief if self._noise is None else self._noise.believed(shape.request_id, shape.belief)
        if self.is_asked:
            candidate = Candidate(
                request_id=name,
                prompt_tokens=shape.prompt_tokens,
                max_output_tokens=shape.max_output_tokens,
                belief=belief,
                priority=shape.priority,
                block_hashes=block_hashes,
            )
            self.predictor.dispatched(candidate, now_s)
        outcome = Outcome.STOP if produced == output_tokens else Outcome.LENGTH
        self._ends[name] = (produced, outcome, attempt)
        self._engine.add_expected(request, now_s, round(belief.mean_tokens))
        self._watch.came(name)
        self._dispatched(dispatch_seq)
        self._touch(now_s)

    def abort(self, request_id: str, now_s: float, *, attempt: int) -> None:
        """An abort arrives, of that attempt only."""
        self.run_until(now_s)
        self._fetches.discard((request_id, attempt))
        stage = attempt_id(request_id, attempt)
        name = stage if stage in self._stages else request_id
        if self.faults.deaf or name not in self._ends or self._ends[name][2] != attempt:
            return
        if self._engine.abort(name):
            self._watch.left(name, now_s)
            self._forget(name)
            self._known.ended(name)
            self._touch(now_s)

    def answer(self, ask: AskForecast, now_s: float) -> None:
        """A question arrives; the answer goes on the heap."""
        assert self.is_asked, f"{self.node_id} is asked for a forecast although nobody would"
        self.run_until(now_s)
        candidate = ask.candidate
        if candidate.leaving:
            # The engine here has each request under its own name, whichever attempt it is.
            here = (i for i, (_, _, attempt) in self._ends.items() if attempt_id(i, attempt) == candidate.request_id)
            candidate = msgspec.structs.replace(candidate, request_id=next(here, ""))
        if self._noise is not None:
            belief = self._noise.believed(candidate.request_id, candidate.belief)
            candidate = msgspec.structs.replace(candidate, belief=belief)
        if ask.expected is not None:
            self.predictor.told.hear("the gateway", ask.expected, now_s)
        (forecast,) = self.predictor.forecast((candidate,), now_s)
        self.forecasts += 1
        if isinstance(forecast, Forecast):
            if self._noise is not None:
                forecast = self._noise.forecast(forecast)
            if self.faults.lie != 1.0:
                forecast = forecast.slowed(self.faults.lie)
            forecast = msgspec.structs.replace(forecast, request_id=ask.candidate.request_id)
            answer = ForecastArrived(ask_id=ask.ask_id, node_id=self.node_id, forecast=forecast)
        else:
            # The router asks only nodes that can hold the prompt: another refusal is a defect and stops the run.
            assert candidate.leaving, forecast
            answer = ForecastArrived(ask_id=ask.ask_id, node_id=self.node_id, error=forecast.reason)
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
        self._new_daemon()

    def _new_daemon(self) -> None:
        self._watch = EngineWatch(self._engine, self._requests)
        self._known = ObservedEngine(self._engine, self.faults, scenarios=self._scenarios)
        self.predictor = NodePredictor(
            self._known, Calibration(arrivals=self._correcting is True), correcting=bool(self._correcting)
        )
        self._ends: dict[str, tuple[int, Outcome, int]] = {}
        self._fetches: set[tuple[str, int]] = set()
        """Requests and their attempts whose KV is on its way here."""
        self._stages: dict[str, str] = {}
        """Stages of moves that are here, and whose they are."""
        self._stage_tokens: dict[str, int] = {}
        """Prompt of each."""
        self._told: dict[str, int] = {}
        """Tokens that the router has been told of beyond the first."""
        self._awaited: dict[str, int] = {}
        """Whose next token is to be told, and how many are known."""
        self._cached = CacheContent(self._engine)
        self._teller = CacheTeller(lambda: [*self._cached.names(), *self.faults.claims])
        self._cache_number = None
        self.tell_s = math.inf
        self._dispatched(0)
        self._changed = False
        self._agenda.next_s[self._row] = self.next_s = self._engine.next_step_s
        self._agenda.note_s[self._row] = self.note_s = math.inf

    def _report(self, events: list[NodeEvent]) -> None:
        push, one_way_s, epoch, node_id = self._reports.push, self._one_way_s, self.epoch, self.node_id
        watch, predictor, is_asked = self._watch, self.predictor, self.is_asked
        for kind, request_id, at_s in events:
            if kind == "preempted":
                self.preemptions += 1
                watch.preempted(request_id, at_s)
                continue
            if request_id in self._orphans:
                if kind != "first_token":
                    self._orphan_left(request_id, at_s)
                continue
            tokens, outcome, attempt = self._ends[request_id]
            stage_of = self._stages.get(request_id)
            if kind == "first_token":
                if is_asked:
                    predictor.first_token(request_id, at_s)
                # The only token of an answer comes with its end.
                if tokens > 1 and stage_of is None:
                    seen = TokensSeen(request_id=request_id, node_id=node_id, tokens=1, attempt=attempt)
                    push(at_s + one_way_s, NODE_REPORT, (self, epoch, (seen,)))
                continue
            found_tokens = watch.found_tokens.get(request_id)
            watch.left(request_id, at_s)
            if is_asked and predictor.ended(request_id, at_s, complete=outcome in COMPLETE, output_tokens=tokens):
                self._mark ^= 1
            ended = StreamEnded(
                request_id=stage_of or request_id,
                node_id=node_id,
                outcome=outcome,
                attempt=attempt,
                found_tokens=found_tokens,
            )
            if stage_of is not None:
                self.stage_s += self._cost_s(self._stage_tokens[request_id], found_tokens or 0)
                push(at_s + one_way_s, NODE_REPORT, (self, epoch, (ended,)))
            else:
                rest = max(1, tokens - self._told.get(request_id, 1))
                seen = TokensSeen(request_id=request_id, node_id=node_id, tokens=rest, attempt=attempt, last=True)
                push(at_s + one_way_s, NODE_REPORT, (self, epoch, (seen, ended)))
            self._forget(request_id)

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
        noted_s = engine.next_published_s
        if self._changed and self._state_s < noted_s:
            noted_s = self._state_s
        next_s, note_s = engine.next_step_s, noted_s + self._one_way_s
        # Columns are written for others to read, which costs more than to see that nothing is new.
        if next_s != self.next_s:
            self._agenda.next_s[self._row] = self.next_s = next_s
        if note_s != self.note_s:
            self._agenda.note_s[self._row] = self.note_s = note_s

    def _forget(self, name: str) -> None:
        del self._ends[name]
        for kept in (self._stages, self._stage_tokens, self._told, self._awaited):
            kept.pop(name, None)

    def _cost_s(self, tokens: int, found_tokens: int) -> float:
        """Of the step in which a prompt is computed, beyond that of an empty one."""
        fresh = tokens - found_tokens
        pairs = fresh * (found_tokens + fresh / 2)
        batch = StepBatch(prefill_tokens=fresh, prefill_work_tokens2=pairs, prefill_seqs=1)
        return self.spec.step_time.seconds(batch) - self.spec.step_time.seconds(StepBatch())

    def _look_for_awaited(self) -> None:
        """The engine's books are those of the end of its last step."""
        engine = self._engine
        for request_id, known in list(self._awaited.items()):
            tokens = engine.output_tokens(request_id)
            if tokens is not None and tokens > known:
                del self._awaited[request_id]
                heard = NextToken(request_id, self._ends[request_id][2], tokens)
                self._reports.push(engine.free_at_s + self._one_way_s, NODE_REPORT, (self, self.epoch, (heard,)))


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

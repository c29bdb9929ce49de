"""What a node knows and foresees: mirror, reservations and length beliefs, turned into forecasts and load. Pure.

Times are the caller's clock (`now_s`); the engine's own clock is never compared with it, so state ages are counted from
the moment a trace item was received.

A trace tells of a step when it has ended, so the state is always that of the past: the step in progress is missing, and
so are requests dispatched since. A forecast therefore begins with a simulation of what the engine has done since then,
up to now: the step in progress, each dispatched request joining when it was sent.

What holds when knowledge is missing: without any state every forecast is a pessimistic prior, never that of an idle
node; with a state that should have been followed by another one by now, each overdue second may hide up to one second
of work, so answers shift and widen by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from length_model.core.belief import DEFAULT_PRIOR, given_produced, truncated
from predictor.core.mirror import Applied, NodeMirror
from predictor.core.prefix_content import PrefixContent
from predictor.core.prior import unknown_node
from predictor.core.reservations import Reservations
from predictor.core.step_learning import StepLearner
from simcore.cost.step_time import StepTimeModel
from simcore.lookahead import WhatIf
from simcore.node import SimNode, SimRequest
from simcore.scenarios import longest_output
from simcore.trace import CacheDelta, TraceDelta, TraceSnapshot
from simcore.types import Candidate, EngineConfig, Forecast, ForecastSource, LengthBelief, NodeLoad, Quantiles

OVERDUE_STEPS = 3.0
"""A state is overdue when this many times the last step's duration have passed without a new one, and not before
OVERDUE_LEAST_S. Until then the engine is taken to have gone on as simulated, after that to stand still."""
OVERDUE_LEAST_S = 0.1
SAME_MOMENT_S = 0.001
"""An idle engine that gets several requests within this time begins its step with all of them."""


class Refused(msgspec.Struct, frozen=True):
    """Why a candidate has no forecast, for people."""

    reason: str


class _Belief:
    """A length belief, and its expected total, which changes only when an atom has been passed."""

    __slots__ = ("_expected_tokens", "_next_atom_tokens", "belief")

    def __init__(self, belief: LengthBelief) -> None:
        self.belief = belief
        self._expected_tokens = 0
        self._next_atom_tokens = -1

    def expected_tokens(self, produced_tokens: int) -> int:
        if produced_tokens >= self._next_atom_tokens:
            left = given_produced(self.belief, produced_tokens)
            self._expected_tokens = round(left.mean_tokens)
            self._next_atom_tokens = left.atoms_tokens[0]
        return self._expected_tokens


class Estimator:
    """One node's knowledge. Not thread-safe; one owner."""

    def __init__(
        self,
        node_id: str,
        config: EngineConfig,
        step_time: StepTimeModel,
        *,
        scenarios: int = 8,
        source: ForecastSource = "simulated",
        calibrate: bool = False,
    ) -> None:
        """`calibrate`: step times are learned from the trace, `step_time` is only where that begins."""
        self.node_id = node_id
        self.config = config
        self.step_time = step_time
        self.learner = StepLearner(step_time) if calibrate else None
        self.mirror: NodeMirror | None = None
        self.reservations = Reservations()
        self.prefixes = PrefixContent(block_size_tokens=config.block_size_tokens, most_blocks=config.num_blocks)
        self._source = source
        self._beliefs: dict[str, _Belief] = {}
        self._received_s = -math.inf
        self._connected = False
        self._scenarios = scenarios
        self._what_if = WhatIf(node_id, config, step_time, scenarios=scenarios)
        self._learned_version = 0
        self._base_of: tuple[int, int] | None = None
        self._base_until_s = -math.inf
        """Moment at which the base of the what-ifs holds: the end of the step in progress."""
        self._load: NodeLoad | None = None
        self._load_of: tuple[int, int] | None = None

    # --- what happens -------------------------------------------------------------------------------------------------

    def on_snapshot(self, snapshot: TraceSnapshot, now_s: float) -> None:
        """A trace has begun, or begun again."""
        if self.mirror is None:
            self.mirror = NodeMirror(snapshot)
        else:
            self.mirror.reset(snapshot)
        self._connected = True
        self._received_s = now_s
        self.prefixes.begin()
        self.reservations.drop_all(r.request_id for r in (*snapshot.running, *snapshot.waiting))
        for request_id in [i for i in self._beliefs if not self._is_here(i)]:
            del self._beliefs[request_id]

    def on_delta(self, delta: TraceDelta, now_s: float) -> bool:
        """The next step of the trace. True: a delta was lost and the trace must be read anew, from a snapshot."""
        if self.mirror is None:
            return True
        applied = self.mirror.apply(delta)
        if applied is Applied.GAP:
            return True
        if applied is Applied.APPLIED:
            self._received_s = now_s
            if self.learner is not None:
                self.learner.add(delta.batch, delta.duration_s)
            for state in delta.arrived:
                self.reservations.drop(state.request_id)
            for request_id in (*delta.finished, *delta.aborted):
                self._forget(request_id)
        return False

    def on_cache(self, delta: CacheDelta) -> bool:
        """A change of the engine's prefix cache. True: one was lost and the trace must be read anew."""
        return self.prefixes.apply(delta)

    def on_disconnect(self) -> None:
        """The trace has broken. The last state stays, and ages."""
        self._connected = False

    def reserve(self, candidate: Candidate, *, now_s: float, ttl_s: float, sent: bool = False) -> None:
        """The candidate will come to this node, or (`sent`) the engine has just got it: it counts from now."""
        self._beliefs[candidate.request_id] = _Belief(candidate.belief)
        if self.mirror is None or candidate.request_id not in self.mirror:
            self.reservations.reserve(candidate, now_s=now_s, ttl_s=ttl_s, sent=sent)

    def release(self, request_id: str) -> bool:
        """It will not come, or it has ended. False if it was not reserved."""
        found = self.reservations.drop(request_id)
        self._forget(request_id)
        return found

    # --- what is known ------------------------------------------------------------------------------------------------

    @property
    def synchronised(self) -> bool:
        """A trace is connected and no gap is open."""
        return self._connected and self.mirror is not None and self.mirror.synchronised

    @property
    def version(self) -> tuple[int, int]:
        """Changes whenever the state or the reservations do."""
        return (self.mirror.version if self.mirror is not None else -1, self.reservations.version)

    def age_s(self, now_s: float) -> float:
        """Age of the state: 0 while a followed engine is idle (nothing can change unseen), inf without any state."""
        if self.mirror is None:
            return math.inf
        if self.synchronised and not self.mirror.running_count and not self.mirror.waiting_count:
            return 0.0
        return max(0.0, now_s - self._received_s)

    def expire(self, now_s: float) -> list[str]:
        """Drops reservations that nobody made good; their ids."""
        late = self.reservations.expire(now_s)
        for request_id in late:
            self._forget(request_id)
        return late

    def load(self, now_s: float) -> NodeLoad | None:
        """Summary for heuristic policies, reservations included. None without any state."""
        if self.mirror is None:
            return None
        self.expire(now_s)
        if self._load is None or self._load_of != self.version:
            self._load = self._summed(self.mirror)
            self._load_of = self.version
        age_s = self.age_s(now_s)
        return self._load if self._load.state_age_s == age_s else msgspec.structs.replace(self._load, state_age_s=age_s)

    def forecast(self, candidates: Sequence[Candidate], now_s: float) -> list[Forecast | Refused]:
        """One answer per candidate, in order, each as if it came alone on top of state and reservations."""
        return self.begin(candidates, now_s)()

    def begin(self, candidates: Sequence[Candidate], now_s: float) -> Callable[[], list[Forecast | Refused]]:
        """`forecast` in two halves: this one reads the state, the function it returns simulates. The second half may
        run on another thread, provided that no other forecast is begun meanwhile; all else may go on."""
        never: dict[int, Refused] = {}
        for position, candidate in enumerate(candidates):
            if why := self.why_never(candidate):
                never[position] = Refused(why)
        possible = [c for i, c in enumerate(candidates) if i not in never]
        simulate = self._simulation(possible, now_s)

        def compute() -> list[Forecast | Refused]:
            answers = iter(simulate())
            return [never[i] if i in never else next(answers) for i in range(len(candidates))]

        return compute

    # --- inside -------------------------------------------------------------------------------------------------------

    def _simulation(self, candidates: list[Candidate], now_s: float) -> Callable[[], Sequence[Forecast | Refused]]:
        mirror = self.mirror
        if mirror is None or not candidates:
            return lambda: [unknown_node(self.node_id, self.config, self.step_time, c) for c in candidates]
        self.expire(now_s)
        age_s = self.age_s(now_s)
        overdue_s = 0.0
        if age_s > 0:
            patience_s = max(OVERDUE_LEAST_S, OVERDUE_STEPS * mirror.last_step_s) if self.synchronised else 0.0
            overdue_s = max(0.0, age_s - patience_s)
        until_s = now_s - overdue_s
        if self._base_of != self.version or until_s > self._base_until_s:
            try:
                self._rebase(mirror, until_s)
            except ValueError as odd:
                return _refusing(candidates, odd)
        remaining_s = max(0.0, self._base_until_s - until_s)
        seq = mirror.seq
        cached_tokens = [self.prefixes.cached_tokens(c.block_hashes, c.prompt_tokens) for c in candidates]

        def simulate() -> Sequence[Forecast | Refused]:
            try:
                forecasts = self._what_if.forecast(candidates, cached_tokens)
            except ValueError as odd:
                return _refusing(candidates, odd)()
            return [
                msgspec.structs.replace(
                    forecast,
                    ttft_s=_later(forecast.ttft_s, remaining_s, overdue_s),
                    e2e_s=_later(forecast.e2e_s, remaining_s, overdue_s),
                    clear_start_s=_later(forecast.clear_start_s, remaining_s, overdue_s)
                    if forecast.clear_start_s.p90 > 0 or overdue_s
                    else forecast.clear_start_s,
                    trace_seq=seq,
                    state_age_s=age_s,
                    source=self._source,
                )
                for forecast in forecasts
            ]

        return simulate

    def _rebase(self, mirror: NodeMirror, until_s: float) -> None:
        """The base of what-ifs: the state, run on to the end of the step that is in progress at `until_s`."""
        if self.learner is not None and self.learner.version != self._learned_version:
            self._learned_version = self.learner.version
            self.step_time = self.learner.model
            self._what_if = WhatIf(self.node_id, self.config, self.step_time, scenarios=self._scenarios)
        engine = SimNode.from_snapshot(
            mirror.snapshot(),
            self.node_id,
            self.step_time,
            output_tokens=lambda s: self._likely_end(s.request_id, s.prompt_tokens, s.max_output_tokens),
            free_at_s=self._received_s,
        )
        held = self.reservations.held()
        woken_s = -math.inf
        for reservation in held:
            if reservation.sent:
                sent_s = reservation.reserved_s
                if sent_s - woken_s >= SAME_MOMENT_S:
                    engine.advance(min(until_s, sent_s))
                if not engine.has_work:
                    woken_s = sent_s
                engine.add(self._arriving(reservation.candidate), sent_s)
        engine.advance(until_s)
        for reservation in held:
            if not reservation.sent:
                engine.add(self._arriving(reservation.candidate), until_s)
        beliefs = {i: self._belief(i, a.request.max_output_tokens).belief for i, a in engine.requests.items()}
        in_step = engine.free_at_s > until_s
        self._base_until_s = engine.free_at_s if in_step else until_s
        self._what_if.rebase_node(engine, beliefs, self._base_until_s)
        self._base_of = self.version

    def _likely_end(self, request_id: str, prompt_tokens: int, max_output_tokens: int) -> int:
        """Output tokens after which a request is taken to end within the next step or two: its length if that is
        known, else none."""
        longest = longest_output(self.config, prompt_tokens, max_output_tokens)
        belief = self._belief(request_id, max_output_tokens).belief
        return min(longest, belief.atoms_tokens[0]) if belief.is_known else longest

    def _arriving(self, candidate: Candidate) -> SimRequest:
        tokens = self._likely_end(candidate.request_id, candidate.prompt_tokens, candidate.max_output_tokens)
        return SimRequest(
            request_id=candidate.request_id,
            prompt_tokens=candidate.prompt_tokens,
            output_tokens=tokens,
            max_output_tokens=candidate.max_output_tokens,
            priority=candidate.priority,
        )

    def why_never(self, candidate: Candidate) -> str:
        """Why the engine could never run it; empty if it could."""
        try:
            longest_output(self.config, candidate.prompt_tokens, candidate.max_output_tokens)
        except ValueError as never:
            return str(never)
        return ""

    def _summed(self, mirror: NodeMirror) -> NodeLoad:
        size = self.config.block_size_tokens
        unprocessed = prompt_blocks = 0
        for r in mirror.running():
            expected = self._belief(r.request_id, r.max_output_tokens).expected_tokens(r.output_tokens)
            unprocessed += max(0, r.prompt_tokens + expected - r.computed_tokens)
        for r in mirror.waiting():
            expected = self._belief(r.request_id, r.max_output_tokens).expected_tokens(r.output_tokens)
            unprocessed += r.prompt_tokens + expected
            prompt_blocks += -(-(r.prompt_tokens + r.output_tokens) // size)
        for candidate in self.reservations.candidates():
            expected = self._beliefs[candidate.request_id].expected_tokens(0)
            unprocessed += candidate.prompt_tokens + min(expected, candidate.max_output_tokens)
            prompt_blocks += -(-candidate.prompt_tokens // size)
        reserved = len(self.reservations)
        return NodeLoad(
            node_id=self.node_id,
            trace_seq=mirror.seq,
            state_age_s=0.0,
            running=mirror.running_count,
            waiting=mirror.waiting_count + reserved,
            free_blocks=mirror.free_blocks,
            total_blocks=self.config.num_blocks,
            waiting_prompt_blocks=prompt_blocks,
            unprocessed_tokens=unprocessed,
            preemptions_total=mirror.preemptions_total,
            reserved=reserved,
        )

    def _belief(self, request_id: str, max_output_tokens: int) -> _Belief:
        """What is believed of a request on the node; the prior for one that others sent."""
        found = self._beliefs.get(request_id)
        if found is None:
            found = self._beliefs[request_id] = _Belief(truncated(DEFAULT_PRIOR, max_output_tokens))
        return found

    def _is_here(self, request_id: str) -> bool:
        return request_id in self.reservations or (self.mirror is not None and request_id in self.mirror)

    def _forget(self, request_id: str) -> None:
        if not self._is_here(request_id):
            self._beliefs.pop(request_id, None)


def _refusing(candidates: Sequence[Candidate], why: ValueError) -> Callable[[], list[Refused]]:
    """The engine's state itself is beyond the simulation's rules: no forecast is better than a wrong one."""
    answers = [Refused(f"the engine's state cannot be simulated: {why}") for _ in candidates]
    return lambda: answers


def _later(quantiles: Quantiles, delay_s: float, hidden_s: float) -> Quantiles:
    """Shifted by a delay that is known and one that lies anywhere between 0 and `hidden_s`."""
    if not delay_s and not hidden_s:
        return quantiles
    return Quantiles(
        quantiles.mean + delay_s + 0.5 * hidden_s,
        quantiles.p50 + delay_s + 0.5 * hidden_s,
        quantiles.p90 + delay_s + 0.9 * hidden_s,
    )

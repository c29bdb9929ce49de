"""Forecasts of one node: what-ifs from its engine's state, and what is said where that is old or missing. Pure.

Where the state comes from is `EngineState`'s to say: of a real engine from its trace
(`predictor.core.traced_engine`), of a simulated one from the engine itself (`bench.simcluster.engine`). Times are the
caller's clock (`now_s`).

What holds when knowledge is missing: without any state every forecast is a pessimistic prior, never that of an idle
node; with a state that should have been followed by another one by now, each overdue second may hide up to one second
of work, so answers shift and widen by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from predictor.core.prior import unknown_node
from simcore.cost.step_time import StepTimeModel
from simcore.lookahead import WhatIf
from simcore.scenarios import longest_output
from simcore.types import Candidate, EngineConfig, Forecast, ForecastSource, NodeLoad, NodeOutlook, Quantiles

OVERDUE_STEPS = 3.0
"""A state is overdue when this many times the last step's duration have passed without a new one, and not before
OVERDUE_LEAST_S. Until then the engine is taken to have gone on as simulated, after that to stand still."""
OVERDUE_LEAST_S = 0.1


class NoForecast(msgspec.Struct, frozen=True):
    """Why a candidate has no forecast, for people."""

    reason: str


Answers = list[Forecast | NoForecast]


class EngineState(Protocol):
    """What is known of one engine, with the requests that are on their way to it. Not thread-safe; one owner."""

    @property
    def node_id(self) -> str: ...

    @property
    def config(self) -> EngineConfig: ...

    @property
    def step_time(self) -> StepTimeModel:
        """The best model known now."""
        ...

    @property
    def is_known(self) -> bool:
        """False: no state has come yet."""
        ...

    @property
    def synchronised(self) -> bool:
        """Whether every change of the engine is heard of."""
        ...

    @property
    def seq(self) -> int:
        """Number of the last step seen."""
        ...

    @property
    def last_step_s(self) -> float:
        """Duration of the last step seen."""
        ...

    def age_s(self, now_s: float) -> float:
        """Age of the state; 0 where nothing can have changed unseen, inf without any state."""
        ...

    def what_if(self, now_s: float, overdue_s: float) -> tuple[WhatIf, float]:
        """What-ifs from the state run on to `overdue_s` before now, and the seconds by which their base lies after
        that. Good until the next call. Raises ValueError for a state that cannot be simulated."""
        ...

    def cached_tokens(self, candidate: Candidate) -> int:
        """Tokens of its prompt that the engine's prefix cache holds; of one that is there and might leave, those whose
        blocks others hold too."""
        ...

    def name_here(self, request_id: str) -> str:
        """By which name the engine has a dispatched request; empty: it has made several of it."""
        ...

    def load(self, now_s: float) -> NodeLoad | None:
        """Summary for heuristic policies. None without any state."""
        ...

    def dispatched(self, candidate: Candidate, now_s: float) -> None:
        """The engine gets this request now."""
        ...

    def ended(self, request_id: str) -> None:
        """A dispatched request has ended."""
        ...


class Estimator:
    """One node's forecasts, as its simulation gives them. Not thread-safe; one owner."""

    def __init__(self, state: EngineState, *, source: ForecastSource = "simulated") -> None:
        self.state = state
        self._source: ForecastSource = source

    def forecast(self, candidates: Sequence[Candidate], now_s: float) -> Answers:
        """One answer per candidate, in order, each as if it came alone on top of the state."""
        return self.begin(candidates, now_s)()

    def begin(self, candidates: Sequence[Candidate], now_s: float) -> Callable[[], Answers]:
        """`forecast` in two halves: this one reads the state, the function it returns simulates. The second half may
        run on another thread, provided that no other forecast is begun meanwhile; all else may go on."""
        never = {i: NoForecast(why) for i, c in enumerate(candidates) if (why := self.why_never(c))}
        return self._simulation_without(never, candidates, now_s) if never else self._simulation(candidates, now_s)

    def _simulation_without(
        self, refused: dict[int, NoForecast], candidates: Sequence[Candidate], now_s: float
    ) -> Callable[[], Answers]:
        """`refused`: the answers of some, by position."""
        simulate = self._simulation([c for i, c in enumerate(candidates) if i not in refused], now_s)

        def compute() -> Answers:
            answers = iter(simulate())
            return [refused[i] if i in refused else next(answers) for i in range(len(candidates))]

        return compute

    def why_never(self, candidate: Candidate) -> str:
        """Why the engine could never run it, or nothing can be said of one that is there; empty if it could."""
        if candidate.leaving:
            return "" if self.state.is_known else "nothing is known of the engine yet"
        try:
            longest_output(self.state.config, candidate.prompt_tokens, candidate.max_output_tokens)
        except ValueError as never:
            return str(never)
        return ""

    def begin_look(self, now_s: float) -> Callable[[], NodeOutlook | None]:
        """As `begin`, for what is ahead of the requests that are there; None where that cannot be simulated."""
        try:
            what_if, remaining_s = self.state.what_if(now_s, 0.0)
        except ValueError:
            return lambda: None

        def look() -> NodeOutlook | None:
            try:
                seen = what_if.outlook()
            except ValueError:
                return None
            return NodeOutlook(
                preemption_ahead_s=_if_any(seen.preemption_ahead_s, remaining_s),
                head_waits_s=seen.head_waits_s and seen.head_waits_s + remaining_s,
            )

        return look

    def _simulation(self, candidates: Sequence[Candidate], now_s: float) -> Callable[[], Answers]:
        state = self.state
        if not candidates or not state.is_known:
            return lambda: [unknown_node(state.node_id, state.config, state.step_time, c) for c in candidates]
        age_s = state.age_s(now_s)
        overdue_s = 0.0
        if age_s > 0:
            patience_s = max(OVERDUE_LEAST_S, OVERDUE_STEPS * state.last_step_s) if state.synchronised else 0.0
            overdue_s = max(0.0, age_s - patience_s)
        try:
            what_if, remaining_s = state.what_if(now_s, overdue_s)
        except ValueError as odd:
            return _refusing(candidates, odd)
        asked = [_named(c, state.name_here(c.request_id)) if c.leaving else c for c in candidates]
        gone = {
            i: NoForecast(f"request {c.request_id!r} is not here, or not as one request")
            for i, c in enumerate(candidates)
            if c.leaving and asked[i].request_id not in what_if
        }
        if gone:
            return self._simulation_without(gone, candidates, now_s)
        seq, source = state.seq, self._source
        cached_tokens = [state.cached_tokens(c) for c in candidates]

        def simulate() -> Answers:
            try:
                forecasts = what_if.forecast(asked, cached_tokens)
            except ValueError as odd:
                return _refusing(candidates, odd)()
            as_asked = not any(c.leaving for c in candidates)
            if as_asked and not age_s and not remaining_s and source == "simulated" and forecasts[0].trace_seq == seq:
                return [*forecasts]
            return [
                msgspec.structs.replace(
                    forecast,
                    request_id=candidate.request_id,
                    ttft_s=_later(forecast.ttft_s, remaining_s, overdue_s),
                    e2e_s=_later(forecast.e2e_s, remaining_s, overdue_s),
                    clear_start_s=_later(forecast.clear_start_s, remaining_s, overdue_s)
                    if forecast.clear_start_s.p90 > 0 or (overdue_s and not candidate.leaving)
                    else forecast.clear_start_s,
                    trace_seq=seq,
                    state_age_s=age_s,
                    source=source,
                )
                for candidate, forecast in zip(candidates, forecasts, strict=True)
            ]

        return simulate


def _if_any(ahead_s: float, remaining_s: float) -> float:
    return ahead_s + remaining_s if ahead_s >= 0.0 else ahead_s


def _named(candidate: Candidate, name: str) -> Candidate:
    return candidate if candidate.request_id == name else msgspec.structs.replace(candidate, request_id=name)


def _refusing(candidates: Sequence[Candidate], why: ValueError) -> Callable[[], Answers]:
    """The engine's state itself is beyond the simulation's rules: no forecast is better than a wrong one."""
    answers: Answers = [NoForecast(f"the engine's state cannot be simulated: {why}") for _ in candidates]
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

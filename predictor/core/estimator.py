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
from simcore.types import Candidate, EngineConfig, Forecast, ForecastSource, NodeLoad, Quantiles

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
        """Tokens of its prompt that the engine's prefix cache holds."""
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
        never: dict[int, NoForecast] = {}
        for position, candidate in enumerate(candidates):
            if why := self.why_never(candidate):
                never[position] = NoForecast(why)
        if not never:
            return self._simulation(candidates, now_s)
        simulate = self._simulation([c for i, c in enumerate(candidates) if i not in never], now_s)

        def compute() -> Answers:
            answers = iter(simulate())
            return [never[i] if i in never else next(answers) for i in range(len(candidates))]

        return compute

    def why_never(self, candidate: Candidate) -> str:
        """Why the engine could never run it; empty if it could."""
        try:
            longest_output(self.state.config, candidate.prompt_tokens, candidate.max_output_tokens)
        except ValueError as never:
            return str(never)
        return ""

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
        seq, source = state.seq, self._source
        cached_tokens = [state.cached_tokens(c) for c in candidates]

        def simulate() -> Answers:
            try:
                forecasts = what_if.forecast(candidates, cached_tokens)
            except ValueError as odd:
                return _refusing(candidates, odd)()
            if not age_s and not remaining_s and source == "simulated" and forecasts[0].trace_seq == seq:
                return [*forecasts]
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
                    source=source,
                )
                for forecast in forecasts
            ]

        return simulate


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

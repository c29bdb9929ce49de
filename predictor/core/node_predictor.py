"""One node's predictor: what it answers, what it learns from the outcome, and whether it may be believed. Pure.

The daemon beside a real engine and the node of a simulated cluster both drive this object; only where the engine's
state comes from differs (`predictor.core.estimator.EngineState`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from predictor.core.calibration import Calibration
from predictor.core.estimator import Answers, EngineState, Estimator
from predictor.core.later_work import cost_of
from simcore.types import Candidate, Forecast, ForecastSource, NodeLoad


class NodePredictor:
    """Forecasts corrected by experience. Not thread-safe; one owner. Times must not run backwards."""

    def __init__(
        self,
        state: EngineState,
        calibration: Calibration,
        *,
        source: ForecastSource = "simulated",
        correcting: bool = True,
    ) -> None:
        """`correcting=False`: answers are what the simulation says, and nothing is learned from them."""
        self.state = state
        self.calibration = calibration
        self.estimator = Estimator(state, source=source)
        self.forecasts_total = 0
        self._correcting = correcting

    @property
    def trusted(self) -> bool:
        """False while even corrected forecasts are too far off to place by."""
        return self.calibration.trusted

    def forecast(self, candidates: Sequence[Candidate], now_s: float) -> Answers:
        """One answer per candidate, in order, each as if it came alone."""
        return self.corrected(self.estimator.forecast(candidates, now_s), now_s)

    def begin(self, candidates: Sequence[Candidate], now_s: float) -> Callable[[], Answers]:
        """`forecast` for two threads: this reads the state, the function it returns simulates (`Estimator.begin`), and
        its answers go through `corrected`."""
        return self.estimator.begin(candidates, now_s)

    def corrected(self, answers: Answers, now_s: float) -> Answers:
        """The simulation's answers, corrected by experience. They are remembered until their requests come."""
        self.forecasts_total += len(answers)
        if not self._correcting:
            return answers
        correct = self.calibration.forecast
        return [correct(a, now_s) if isinstance(a, Forecast) else a for a in answers]

    def load(self, now_s: float) -> NodeLoad | None:
        """Summary for heuristic policies, and whether to place by forecasts. None without any state."""
        load = self.state.load(now_s)
        return load if load is None or self.trusted else msgspec.structs.replace(load, trusted=False)

    def dispatched(self, candidate: Candidate, now_s: float, *, busy: bool = False) -> None:
        """The engine gets this request now. `busy`: a simulation runs on another thread.

        Nobody asks a node that is not trusted: it asks itself, or it could never win trust back.
        """
        if not (self.trusted or busy or self.calibration.awaits(candidate.request_id)):
            self.forecast([candidate], now_s)
        state = self.state
        cost = cost_of(
            state.step_time,
            state.config,
            prompt_tokens=candidate.prompt_tokens,
            cached_tokens=state.cached_tokens(candidate),
        )
        state.dispatched(candidate, now_s)
        self.calibration.dispatched(candidate.request_id, now_s, cost)

    def first_token(self, request_id: str, now_s: float) -> None:
        self.calibration.first_token(request_id, now_s)

    def ended(self, request_id: str, now_s: float, *, complete: bool, output_tokens: int) -> bool:
        """True: trust was lost or won back. Only a complete answer says anything of the forecast end."""
        changed = self.calibration.ended(request_id, now_s, complete=complete, output_tokens=output_tokens)
        self.state.ended(request_id)
        return changed

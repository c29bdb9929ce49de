"""One node's predictor: what it answers, what it learns from the outcome, and whether it may be believed. Pure.

The daemon beside a real engine and the node of a simulated cluster both drive this object; only where the engine's
state comes from differs (`predictor.core.estimator.EngineState`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from predictor.core.calibration import Calibration
from predictor.core.estimator import Answers, EngineState, Estimator
from predictor.core.later_work import LaterWork, cost_of, later_of
from predictor.core.lookout import Lookout
from predictor.core.told_work import ToldWork
from simcore.cost.step_time import StepTimeModel
from simcore.types import Candidate, ExpectedWork, Forecast, ForecastSource, NodeLoad, NodeOutlook


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
        self.lookout = Lookout(state.config)
        self.told = ToldWork()
        """What gateways say that they are going to send here."""
        self.forecasts_total = 0
        self._later: tuple[ExpectedWork, StepTimeModel, LaterWork] | None = None
        self._correcting = correcting

    @property
    def trusted(self) -> bool:
        """False while even corrected forecasts are too far off to place by."""
        return self.calibration.trusted

    def forecast(self, candidates: Sequence[Candidate], now_s: float) -> Answers:
        """One answer per candidate, in order, each as if it came alone."""
        return self.corrected(candidates, self.estimator.forecast(candidates, now_s), now_s)

    def begin(self, candidates: Sequence[Candidate], now_s: float) -> Callable[[], Answers]:
        """`forecast` for two threads: this reads the state, the function it returns simulates (`Estimator.begin`), and
        its answers go through `corrected`."""
        return self.estimator.begin(candidates, now_s)

    def corrected(self, candidates: Sequence[Candidate], answers: Answers, now_s: float) -> Answers:
        """The simulation's answers to these questions, corrected by experience. Those of requests that could come are
        remembered until they do."""
        self.forecasts_total += len(answers)
        if not self._correcting:
            return answers
        come, stay, later = self.calibration.forecast, self.calibration.staying, self._later_work(now_s)
        return [
            (stay if c.leaving else come)(a, now_s, later) if isinstance(a, Forecast) else a
            for c, a in zip(candidates, answers, strict=True)
        ]

    def _later_work(self, now_s: float) -> LaterWork | None:
        told, state = self.told.at(now_s), self.state
        if told is None:
            return None
        known, step_time = self._later, state.step_time
        if known is None or known[0] is not told or known[1] is not step_time:
            self._later = known = (told, step_time, later_of(told, step_time, state.config))
        return known[2]

    def load(self, now_s: float) -> NodeLoad | None:
        """Summary for heuristic policies, and whether to place by forecasts. None without any state."""
        load = self.state.load(now_s)
        if load is None:
            return None
        load = self.lookout.told(load, now_s)
        return load if self.trusted else msgspec.structs.replace(load, trusted=False)

    def is_look_due(self, now_s: float) -> bool:
        """Whether it is time to look at what is ahead of the requests that are here."""
        load = self.state.load(now_s)
        return load is not None and self.state.synchronised and self.lookout.is_due(load, now_s)

    def look_ahead(self, now_s: float) -> None:
        """Looks, for the loads from now on."""
        self.lookout.saw(self.begin_look(now_s)(), now_s)

    def begin_look(self, now_s: float) -> Callable[[], NodeOutlook | None]:
        """`look_ahead` for two threads, as `begin`; what the function returns is for `Lookout.saw`."""
        return self.estimator.begin_look(now_s)

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

"""What a predictor decides, with a simulated engine as all that it knows."""

from __future__ import annotations

import pytest

from bench.simcluster.engine import ObservedEngine
from bench.simcluster.world import NodeFaults
from length_model.core.belief import known
from predictor.core.calibration import TRUST_LEAST_PAIRS, Calibration
from predictor.core.estimator import OVERDUE_LEAST_S
from predictor.core.node_predictor import NodePredictor
from simcore.tracing import TracingNode
from simcore.types import Candidate, Forecast
from tests.helpers.simulated import STEP_TIME, cluster_nodes


def candidate(name: str) -> Candidate:
    return Candidate(request_id=name, prompt_tokens=50, max_output_tokens=100, belief=known(20))


class Rig:
    """An idle engine and its predictor."""

    def __init__(self, *, correcting: bool = True) -> None:
        (spec,) = cluster_nodes(1)
        self.faults = NodeFaults()
        self.engine = TracingNode("n", spec.config, STEP_TIME, interval_s=0.0, lengths_known=True)
        self.known = ObservedEngine(self.engine, self.faults, scenarios=4)
        self.predictor = NodePredictor(self.known, Calibration(), correcting=correcting)
        self.now_s = 0.0

    def one(self, name: str) -> Forecast:
        (answer,) = self.predictor.forecast([candidate(name)], self.now_s)
        assert isinstance(answer, Forecast)
        return answer

    def live(self, name: str, times: float) -> bool:
        """It comes, and takes so many times as long as an idle engine would; True: trust has changed."""
        raw = self.predictor.estimator.forecast([candidate(name)], self.now_s)[0]
        assert isinstance(raw, Forecast)
        self.predictor.dispatched(candidate(name), self.now_s)
        self.predictor.first_token(name, self.now_s + times * raw.ttft_s.p50)
        self.now_s += times * raw.e2e_s.p50
        return self.predictor.ended(name, self.now_s, complete=True, output_tokens=20)


def distrusted() -> Rig:
    """Whose forecasts were right for long, and are now off by a factor that grows faster than it can be learned."""
    rig = Rig()
    for i in range(400):
        rig.one(f"r{i}")
        rig.live(f"r{i}", 1.0 if i < 50 else 1.25 ** min(i - 50, 40) * (1 if i % 2 else 0.1))
        if not rig.predictor.trusted:
            return rig
    raise AssertionError("it was trusted to the end")


def test_what_is_not_trusted_says_so_and_asks_itself_until_it_is() -> None:
    rig = distrusted()
    load = rig.predictor.load(rig.now_s)
    assert load is not None
    assert not load.trusted
    asked = rig.predictor.forecasts_total
    changes = 0
    for i in range(400):
        # Nobody asks it: its own questions are all that it can learn from.
        changes += rig.live(f"later{i}", 1.0)
        if rig.predictor.trusted:
            break
    assert changes == 1
    assert rig.predictor.forecasts_total - asked == i + 1 >= TRUST_LEAST_PAIRS
    rig.live("trusted", 1.0)
    assert rig.predictor.forecasts_total - asked == i + 1, "who is trusted waits to be asked"


def test_it_does_not_ask_itself_while_another_thread_simulates() -> None:
    rig = distrusted()
    asked = rig.predictor.forecasts_total
    rig.predictor.dispatched(candidate("x"), rig.now_s, busy=True)
    assert rig.predictor.forecasts_total == asked
    rig.predictor.dispatched(candidate("y"), rig.now_s)
    assert rig.predictor.forecasts_total == asked + 1


def test_without_correction_answers_are_the_simulations() -> None:
    rig = Rig(correcting=False)
    for i in range(60):
        rig.one(f"r{i}")
        rig.live(f"r{i}", 3.0)
    assert rig.predictor.trusted
    (raw,) = rig.predictor.estimator.forecast([candidate("new")], rig.now_s)
    assert rig.one("new") == raw


def test_a_trace_that_stands_still_shifts_and_widens_the_answers() -> None:
    rig = Rig()
    fresh = rig.one("a")
    rig.faults.frozen_s = rig.now_s
    rig.now_s += 4.0
    stale = rig.one("b")
    assert (fresh.state_age_s, stale.state_age_s) == (0.0, 4.0)
    hidden_s = 4.0 - OVERDUE_LEAST_S
    assert stale.ttft_s.mean - fresh.ttft_s.mean == pytest.approx(0.5 * hidden_s)
    assert stale.ttft_s.p90 - stale.ttft_s.p50 > 0.3 * hidden_s

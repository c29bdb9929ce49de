"""A predictor that was told the wrong hardware: its forecasts become right by themselves."""

from __future__ import annotations

import pytest

from length_model.core.belief import known
from predictor.core.estimator import Estimator
from predictor.core.traced_engine import TracedEngine
from predictor.wire import step_times
from simcore.cost.shipped import load_profile
from simcore.node import SimNode, SimRequest
from simcore.types import Candidate, EngineConfig, Forecast

CONFIG = EngineConfig(model="m", max_num_seqs=16, max_num_batched_tokens=256, num_blocks=1000)
TRUE = load_profile("a30/llama-2-7b").step_time_model()
WRONG = load_profile("h100/llama-2-7b").step_time_model()
ASKED = Candidate(request_id="asked", prompt_tokens=300, max_output_tokens=100, belief=known(80))


def after_traffic(*, calibrate: bool, requests: int = 24) -> TracedEngine:
    """An traced whose node has served `requests` and is idle again."""
    node = SimNode("n", CONFIG, TRUE)
    traced = TracedEngine("n", CONFIG, WRONG, calibrate=calibrate)
    traced.on_snapshot(node.snapshot(0.0), 0.0)
    for i in range(requests):
        tokens = 20 + 13 * i % 90
        node.add(
            SimRequest(request_id=str(i), prompt_tokens=30 + 37 * i, output_tokens=tokens, max_output_tokens=tokens),
            0.0,
        )
    while node.has_work:
        delta = node.step(node.next_step_s)
        assert not traced.on_delta(delta, delta.end_s)
    return traced


def forecast(traced: TracedEngine) -> Forecast:
    (answer,) = Estimator(traced).forecast([ASKED], 1000.0)
    assert isinstance(answer, Forecast)
    return answer


def actual_e2e_s() -> float:
    node = SimNode("n", CONFIG, TRUE)
    node.add(SimRequest(request_id="asked", prompt_tokens=300, output_tokens=80, max_output_tokens=100), 0.0)
    return max(e.at_s for e in node.advance(1000.0))


def test_forecasts_become_right_by_themselves() -> None:
    traced = after_traffic(calibrate=True)
    assert forecast(traced).e2e_s.p50 == pytest.approx(actual_e2e_s(), rel=0.05)
    assert traced.step_time.name == WRONG.name, "the name says what it was told"


def test_without_calibration_they_stay_wrong() -> None:
    traced = after_traffic(calibrate=False)
    assert forecast(traced).e2e_s.p50 < 0.5 * actual_e2e_s()
    assert traced.step_time is WRONG
    assert traced.learner is None


def test_before_the_first_step_the_prior_answers() -> None:
    traced = after_traffic(calibrate=True, requests=0)
    assert forecast(traced) == forecast(after_traffic(calibrate=False, requests=0))


def test_people_are_told_what_was_learned() -> None:
    fresh, learned = after_traffic(calibrate=True, requests=0).learner, after_traffic(calibrate=True).learner
    assert fresh is not None
    assert learned is not None
    assert step_times("x/y", None) == "x/y"
    assert step_times("x/y", fresh.learned()) == "x/y"
    assert step_times("x/y", learned.learned()).startswith("x/y (learned, ")
    assert step_times("x/y", learned.learned()).endswith(f" % error, {learned.steps:,} steps)")

"""What is made of a node's forecasts, by what came of them."""

from __future__ import annotations

import random

import pytest

from gateway.core.nodes.accuracy import (
    FORGET_S,
    SAMPLES,
    SILENT_AFTER,
    ExpectedTimes,
    ForecastAccuracy,
    judge_all,
)
from tests.helpers.routing import forecast


def told(factor: float, count: int = 40, scatter: float = 1.0, seed: int = 0, learned: float = 1.0) -> ForecastAccuracy:
    """A node whose answers take `factor` times what it forecasts, each up to `scatter` times more or less; its medians
    give `learned` times as much for each token."""
    rng = random.Random(seed)
    accuracy = ForecastAccuracy()
    for i in range(count):
        expected = ExpectedTimes(ttft_s=1.0, tpot_s=0.05, ttft_p50_s=1.0, tpot_p50_s=0.05 * learned, e2e_p90_s=8.0)
        tokens = rng.randrange(50, 200)
        actual_s = expected.total_s(tokens) * factor * scatter ** rng.choice((-1, 1))
        accuracy.first_token(expected, factor, now_s=float(i))
        accuracy.ended(expected, actual_s, tokens)
    return accuracy


def test_a_true_node_is_used_beside_liars_whose_steady_factor_is_taken_out() -> None:
    fleet = [told(1.0), told(1.05), told(3.0), told(1 / 3), told(0.95)]
    judge_all(fleet)
    assert [accuracy.use for accuracy in fleet] == ["used", "used", "corrected", "corrected", "used"]
    assert fleet[2].factor == pytest.approx(3.0, rel=0.1)
    assert fleet[3].factor == pytest.approx(1 / 3, rel=0.1)
    assert [accuracy.factor_p50 for accuracy in fleet] == pytest.approx([1.0, 1.0, 3.0, 1 / 3, 1.0], rel=0.1)
    assert forecast("n", 4.0).slowed(fleet[2].factor).e2e_s.mean == pytest.approx(12.0, rel=0.1)


def test_what_a_node_has_learned_itself_is_not_corrected_once_more() -> None:
    fleet = [told(1.0), told(1.0), told(2.0, learned=2.2)]
    judge_all(fleet)
    learned = fleet[2]
    assert learned.use == "corrected"
    assert learned.factor == pytest.approx(2.0, rel=0.1)
    assert learned.factor_p50 == 1.0
    slowed = forecast("n", 4.0).slowed(learned.factor, learned.factor_p50)
    assert (slowed.e2e_s.mean, slowed.e2e_s.p50, slowed.e2e_s.p90) == pytest.approx((8.0, 4.0, 4.0), rel=0.1)


def test_what_slows_all_nodes_down_alike_is_no_bias_of_any() -> None:
    fleet = [told(2.0), told(2.1), told(1.9)]
    judge_all(fleet)
    assert [accuracy.use for accuracy in fleet] == ["used"] * 3
    assert [round(accuracy.status().bias, 1) for accuracy in fleet] == pytest.approx([2.0, 2.1, 1.9], abs=0.1)


def test_who_is_off_at_random_or_beyond_belief_is_not_used() -> None:
    fleet = [told(1.0), told(1.0, scatter=5.0), told(40.0), told(1.0)]
    judge_all(fleet)
    assert [accuracy.use for accuracy in fleet] == ["used", "demoted", "demoted", "used"]
    assert "demoted" in fleet[1].alarm()


def test_nobody_is_judged_by_a_few_answers() -> None:
    fleet = [told(3.0, count=SAMPLES - 1), told(1.0)]
    judge_all(fleet)
    assert fleet[0].use == "used"
    assert fleet[0].is_untested(0.0)
    assert not fleet[1].is_untested(0.0)


def test_what_nothing_has_confirmed_for_long_must_be_tested_anew() -> None:
    accuracy = told(3.0)
    last_s = 39.0
    assert not accuracy.is_untested(last_s + FORGET_S)
    assert accuracy.is_untested(last_s + FORGET_S + 1.0)


def test_coverage_is_the_share_of_answers_within_the_p90() -> None:
    accuracy = ForecastAccuracy()
    for i in range(20):
        accuracy.ended(ExpectedTimes(1.0, 0.05, 1.0, 0.05, 5.0), 4.0 if i % 2 else 6.0, 60)
    assert accuracy.status().coverage_p90 == pytest.approx(0.5, abs=0.1)


def test_silence_is_noticed_and_one_answer_ends_it() -> None:
    accuracy = ForecastAccuracy()
    for _ in range(SILENT_AFTER):
        accuracy.unanswered(1.0)
    assert accuracy.status().use == "silent"
    assert not accuracy.probe_due(1.1)
    assert accuracy.probe_due(1.6)
    assert not accuracy.probe_due(1.7)
    accuracy.answered()
    assert accuracy.status().use == "used"

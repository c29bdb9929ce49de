"""Corrected forecasts: right in the median, nine of ten under the p90, and never blown up."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from predictor.core.correction import PRIOR_SPREAD, WINDOW_PAIRS, Correction
from simcore.types import Quantiles


def exactly(seconds: float) -> Quantiles:
    return Quantiles(seconds, seconds, seconds)


def test_without_pairs_only_the_prior_spread_is_added() -> None:
    told = Correction().corrected(exactly(2.0), size_s=2.0)
    assert told.p50 == told.mean == pytest.approx(2.0)
    assert 2.0 * math.exp(1.28 * PRIOR_SPREAD) <= told.p90 <= 2.0 * math.exp(2 * PRIOR_SPREAD)


def test_who_knows_less_begins_wider_and_learns_as_well() -> None:
    little, much = Correction(prior_spread=0.4), Correction()
    assert little.corrected(exactly(2.0), size_s=2.0).p90 > 1.3 * much.corrected(exactly(2.0), size_s=2.0).p90
    assert little.corrected(exactly(2.0), size_s=2.0).p50 == pytest.approx(2.0)
    for _ in range(WINDOW_PAIRS):
        little.add(exactly(2.0), 2.2, size_s=2.0)
    assert little.corrected(exactly(2.0), size_s=2.0).p90 == pytest.approx(2.2, rel=0.02)


def test_a_few_pairs_move_it_little_and_many_all_the_way() -> None:
    correction = Correction()
    told = []
    for _ in range(40):
        told.append(correction.ratios(4.0)[0])
        correction.add(exactly(4.0), 12.0, size_s=4.0)
    assert told[2] < 1.2
    assert told[-1] == pytest.approx(3.0, rel=0.02)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(told))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("bias", "spread"), [(1.2, 0.1), (3.0, 0.3), (0.4, 0.05)])
def test_coverage_and_median(seed: int, bias: float, spread: float) -> None:
    rng = random.Random(seed)
    correction = Correction()
    under = off = n = 0
    for i in range(2000):
        raw = exactly(rng.lognormvariate(1.0, 1.0))
        told = correction.corrected(raw, size_s=raw.p50)
        actual_s = raw.p50 * bias * rng.lognormvariate(0.0, spread)
        if i >= 200:
            n += 1
            under += actual_s <= told.p90
            off += actual_s <= told.p50
        correction.add(raw, actual_s, size_s=raw.p50)
    assert under / n == pytest.approx(0.9, abs=0.04), f"seed {seed}"
    assert off / n == pytest.approx(0.5, abs=0.06), f"seed {seed}"


def test_a_bias_that_grows_with_the_size_is_followed() -> None:
    rng = random.Random(1)
    correction = Correction()
    for _ in range(WINDOW_PAIRS):
        raw_s = rng.uniform(0.5, 30.0)
        correction.add(exactly(raw_s), raw_s * (1.0 + 0.01 * raw_s), size_s=raw_s)
    for raw_s in (1.0, 6.0, 20.0):
        assert correction.ratios(raw_s)[0] == pytest.approx(1.0 + 0.01 * raw_s, rel=0.04)


def test_a_drifting_bias_is_followed_within_a_window() -> None:
    correction = Correction()
    for bias in (1.0, 1.5, 0.8):
        for _ in range(WINDOW_PAIRS):
            correction.add(exactly(5.0), 5.0 * bias, size_s=5.0)
        assert correction.ratios(5.0)[0] == pytest.approx(bias, rel=0.01)


def test_outliers_and_nonsense_do_not_count_for_more_than_one() -> None:
    correction = Correction()
    for i in range(WINDOW_PAIRS):
        correction.add(exactly(5.0), 1e6 if i % 10 == 0 else 6.0, size_s=5.0)
    correction.add(exactly(0.0), 1.0, size_s=0.0)
    correction.add(exactly(1.0), 0.0, size_s=1.0)
    assert correction.ratios(5.0)[0] == pytest.approx(1.2, rel=0.01)
    for size_s in (0.0, 1e-9, 1e9):
        assert math.isfinite(correction.ratios(size_s)[1])


def test_a_p90_that_knows_of_unknown_lengths_is_kept() -> None:
    """Half of the answers take 2 s, half 10 s, and the forecast says so."""
    rng = random.Random(2)
    correction = Correction()
    raw = Quantiles(6.0, 6.0, 10.0)
    for _ in range(WINDOW_PAIRS):
        correction.add(raw, rng.choice((2.0, 10.0)) * rng.lognormvariate(0.0, 0.02), size_s=6.0)
    assert correction.corrected(raw, size_s=6.0).p90 == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize("usual", range(6))
def test_one_standstill_in_a_short_answer_says_nothing_of_long_ones(usual: int) -> None:
    correction = Correction()
    correction.add(exactly(0.02), 2.4, size_s=0.02)
    for _ in range(usual):
        correction.add(exactly(2.0), 2.1, size_s=2.0)
    assert correction.corrected(exactly(2.3), size_s=2.3).p90 < 2.0 * 2.3
    assert correction.corrected(exactly(0.02), size_s=0.02).p90 > 1.0

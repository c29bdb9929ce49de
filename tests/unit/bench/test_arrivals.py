"""Arrival generators by their statistics: mean, variance and tail of what they draw."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.workload.arrivals import arrivals_s, arrivals_until_s, gaps_s, scaled_s

COUNT = 200_000
RATE = 8.0


def rng(seed: int = 20) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("burstiness", [0.25, 0.5, 1.0, 2.0])
def test_gamma_gaps_have_the_mean_and_variance_of_the_formula(burstiness: float) -> None:
    gaps = gaps_s(rng(), kind="gamma", count=COUNT, rate_per_s=RATE, burstiness=burstiness)
    mean, squared_cv = 1 / RATE, 1 / burstiness
    # Five standard errors: of the mean exactly, of the squared CV with the gamma's kurtosis 6 / shape.
    assert gaps.mean() == pytest.approx(mean, abs=5 * mean * math.sqrt(squared_cv / COUNT))
    relative_error = 5 * math.sqrt((2 + 6 / burstiness + 4 / burstiness) / COUNT)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(squared_cv, rel=relative_error)


def test_poisson_gaps_have_the_tail_of_an_exponential_and_are_not_cut() -> None:
    gaps = gaps_s(rng(), kind="poisson", count=COUNT, rate_per_s=RATE)
    for multiple in (1.0, 3.0, 5.0):
        share = math.exp(-multiple)
        assert (gaps > multiple / RATE).mean() == pytest.approx(share, abs=5 * math.sqrt(share / COUNT))
    # The largest of n exponential gaps is about ln(n) means; a cut at three means would show here.
    assert gaps.max() > 0.7 * math.log(COUNT) / RATE


def test_gamma_of_burstiness_one_is_poisson_in_its_tail() -> None:
    gaps = gaps_s(rng(), kind="gamma", count=COUNT, rate_per_s=RATE, burstiness=1.0)
    share = math.exp(-4)
    assert (gaps > 4 / RATE).mean() == pytest.approx(share, abs=5 * math.sqrt(share / COUNT))


def test_burstier_means_a_heavier_tail() -> None:
    shares = [
        (gaps_s(rng(), kind="gamma", count=COUNT, rate_per_s=RATE, burstiness=b) > 5 / RATE).mean()
        for b in (0.25, 1.0, 4.0)
    ]
    assert shares[0] > 3 * shares[1] > 3 * shares[2]


def test_uniform_is_one_constant_gap() -> None:
    assert arrivals_s(rng(), kind="uniform", count=4, rate_per_s=2.0).tolist() == [0.5, 1.0, 1.5, 2.0]


def test_counts_per_second_of_a_poisson_process_are_poisson() -> None:
    times = arrivals_until_s(rng(), kind="poisson", duration_s=20_000, rate_per_s=RATE)
    counts = np.bincount(times.astype(int), minlength=20_000)
    assert counts.mean() == pytest.approx(RATE, rel=0.02)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.06)


def test_arrivals_until_stays_inside_the_duration_and_ascends() -> None:
    times = arrivals_until_s(rng(), kind="gamma", duration_s=50, rate_per_s=3, burstiness=0.25)
    assert (np.diff(times) >= 0).all()
    assert times[-1] < 50 <= times[-1] + 50


def test_same_seed_same_arrivals_and_another_rate_only_rescales_them() -> None:
    slow = arrivals_s(rng(), kind="gamma", count=100, rate_per_s=2.0, burstiness=0.5)
    fast = arrivals_s(rng(), kind="gamma", count=100, rate_per_s=4.0, burstiness=0.5)
    np.testing.assert_allclose(slow, 2 * fast)


def test_scaled_starts_at_zero_and_divides_by_the_scale() -> None:
    assert scaled_s(np.array([5.0, 7.0, 11.0]), rate_scale=2.0).tolist() == [0.0, 1.0, 3.0]


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_is_not_above_zero_is_refused(rate: float) -> None:
    for kind in ("poisson", "gamma", "uniform"):
        with pytest.raises(ValueError, match="rate must be above 0"):
            gaps_s(rng(), kind=kind, count=3, rate_per_s=rate)
    with pytest.raises(ValueError, match="rate scale"):
        scaled_s(np.array([1.0]), rate_scale=rate)


def test_other_impossible_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="burstiness"):
        gaps_s(rng(), kind="gamma", count=3, rate_per_s=1.0, burstiness=0.0)
    with pytest.raises(ValueError, match="duration"):
        arrivals_until_s(rng(), kind="poisson", duration_s=0.0, rate_per_s=1.0)
    with pytest.raises(ValueError, match="negative"):
        gaps_s(rng(), kind="poisson", count=-1, rate_per_s=1.0)

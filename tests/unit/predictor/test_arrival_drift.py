"""The arrival rate as a term of the correction: it learns a slope that is there, and does nothing where none is."""

from __future__ import annotations

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.core.arrival_drift import LARGEST_SLOPE, LARGEST_TERM, LEAST_PAIRS, ArrivalDrift, ArrivalRate
from predictor.core.calibration import Calibration
from predictor.core.correction import Correction
from simcore.types import Quantiles
from tests.unit.predictor.test_calibration import forecast

PAIRS = st.lists(
    st.tuples(
        st.floats(0.01, 500.0),
        st.floats(0.001, 1e4),
        st.floats(0.0, 1e4),
    ),
    max_size=200,
)
"""Forecast, actual, requests expected to come."""


def exactly(seconds: float) -> Quantiles:
    return Quantiles(seconds, seconds, seconds)


def learned(slope: float, *, noise: float, pairs: int = 1500, seed: int = 0) -> Correction:
    """What a correction knows after so many pairs with this true slope; rates between 0 and 4 requests/s."""
    rng = random.Random(seed)
    correction = Correction(arrivals=True)
    for _ in range(pairs):
        size_s = rng.lognormvariate(2.0, 0.7)
        expected = rng.uniform(0.0, 4.0) * size_s
        actual_s = size_s * 1.1 * math.exp(slope * expected + rng.gauss(0.0, noise))
        correction.add(exactly(size_s), actual_s, size_s=size_s, expected=expected)
    return correction


def slope_of(correction: Correction) -> float:
    assert correction.drift is not None
    return correction.drift.slope


# --- the rate -------------------------------------------------------------------------------------------------------


@given(gaps=st.lists(st.floats(0.0, 100.0), max_size=50), later_s=st.floats(0.0, 1000.0))
def test_the_rate_is_a_sum_of_weights_that_decay(gaps: list[float], later_s: float) -> None:
    rate, now_s, came = ArrivalRate(tau_s=20.0), 5.0, []
    assert rate.per_s(now_s) == 0.0
    for gap in gaps:
        now_s += gap
        rate.came(now_s)
        came.append(now_s)
    weights = [math.exp(-(now_s + later_s - at_s) / 20.0) / 20.0 for at_s in came]
    assert rate.per_s(now_s + later_s) == pytest.approx(sum(weights), rel=1e-6, abs=1e-12)
    assert rate.per_s(now_s + later_s) <= rate.per_s(now_s) == rate.per_s(-math.inf)


def test_a_steady_rate_is_found() -> None:
    rate = ArrivalRate()
    for i in range(1000):
        rate.came(0.25 * i)
    assert rate.per_s(250.0) == pytest.approx(4.0, rel=0.02)


def test_what_arrivals_bring_is_weighed_like_them() -> None:
    count, seconds = ArrivalRate(), ArrivalRate()
    for i in range(10):
        count.came(0.5 * i)
        seconds.came(0.5 * i, 0.2)
    assert seconds.per_s(7.0) == pytest.approx(0.2 * count.per_s(7.0))


def test_a_clock_that_runs_backwards_does_not_blow_the_rate_up() -> None:
    rate = ArrivalRate(tau_s=10.0)
    for at_s in (100.0, 50.0, 99.0):
        rate.came(at_s)
    assert rate.per_s(100.0) == pytest.approx(0.3)


# --- the slope ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("slope", [0.002, 0.005])
def test_a_slope_that_is_there_is_learned(slope: float, seed: int) -> None:
    correction = learned(slope, noise=0.05, seed=seed)
    assert 0.7 * slope <= slope_of(correction) <= 1.1 * slope
    # The bias of 1.1 is left to the size term.
    for rate in (0.5, 3.5):
        told = correction.corrected(exactly(8.0), size_s=8.0, expected=8.0 * rate)
        assert told.p50 == pytest.approx(8.0 * 1.1 * math.exp(slope * 8.0 * rate), rel=0.05)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("slope", [0.0, -0.003])
def test_where_the_rate_says_nothing_or_the_contrary_it_changes_next_to_nothing(slope: float, seed: int) -> None:
    assert slope_of(learned(slope, noise=0.1, seed=seed)) <= 2e-4


def test_outliers_do_not_make_a_slope() -> None:
    rng = random.Random(3)
    correction = Correction(arrivals=True)
    for i in range(1000):
        actual_s = 1e6 if i % 10 == 0 else 5.0 * rng.lognormvariate(0.0, 0.05)
        correction.add(exactly(5.0), actual_s, size_s=5.0, expected=rng.uniform(0.0, 20.0))
    assert slope_of(correction) <= 1e-3


@settings(max_examples=50, deadline=None)
@given(pairs=PAIRS, size_s=st.floats(0.01, 500.0), rates=st.tuples(st.floats(0.0, 1e3), st.floats(0.0, 1e3)))
def test_it_is_bounded_monotone_in_the_rate_and_nothing_at_rate_0(
    pairs: list[tuple[float, float, float]], size_s: float, rates: tuple[float, float]
) -> None:
    correction = Correction(arrivals=True)
    for raw_s, actual_s, expected in pairs:
        correction.add(exactly(raw_s), actual_s, size_s=raw_s, expected=expected)
    assert 0.0 <= slope_of(correction) <= LARGEST_SLOPE
    if len(pairs) < LEAST_PAIRS:
        assert slope_of(correction) == 0.0
    raw = Quantiles(size_s, size_s, 1.5 * size_s)
    none = correction.corrected(raw, size_s=size_s)
    low, high = (correction.corrected(raw, size_s=size_s, expected=rate * size_s) for rate in sorted(rates))
    assert none.p50 <= low.p50 * (1 + 1e-12) <= high.p50 * (1 + 2e-12) <= none.p50 * math.exp(LARGEST_TERM) * (1 + 1e-9)
    assert none.p90 <= low.p90 * (1 + 1e-12) <= high.p90 * (1 + 2e-12)
    assert none.p50 == pytest.approx(size_s * correction.ratios(size_s)[0])
    assert none.mean == low.mean == high.mean == size_s


@settings(max_examples=30, deadline=None)
@given(pairs=PAIRS)
def test_without_arrivals_it_is_the_rule_by_size_alone(pairs: list[tuple[float, float, float]]) -> None:
    with_rate, by_size = Correction(arrivals=True), Correction()
    for raw_s, actual_s, expected in pairs:
        with_rate.add(exactly(raw_s), actual_s, size_s=raw_s, expected=0.0)
        by_size.add(exactly(raw_s), actual_s, size_s=raw_s, expected=expected)
    for size_s in (0.1, 1.0, 30.0):
        assert with_rate.ratios(size_s) == by_size.ratios(size_s)
        assert with_rate.corrected(exactly(size_s), size_s=size_s, expected=9.0) == by_size.corrected(
            exactly(size_s), size_s=size_s, expected=9.0
        )


def test_the_terms_of_many_are_those_of_each() -> None:
    drift = ArrivalDrift()
    drift.slope = 0.01
    assert drift.terms(np.array([0.0, 3.0, 1e6])).tolist() == [drift.term(0.0), drift.term(3.0), drift.term(1e6)]


# --- in the calibration ---------------------------------------------------------------------------------------------


def test_a_node_learns_what_its_own_rate_costs() -> None:
    """Busy and quiet minutes in turn; answers take 2 % more per arrival a second and second of forecast."""
    calibration = Calibration()
    now_s, rng = 0.0, random.Random(4)
    rate = ArrivalRate()
    for i in range(3000):
        now_s += rng.expovariate(3.0 if int(now_s / 60.0) % 2 else 0.5)
        name = f"r{i}"
        calibration.forecast(forecast(name, e2e_s=10.0), now_s)
        actual_s = 10.0 * math.exp(0.005 * rate.per_s(now_s) * 10.0 + rng.gauss(0.0, 0.03))
        calibration.dispatched(name, now_s)
        rate.came(now_s)
        calibration.ended(name, now_s + actual_s, complete=True, output_tokens=1)
    drift = calibration.e2e.correction.drift
    assert drift is not None
    assert drift.slope == pytest.approx(0.005, rel=0.3)
    told = calibration.forecast(forecast("now", e2e_s=10.0), now_s)
    quiet = calibration.forecast(forecast("later", e2e_s=10.0), now_s + 1000.0)
    assert quiet.e2e_s.p50 < told.e2e_s.p50
    assert quiet.e2e_s.mean == told.e2e_s.mean
    assert msgspec.structs.replace(quiet, request_id="now", e2e_s=told.e2e_s, tpot_s=told.tpot_s) == told

"""The trend over sizes follows a curve that is there, is not led by a heavy tail, and is bounded whatever comes."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.core.size_trend import BEYOND, LARGEST, SizeTrend

PAIRS = st.lists(st.tuples(st.floats(-4.6, 4.6), st.floats(-20.0, 30.0)), min_size=1, max_size=60)
"""log(actual / forecast), log2 of the size."""


def learned(pairs: list[tuple[float, float]]) -> SizeTrend:
    trend = SizeTrend()
    trend.learn(np.array([log for log, _ in pairs]), np.array([size for _, size in pairs]))
    return trend


def curve(size: float) -> float:
    return 0.1 + 0.08 * size + 0.01 * size * size


@pytest.mark.parametrize("seed", range(3))
def test_a_curve_is_followed_beside_a_heavy_tail(seed: int) -> None:
    rng = random.Random(seed)
    pairs = []
    for _ in range(256):
        size = rng.uniform(-3.0, 4.0)
        late = rng.expovariate(1.0) if rng.random() < 0.1 else 0.0
        pairs.append((curve(size) + rng.gauss(0.0, 0.05) + late, size))
    trend = learned(pairs)
    for size in (-2.5, 0.0, 1.0, 3.5):
        grown = trend.at(size) - trend.at(1.5)
        assert grown == pytest.approx(curve(size) - curve(1.5), abs=0.05), f"seed {seed}"


def test_it_begins_with_none_and_pairs_of_one_size_tell_nothing() -> None:
    assert SizeTrend().at(3.0) == 0.0
    assert learned([(1.0, 2.0)] * 256).at(2.0) == 0.0
    few, many = (learned([(0.0, 1.0), (1.0, 2.0)] * n) for n in (1, 100))
    assert few.at(2.0) - few.at(1.0) < 0.2
    assert many.at(2.0) - many.at(1.0) == pytest.approx(1.0, abs=0.1)


def test_sizes_that_hardly_differ_make_no_steep_curve() -> None:
    """Where lengths are not known all forecasts are of one size, and actuals are of all."""
    rng = random.Random(0)
    trend = learned([(rng.gauss(0.0, 1.0), rng.gauss(3.0, 0.05)) for _ in range(256)])
    assert abs(trend.at(4.0)) < 0.5


def test_beyond_the_sizes_seen_it_stays_as_at_their_ends() -> None:
    trend = learned([(0.2 * size, size) for size in (0.0, 1.0, 2.0, 3.0) for _ in range(64)])
    assert trend.at(-5.0) == trend.at(0.0)
    assert trend.at(9.0) == trend.at(3.0 + BEYOND) > trend.at(3.0)


@given(PAIRS, st.floats(-1e6, 1e6))
def test_it_is_bounded_and_the_same_one_by_one(pairs: list[tuple[float, float]], size: float) -> None:
    trend = learned(pairs)
    assert math.isfinite(trend.at(size))
    assert abs(trend.at(size)) <= LARGEST
    assert trend.over(np.array([size]))[0] == pytest.approx(trend.at(size), abs=1e-9)

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
        assert trend.at(size) == pytest.approx(curve(size), abs=0.05), f"seed {seed}"


def test_without_pairs_there_is_none_and_a_few_move_it_little() -> None:
    assert SizeTrend().at(3.0) == 0.0
    assert learned([(1.0, 2.0)] * 2).at(2.0) < 0.25
    assert learned([(1.0, 2.0)] * 256).at(2.0) == pytest.approx(1.0, abs=0.05)


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

"""Intervals and paired comparisons, against values worked out by hand and against what chance must give."""

from __future__ import annotations

import numpy as np
import pytest

from bench.measure.statistics import compare_paired, estimate, text_of


def test_the_interval_of_three_values_is_that_of_student() -> None:
    found = estimate([1.0, 2.0, 3.0])
    # 4.3027 is the 97.5 % quantile with two degrees of freedom; the standard error is 1 / sqrt(3).
    assert (found.mean, found.count) == (2.0, 3)
    assert found.low == pytest.approx(2.0 - 4.3027 / 3**0.5, abs=1e-4)
    assert found.high == pytest.approx(2.0 + 4.3027 / 3**0.5, abs=1e-4)
    assert text_of(found) == "2.00 ± 2.48"


def test_one_value_has_no_interval() -> None:
    found = estimate([2.0])
    assert (found.low, found.high, text_of(found)) == (None, None, "2.00")
    with pytest.raises(ValueError, match="at least one value"):
        estimate([])


def test_pairing_sees_a_difference_that_the_spread_of_the_seeds_hides() -> None:
    a = [10.0, 20.0, 40.0, 80.0]
    b = [9.0, 18.1, 36.0, 71.9]
    found = compare_paired(a, b)
    assert found.is_different
    assert found.relative.mean == pytest.approx(-0.1, abs=0.003)
    assert found.effect is not None
    assert found.effect < 0
    assert found.p_value is not None
    # Unpaired the two could not be told apart.
    assert abs(np.mean(a) - np.mean(b)) < np.std(a)


def test_equal_series_are_no_difference() -> None:
    found = compare_paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert not found.is_different
    assert found.relative.mean == 0.0
    assert found.effect is None


def test_one_seed_cannot_tell() -> None:
    assert not compare_paired([1.0], [2.0]).is_different


def test_noise_alone_is_called_a_difference_one_time_in_twenty() -> None:
    rng = np.random.default_rng(7)
    called = 0
    trials = 2000
    for _ in range(trials):
        a = 10.0 + rng.normal(size=5)
        called += compare_paired(a.tolist(), (a + rng.normal(size=5)).tolist()).is_different
    assert 0.03 < called / trials < 0.07, called / trials


def test_series_of_different_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        compare_paired([1.0], [1.0, 2.0])

"""Means over seeds with their uncertainty, and paired comparisons. Pure.

One seed gives the same requests to every policy, so policies are compared seed by seed: what is common to both (a long
prompt at a bad moment) cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from scipy import stats

LEVEL = 0.95


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A mean over seeds. `low` and `high` are None when one seed cannot say how sure it is."""

    mean: float
    low: float | None
    high: float | None
    count: int
    is_bound: bool = False
    """The true value is at least `mean`: no run reached the limit."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """B against A over common seeds."""

    count: int
    mean_a: float
    mean_b: float
    relative: Estimate
    """(b - a) / a per seed, as a share."""
    effect: float | None
    """Cohen's d of the paired differences: their mean over their standard deviation."""
    p_value: float | None
    """Two-sided paired t test."""
    is_different: bool
    """The interval of the relative difference leaves 0 out, and the difference is more than rounding."""


def estimate(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """Mean with its t interval. Raises ValueError without values."""
    if not values:
        raise ValueError("an estimate needs at least one value")
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if array.size < 2:
        return Estimate(mean=mean, low=None, high=None, count=1)
    half = float(stats.t.ppf(0.5 + level / 2, array.size - 1) * array.std(ddof=1) / math.sqrt(array.size))
    return Estimate(mean=mean, low=mean - half, high=mean + half, count=int(array.size))


def compare_paired(a: Sequence[float], b: Sequence[float], *, level: float = LEVEL) -> Difference:
    """Of two series over the same seeds in the same order. Raises ValueError when they are not."""
    if len(a) != len(b) or not a:
        raise ValueError(f"paired series must be of one length >= 1, got {len(a)} and {len(b)}")
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    difference = second - first
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(first != 0, difference / np.abs(first), np.where(difference == 0, 0.0, np.inf))
    if not np.isfinite(shares).all():
        shares = difference
    relative = estimate(shares.tolist(), level=level)
    deviation = float(difference.std(ddof=1)) if len(a) > 1 else 0.0
    sure = relative.low is not None and relative.high is not None and (relative.low > 0 or relative.high < 0)
    return Difference(
        count=len(a),
        mean_a=float(first.mean()),
        mean_b=float(second.mean()),
        relative=relative,
        effect=float(difference.mean() / deviation) if deviation > 0 else None,
        p_value=float(stats.ttest_rel(second, first).pvalue) if deviation > 0 else None,
        is_different=sure and abs(relative.mean) > 1e-9,
    )


def text_of(value: Estimate, *, digits: int = 2) -> str:
    """`31.2 ± 0.3` (half the interval), `≥ 36.0`, or the mean alone for one seed."""
    mean = f"{value.mean:.{digits}f}"
    if value.is_bound:
        mean = f"≥ {mean}"
    if value.low is None or value.high is None:
        return mean
    return f"{mean} ± {(value.high - value.low) / 2:.{digits}f}"

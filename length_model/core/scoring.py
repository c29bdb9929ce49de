"""How good a predicted distribution was: proper scores, coverage, and intervals for their means. Pure.

CRPS: Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation" (2007), section 4.2; for whole
tokens it is the sum over t of (F(t) - [length <= t])^2, in tokens. Smaller is better for every loss here.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from length_model.core.distribution import Floats, Ints, bucket_of


class Interval(msgspec.Struct, frozen=True):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def crps(edges: Ints, pmf: Floats, tokens: Ints) -> Floats:
    """Continuous ranked probability score of each answer, [n] tokens. A length outside the edges adds its distance."""
    width = np.diff(edges).astype(np.float64)
    upto = np.cumsum(pmf, axis=1)
    before = upto - pmf
    inside = np.clip(tokens, edges[0], edges[-1] - 1)
    k = bucket_of(edges, inside)
    rows = np.arange(len(pmf))
    slope = pmf / width
    column = np.arange(pmf.shape[1])[None, :]
    loss = (_squares(before, slope, width) * (column < k[:, None])).sum(axis=1)
    loss += (_squares(1 - upto, slope, width, reverse=True) * (column > k[:, None])).sum(axis=1)
    a, s, w = before[rows, k], slope[rows, k], width[k]
    missed = (inside - edges[k]).astype(np.float64)
    loss += _squares(a, s, missed)
    loss += _squares(1 - upto[rows, k], s, w - missed, reverse=True)
    return np.asarray(loss + np.abs(tokens - inside))


def _squares(start: Floats, slope: Floats, count: Floats, *, reverse: bool = False) -> Floats:
    """Sum over i = 1..count of (start + slope i)^2; over i = 0..count-1 if `reverse`."""
    last = count - 1 if reverse else count
    first = last * (last + 1) / 2
    second = last * (last + 1) * (2 * last + 1) / 6
    return np.asarray(count * start**2 + 2 * start * slope * first + slope**2 * second)


def pinball(quantile_tokens: Floats | Ints, tokens: Floats | Ints, level: float) -> Floats:
    """Pinball loss of each answer, [n] tokens: level * shortfall, (1 - level) * excess (Koenker and Bassett, 1978)."""
    over = tokens - np.asarray(quantile_tokens, dtype=np.float64)
    return np.maximum(level * over, (level - 1) * over)


def bootstrap(
    values: Floats,
    groups: NDArray[np.int64],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """95 % percentile interval of the mean of `values` [n], conversations (`groups` [n]) drawn with replacement."""
    _, inverse = np.unique(groups, return_inverse=True)
    sums = np.bincount(inverse, weights=values)
    counts = np.bincount(inverse).astype(np.float64)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    drawn = (weights @ sums) / (weights @ counts)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))

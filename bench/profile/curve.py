"""The dense part of a step: seconds against tokens, summed over the operators of all layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from bench.profile.kernels import Kernel
from bench.profile.robust import Floats, fit_nonnegative, rising_basis

EDGES = (64, 96, 128, 192, 256, 320, 384, 448, 512, 576, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 3072, 4096)
"""Token counts after which a GEMM needs another row of tiles: time may jump from here to the next count."""
KNOTS = tuple(sorted({1, 8, 16, 32, 48, 80, 160, 6144, 8192, 12288, *EDGES, *(edge + 1 for edge in EDGES)}))
"""Token counts where the slope may change."""
USUAL_BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
"""`max_num_batched_tokens` as people set it: with prompts waiting, every step has exactly that many tokens."""
BUDGET_WEIGHT = 4.0
ONE_TILE = 16
"""Measured counts this close are taken to lie in one tile."""
COLLINEAR = 0.004
"""A knot is left out when the curve without it passes this close to it, relatively."""


def by_op(kernels: Sequence[Kernel]) -> dict[str, tuple[Floats, Floats]]:
    """Per operator (tokens ascending, seconds), one entry per measurement."""
    found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for kernel in kernels:
        found[kernel.op].append((float(kernel.tokens), kernel.seconds))
    curves = {}
    for op, points in found.items():
        tokens, seconds = np.array(sorted(points), dtype=np.float64).T
        curves[op] = (tokens, seconds)
    return curves


def knots_for(tokens: Floats) -> Floats:
    """Where the curve through measurements at these counts may bend: at each of them when they are few, else at the
    knots above as far as there are measurements to tell them apart."""
    counts = np.unique(tokens)
    if len(counts) <= len(KNOTS):
        return counts
    kept = [float(counts[0])]
    for knot in KNOTS:
        told_apart = ((counts > kept[-1]) & (counts <= knot)).any() or (knot - 1 == kept[-1] and kept[-1] in counts)
        if counts[0] < knot < counts[-1] and told_apart:
            kept.append(float(knot))
    return np.array([*kept, float(counts[-1])])


def fit_op(tokens: Floats, seconds: Floats, knots: Floats) -> Floats:
    """Seconds at the knots of the non-decreasing curve nearest to the points."""
    scale = np.where(np.isin(tokens, USUAL_BUDGETS), seconds / BUDGET_WEIGHT, seconds)
    coefficients = fit_nonnegative(rising_basis(tokens, knots), seconds, scale)
    return rising_basis(knots, knots) @ coefficients


def fit_sum(kernels: Sequence[Kernel]) -> tuple[tuple[int, ...], Floats]:
    """(knots in tokens, seconds) of all operators together, executed once each.

    The knots are those within the range that every operator was measured over.
    """
    curves = by_op(kernels)
    low = max(tokens.min() for tokens, _ in curves.values())
    high = min(tokens.max() for tokens, _ in curves.values())
    everywhere = np.unique(np.concatenate([t for t, _ in curves.values()]))
    knots = knots_for(everywhere[(everywhere >= low) & (everywhere <= high)])
    total = np.zeros(len(knots))
    for tokens, seconds in curves.values():
        own = knots_for(tokens)
        total += np.interp(knots, own, fit_op(tokens, seconds, own))
    knots, total = without_collinear(knots, total)
    # The last two knots may lie on one tile; beyond the table the slope over its upper half goes on.
    half = knots[-1] / 2
    slope = (total[-1] - np.interp(half, knots, total)) / (knots[-1] - half)
    knots, total = np.append(knots, 4 * knots[-1]), np.append(total, total[-1] + 3 * slope * knots[-1])
    return tuple(int(k) for k in knots), total


def without_collinear(knots: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    """The curve with fewer knots, none further than `COLLINEAR` from where it was."""
    kept = [0]
    for i in range(1, len(knots)):
        between = range(kept[-1] + 1, i)
        line = np.interp(knots[between.start : i], knots[[kept[-1], i]], seconds[[kept[-1], i]])
        if (np.abs(line / seconds[between.start : i] - 1.0) > COLLINEAR).any():
            kept.append(i - 1)
    kept.append(len(knots) - 1)
    return knots[kept], seconds[kept]


def measured_sum(kernels: Sequence[Kernel], tokens: Floats) -> Floats:
    """Seconds of all operators together at `tokens`, from the measurements alone.

    A count between two measured ones close together takes the time of the upper (they fill the same tiles, or the jump
    lies just above the lower); between distant ones the line is as good a guess as any.
    """
    total = np.zeros(len(tokens))
    for counts, seconds in by_op(kernels).values():
        distinct = np.unique(counts)
        medians = np.array([float(np.median(seconds[counts == n])) for n in distinct])
        above = np.clip(np.searchsorted(distinct, tokens), 0, len(distinct) - 1)
        below = np.maximum(above - 1, 0)
        is_close = distinct[above] - distinct[below] <= ONE_TILE
        total += np.where(is_close, medians[above], np.interp(tokens, distinct, medians))
    return total

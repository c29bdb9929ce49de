"""Non-negative robust least squares: a cost cannot be negative, and a profiler's hiccup is not a law.

Relative errors count, with the soft-L1 loss: quadratic near zero, linear far away. Solved by iteratively reweighted
non-negative least squares (Lawson-Hanson).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Floats = NDArray[np.float64]

ITERATIONS = 25
SMALLEST_SPREAD = 0.005
"""Relative errors under half a per cent all count as noise of the measurement."""


def fit_nonnegative(features: Floats, targets: Floats, scale: Floats) -> Floats:
    """Coefficients c >= 0 that bring `features @ c` close to `targets`.

    `features` is (rows, n), `targets` and `scale` are (rows,); a row's error counts relative to its `scale` > 0.
    Raises ValueError when there are fewer rows than coefficients, or anything is not finite.
    """
    rows, columns = features.shape
    if rows < columns:
        raise ValueError(f"{rows} rows cannot determine {columns} coefficients")
    if not (np.isfinite(features).all() and np.isfinite(targets).all() and (scale > 0).all()):
        raise ValueError("features and targets must be finite, scales above 0")
    a, b = features / scale[:, None], targets / scale
    # Columns differ by ten orders of magnitude; Lawson-Hanson's tolerance is absolute.
    norm = np.linalg.norm(a, axis=0)
    norm[norm == 0] = 1.0
    a = a / norm
    weight = np.ones(rows)
    solution = np.zeros(columns)
    for _ in range(ITERATIONS):
        previous = solution
        solution, _ = nnls(a * weight[:, None], b * weight)
        error = a @ solution - b
        spread = max(SMALLEST_SPREAD, 1.4826 * float(np.median(np.abs(error))))
        # Derivative of soft L1, 2 (sqrt(1 + z) - 1) with z = (error / spread)^2, over that of z.
        weight = (1.0 + (error / spread) ** 2) ** -0.25
        if np.allclose(solution, previous, rtol=1e-6, atol=0.0):
            break
    return np.asarray(solution / norm, dtype=np.float64)


def rising_basis(x: Floats, knots: Floats) -> Floats:
    """(len(x), len(knots)) basis of non-decreasing piecewise linear curves.

    Column 0 is 1; column i climbs from 0 to 1 between knots i-1 and i and stays, except that the last keeps climbing.
    Non-negative coefficients are the value at the first knot and the rises.
    """
    columns = [np.ones_like(x)]
    for i in range(1, len(knots)):
        step = (x - knots[i - 1]) / (knots[i] - knots[i - 1])
        last = i == len(knots) - 1
        columns.append(np.maximum(step, 0.0) if last else np.clip(step, 0.0, 1.0))
    return np.stack(columns, axis=1)

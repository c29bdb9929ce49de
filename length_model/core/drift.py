"""Whether answers have changed: two samples of cumulated probabilities, some of them cut. Pure.

The test is one of survival analysis (supremum of the generalized Wilcoxon process: Fleming, Harrington and O'Sullivan,
"Supremum versions of the log-rank and generalized Wilcoxon statistics", 1987), so that a lower limit, which cuts more
answers, is not taken for shorter ones.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from length_model.core.distribution import Floats

RECENT = 128
"""Answers, the latest, that a change is looked for in."""

SIGNIFICANCE = 1e-3
"""Significance level of the test that declares a drift."""

_BOUND = NormalDist().inv_cdf(1 - SIGNIFICANCE / 4)
"""What the supremum of a Brownian motion's absolute value on [0, 1] passes that rarely."""

LEAST_ENDINGS = 16
"""Answers of the recent part that must have ended by themselves, for anything to be said of it."""


def looks_different(recent: Floats, recent_cut: NDArray[np.bool_], older: Floats, older_cut: NDArray[np.bool_]) -> bool:
    """Whether two samples of PITs, some of them cut, come from different distributions, at `SIGNIFICANCE`."""
    if min(len(recent), len(older)) < RECENT // 2 or (~recent_cut).sum() < LEAST_ENDINGS:
        return False
    ended = np.concatenate([recent[~recent_cut], older[~older_cut]])
    at, endings = np.unique(ended, return_counts=True)
    own = np.bincount(np.searchsorted(at, recent[~recent_cut]), minlength=len(at))
    own_at_risk = len(recent) - np.searchsorted(np.sort(recent), at)
    at_risk = own_at_risk + len(older) - np.searchsorted(np.sort(older), at)
    share = own_at_risk / at_risk
    # Weighed by how many live to see it: early differences are not lost among late ones that make up for them.
    weight = np.concatenate([[1.0], np.cumprod(1 - endings / at_risk)[:-1]])
    surprise = np.abs(np.cumsum(weight * (own - endings * share))).max()
    variance = (weight**2 * endings * share * (1 - share) * (at_risk - endings) / np.maximum(at_risk - 1, 1)).sum()
    return bool(surprise > _BOUND * math.sqrt(variance))

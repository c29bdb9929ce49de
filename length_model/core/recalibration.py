"""Corrects a trained model from answers that it was not trained on. Pure.

If the model is right, the cumulated probability that it gave to the true length (the probability integral transform,
PIT) is uniform. Where it is not, its own distribution G turns F into a calibrated one, G(F) (Kuleshov, Fenner and
Ermon, "Accurate Uncertainties for Deep Learning Using Calibrated Regression", 2018). G is estimated by Kaplan-Meier on
the PIT scale, so that an answer that was cut says only "at least this". What comes once a model is at work is learned
elsewhere (`populations.py`): G cannot tell lengths apart that the model takes for all but impossible.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from length_model.core.distribution import Floats, Ints, cdf

KNOTS = 20
"""Pieces of the correction G."""

IDENTITY: Floats = np.linspace(0.0, 1.0, KNOTS + 1)
"""The correction G where nothing is to be corrected."""

TRUST_SAMPLES = 100.0
"""Answers at which the estimate counts as much as "the model is right"."""


def pits(edges: Ints, pmf: Floats, tokens: Ints, censored: NDArray[np.bool_]) -> Floats:
    """[n] cumulated probability of each length: half its own probability in for a finished answer (no bias from
    whole tokens), everything below it for a cut one."""
    upto, below = cdf(edges, pmf, tokens), cdf(edges, pmf, np.asarray(tokens) - 1)
    return np.where(censored, below, (upto + below) / 2)


def knots_from_pits(pits: Floats, censored: NDArray[np.bool_], prior_weight: float = TRUST_SAMPLES) -> Floats:
    """G at 0, 1/KNOTS, ... 1: Kaplan-Meier over the PITs, mixed with the identity as if `prior_weight` more uniform
    answers had been seen. Ascends strictly from 0 to 1."""
    if len(pits) == 0:
        return IDENTITY
    place = np.clip(pits, 0, 1) * KNOTS
    cell = np.clip(place.astype(np.int64), 0, KNOTS - 1)
    ended = np.bincount(cell[~censored], minlength=KNOTS).astype(np.float64) + prior_weight / KNOTS
    cut = np.bincount(cell[censored], minlength=KNOTS).astype(np.float64)
    # A cut answer was at risk in the part of its cell before the cut only.
    missed = np.bincount(cell[censored], weights=(cell + 1 - place)[censored], minlength=KNOTS)
    reached = (ended + cut)[::-1].cumsum()[::-1] - missed
    survival = np.cumprod(1 - np.clip(ended / reached, 0.0, 1.0))
    knots = np.concatenate([[0.0], 1 - survival])
    knots[-1] = 1.0
    return np.maximum.accumulate(np.clip(knots, 0.0, 1.0))

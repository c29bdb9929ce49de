from __future__ import annotations

import numpy as np
import pytest

from length_model.core.distribution import Ints, log_edges, pmf_from_hazards, quantiles_tokens, remapped
from length_model.core.recalibration import IDENTITY, knots_from_pits, pits

EDGES = log_edges()


def test_without_data_nothing_is_corrected() -> None:
    assert knots_from_pits(np.zeros(0), np.zeros(0, dtype=bool)).tolist() == IDENTITY.tolist()


def test_a_biased_model_is_corrected_to_its_true_coverage() -> None:
    """Lengths are half of what the model says: 90 % of them come to lie under the corrected p90."""
    rng = np.random.default_rng(3)
    hazards = np.full((1, len(EDGES) - 1), 0.08)
    pmf = pmf_from_hazards(hazards)
    grid = np.clip(np.linspace(0.0005, 0.9995, 2000), 0, 1)
    honest = quantiles_tokens(EDGES, pmf, grid)[0]

    def lengths(n: int) -> Ints:
        return np.maximum(1, rng.choice(honest, n) // 2)

    seen = lengths(4000)
    found = pits(EDGES, np.repeat(pmf, len(seen), axis=0), seen, np.zeros(len(seen), dtype=bool))
    corrected = remapped(pmf, knots_from_pits(found, np.zeros(len(seen), dtype=bool)))
    later = lengths(4000)
    for level in (0.5, 0.9):
        before, after = (quantiles_tokens(EDGES, p, (level,))[0, 0] for p in (pmf, corrected))
        assert np.mean(later <= before) > level + 0.03
        assert np.mean(later <= after) == pytest.approx(level, abs=0.06)  # the width of a bucket


def test_cut_answers_leave_the_correction_unbiased() -> None:
    """A right model, its answers cut at random: taking cuts for endings would say that it overrates lengths."""
    rng = np.random.default_rng(5)
    true, cut = rng.uniform(size=20_000), rng.uniform(size=20_000) * 1.5
    seen, censored = np.minimum(true, cut), cut < true
    assert censored.mean() > 0.2
    assert knots_from_pits(seen, censored) == pytest.approx(IDENTITY, abs=0.03)
    naive = knots_from_pits(seen, np.zeros(len(seen), dtype=bool))
    assert np.abs(naive - IDENTITY).max() > 0.1

from __future__ import annotations

import numpy as np
import pytest

from length_model.core.distribution import Ints, log_edges, pmf_from_hazards, quantiles_tokens, remapped
from length_model.core.recalibration import (
    KNOTS,
    RECENT,
    GroupCalibration,
    Recalibrator,
    knots_from_pits,
    looks_different,
    pit_of,
    pits,
)

EDGES = log_edges()
IDENTITY = np.linspace(0, 1, KNOTS + 1)


def test_without_data_nothing_is_corrected() -> None:
    assert knots_from_pits(np.zeros(0), np.zeros(0, dtype=bool)).tolist() == IDENTITY.tolist()
    assert Recalibrator().knots(("m", "c")).tolist() == IDENTITY.tolist()


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


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 100, 5000, 40_000])
def test_the_single_and_the_batch_form_agree(tokens: int) -> None:
    pmf = pmf_from_hazards(np.full((1, len(EDGES) - 1), 0.05))
    above = np.cumsum(pmf[0])
    inside = min(tokens, int(EDGES[-1]) - 1)
    for censored in (False, True):
        batch = float(pits(EDGES, pmf, np.array([inside]), np.array([censored]))[0])
        assert pit_of(EDGES, above, inside, censored) == pytest.approx(batch, abs=1e-9)
        assert 0 <= pit_of(EDGES, above, tokens, censored) <= 1


def test_a_change_is_noticed_and_the_past_forgotten() -> None:
    rng = np.random.default_rng(8)
    group = GroupCalibration()
    for pit in rng.uniform(size=600):
        group.add(float(pit), False)
    assert group.drifts == 0
    assert np.abs(group.knots - IDENTITY).max() < 0.12
    for pit in rng.uniform(size=RECENT) * 0.3:
        group.add(float(pit), False)
    assert group.drifts >= 1
    assert len(group) < 400
    for pit in rng.uniform(size=300) * 0.3:
        group.add(float(pit), False)
    assert group.knots[KNOTS // 2] > 0.75


def test_steady_answers_are_not_taken_for_a_change() -> None:
    rng = np.random.default_rng(9)
    drifts = 0
    for _ in range(20):
        group = GroupCalibration()
        for pit in rng.uniform(size=500):
            group.add(float(pit), False)
        drifts += group.drifts
    assert drifts <= 2


def test_a_lower_limit_is_not_taken_for_shorter_answers() -> None:
    """The model stays right; from some moment on every answer is cut at its 30 % point, as by a lower `max_tokens`."""
    rng = np.random.default_rng(12)
    drifts = 0
    for _ in range(20):
        group = GroupCalibration()
        for i, pit in enumerate(rng.uniform(size=700)):
            limit = 1.0 if i < 500 else 0.3
            group.add(min(float(pit), limit), bool(pit > limit))
        drifts += group.drifts
    assert drifts <= 2


def test_a_change_is_noticed_among_cut_answers_too() -> None:
    rng = np.random.default_rng(13)
    group = GroupCalibration()
    for i, pit in enumerate(rng.uniform(size=800)):
        now = float(pit) * (1.0 if i < 500 else 0.4)
        group.add(min(now, 0.3), now > 0.3)
    assert group.drifts >= 1


def test_a_change_of_spread_alone_is_noticed() -> None:
    """Hazards that cross: an ordinary log-rank test would see next to nothing."""
    rng = np.random.default_rng(14)
    group = GroupCalibration()
    for i, pit in enumerate(rng.uniform(size=800)):
        group.add(float(pit) if i < 500 else 0.25 + 0.5 * float(pit), False)
    assert group.drifts >= 1


def test_too_little_data_shows_no_difference() -> None:
    none = np.zeros(500, dtype=bool)
    assert not looks_different(np.zeros(5), none[:5], np.ones(500), none)
    assert not looks_different(np.zeros(100), ~none[:100], np.ones(500), none), "nobody has ended"


def test_groups_are_bounded_and_rare_ones_use_their_models() -> None:
    found = Recalibrator(most_groups=4)
    for i in range(50):
        for _ in range(20):
            found.observe(("m", f"class {i}"), 0.1, False)
    assert len(found._groups) <= 4
    assert found.knots(("m", "never seen"))[KNOTS // 2] > 0.6
    assert found.knots(("other", "x")).tolist() == IDENTITY.tolist()


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="lies in"):
        GroupCalibration().add(bad, False)

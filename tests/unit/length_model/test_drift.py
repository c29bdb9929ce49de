from __future__ import annotations

import numpy as np

from length_model.core.drift import RECENT, looks_different
from length_model.core.populations import LearnedPopulation

NOTHING = np.zeros((3, 4))


def drifts(group: LearnedPopulation, pits: list[float], limit: float = 1.0) -> int:
    """How often a change is declared while answers with these cumulated probabilities come, cut at `limit`."""
    before = group.drifts
    for pit in pits:
        group.add(NOTHING, min(pit, limit), pit > limit)
    return group.drifts - before


def test_a_change_is_noticed_and_the_past_forgotten() -> None:
    rng = np.random.default_rng(8)
    group = LearnedPopulation(4)
    assert drifts(group, rng.uniform(size=600).tolist()) == 0
    assert len(group) == 592, "whole blocks"
    assert drifts(group, (rng.uniform(size=RECENT) * 0.3).tolist()) >= 1
    assert len(group) < 400


def test_steady_answers_are_not_taken_for_a_change() -> None:
    rng = np.random.default_rng(9)
    assert sum(drifts(LearnedPopulation(4), rng.uniform(size=500).tolist()) for _ in range(20)) <= 2


def test_a_lower_limit_is_not_taken_for_shorter_answers() -> None:
    """The model stays right; from some moment on every answer is cut at its 30 % point, as by a lower `max_tokens`."""
    rng = np.random.default_rng(12)
    found = 0
    for _ in range(20):
        group = LearnedPopulation(4)
        found += drifts(group, rng.uniform(size=500).tolist()) + drifts(group, rng.uniform(size=200).tolist(), 0.3)
    assert found <= 2


def test_a_change_is_noticed_among_cut_answers_too() -> None:
    rng = np.random.default_rng(13)
    group = LearnedPopulation(4)
    drifts(group, rng.uniform(size=500).tolist(), 0.3)
    assert drifts(group, (rng.uniform(size=300) * 0.4).tolist(), 0.3) >= 1


def test_a_change_of_spread_alone_is_noticed() -> None:
    """Hazards that cross: an ordinary log-rank test would see next to nothing."""
    rng = np.random.default_rng(14)
    group = LearnedPopulation(4)
    drifts(group, rng.uniform(size=500).tolist())
    assert drifts(group, (0.25 + 0.5 * rng.uniform(size=300)).tolist()) >= 1


def test_too_little_data_shows_no_difference() -> None:
    none = np.zeros(500, dtype=bool)
    assert not looks_different(np.zeros(5), none[:5], np.ones(500), none)
    assert not looks_different(np.zeros(100), ~none[:100], np.ones(500), none), "nobody has ended"

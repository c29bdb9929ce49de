"""Lengths drawn around a mean stay within their bounds."""

from __future__ import annotations

import numpy as np
import pytest

from bench.data.named import NAMED, NamedDraws, drawn_rows
from bench.workload.normal_lengths import NormalLengths


def test_mean_spread_and_bounds_are_those_asked_for() -> None:
    law = NormalLengths(mean_tokens=4000, deviation_tokens=300, shortest_tokens=3500, longest_tokens=4500)
    drawn = law.draw_tokens(np.random.default_rng(3), 100_000)
    assert drawn.mean() == pytest.approx(4000, rel=0.002)
    assert np.percentile(drawn, 75) - np.percentile(drawn, 25) == pytest.approx(2 * 0.6745 * 300, rel=0.02)
    assert (drawn.min(), drawn.max()) == (3500, 4500)


def test_without_deviation_all_are_alike() -> None:
    law = NormalLengths(mean_tokens=256, deviation_tokens=0, shortest_tokens=256, longest_tokens=256)
    assert set(law.draw_tokens(np.random.default_rng(0), 50).tolist()) == {256}


def test_a_mean_outside_its_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit between 10 and 20"):
        NormalLengths(mean_tokens=30, deviation_tokens=1, shortest_tokens=10, longest_tokens=20)


def test_llmd_draws_prompts_and_answers_each_by_themselves() -> None:
    named = NAMED["llmd-slo"]
    assert isinstance(named, NamedDraws)
    rows = drawn_rows("llmd-slo", named, seed=1, count=4000, longest_tokens=8192)
    prompts, answers = np.array([(row.prompt_tokens, row.output_tokens) for row in rows], float).T
    assert (prompts.min(), prompts.max(), answers.min(), answers.max()) == (3500, 4500, 900, 1100)
    assert abs(np.corrcoef(prompts, answers)[0, 1]) < 0.05

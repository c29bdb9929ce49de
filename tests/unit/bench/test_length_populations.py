"""The study of how soon answers of another kind are learned: what is learned, what is judged, what is told."""

from __future__ import annotations

import numpy as np
import pytest

from bench.experiments.length_hints import study_hints
from bench.experiments.length_populations import (
    PRODUCED_TOKENS,
    AnswerPopulation,
    population_of_rows,
    population_of_samples,
    study,
)
from bench.experiments.length_populations_report import markdown
from bench.workload.item import DataRow
from length_model.baseline import ConstantModel
from length_model.core.query import make_query
from tests.helpers.length_samples import made_samples

MODELS = {"constant": ConstantModel()}


def thinking() -> AnswerPopulation:
    tokens = np.maximum(1, np.random.default_rng(0).lognormal(7.0, 0.6, 1500)).astype(int).tolist()
    return AnswerPopulation(
        name="thinking", answers=len(tokens), query=lambda i: make_query("", model="t"), tokens=lambda i: tokens[i]
    )


def test_learned_beliefs_close_the_way_to_the_populations_own_distribution() -> None:
    found = study([thinking()], MODELS, seeds=(0, 1), judged=400, learned=(100, 500))
    assert [worth.belief for worth in found] == ["shipped", "100 answers", "500 answers", "own distribution"]
    shipped, _, learned, own = found
    assert shipped.closed == (0.0,) * len(PRODUCED_TOKENS)
    assert own.closed == (1.0,) * len(PRODUCED_TOKENS)
    assert all(share is not None and share > 0.9 for share in learned.closed)
    assert shipped.under_p90 < 0.5 < 0.85 < learned.under_p90
    assert study([thinking()], MODELS, seeds=(0, 1), judged=400, learned=(100, 500)) == found


def test_where_the_belief_is_better_than_the_distribution_no_way_is_told_of() -> None:
    samples = made_samples(300, seed=1, censored_share=0.1)
    population = population_of_samples("made", samples)
    assert population.answers == sum(not s.censored for s in samples)

    class Knowing(ConstantModel):
        def pmf(self, queries):  # type: ignore[no-untyped-def]
            typical = np.array([max(t for w, t in (("yes", 4), ("sentence", 25), ("paragraph", 110), ("essay", 600))
                                    if w in q.prompt) for q in queries])  # fmt: skip
            rows = np.exp(-8 * np.log((self.edges[:-1] + self.edges[1:]) / 2 / typical[:, None]) ** 2)
            return rows / rows.sum(axis=1, keepdims=True)

    found = study([population], {"knowing": Knowing()}, seeds=(0,), judged=100, learned=(100,))
    assert found[0].closed[0] is None
    assert "| - |" in markdown(found)


def test_what_a_clients_numbers_are_worth_is_learned_of_them() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 400, 1500).tolist()
    rows = [DataRow(prompt_tokens=1, output_tokens=t, predicted_output_tokens=round(1.3 * t)) for t in tokens]
    said, learned = study_hints("biased", rows, seeds=(0, 1), judged=400, learned=(500,))
    assert (said.belief, learned.belief, said.under_p90) == ("as said", "500 answers", 1.0)
    assert all(now < 0.2 * before for now, before in zip(learned.crps_tokens, said.crps_tokens, strict=True))
    with pytest.raises(ValueError, match="500 rows with a prediction, of which 500 are learned"):
        study_hints("biased", rows[:500], seeds=(0,), judged=1, learned=(500,))


def test_turns_of_a_conversation_are_counted() -> None:
    rows = [DataRow(prompt_tokens=1, output_tokens=t, session=s) for s, t in (("a", 5), ("a", 6), ("b", 7), ("a", 8))]
    turns = population_of_rows("turns", rows, in_conversations=True)
    assert [len(turns.query(i).history) for i in range(4)] == [0, 2, 0, 4]
    assert [turns.tokens(i) for i in range(4)] == [5, 6, 7, 8]
    assert {turns.query(i).model for i in range(4)} == {"turns"}
    assert not population_of_rows("x", rows, in_conversations=False).query(3).history


def test_too_few_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="none is left"):
        study([thinking()], MODELS, seeds=(0,), judged=10, learned=(1500,))

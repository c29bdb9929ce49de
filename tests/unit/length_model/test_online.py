from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from length_model.baseline import ConstantModel
from length_model.core.belief import DEFAULT_PRIOR, truncated
from length_model.core.distribution import Floats
from length_model.core.query import LengthQuery, make_query
from length_model.online import OnlineLengths


class BrokenOn(ConstantModel):
    """Raises, or answers nonsense, for prompts that say so."""

    def pmf(self, queries: Sequence[LengthQuery]) -> Floats:
        found = super().pmf(queries)
        for row, query in enumerate(queries):
            if query.prompt == "raise":
                raise RuntimeError("boom")
            if query.prompt == "nan":
                found[row] = np.nan
        return found


@pytest.mark.parametrize("bad", ["raise", "nan"])
def test_one_bad_prompt_gets_the_prior_and_the_others_an_answer(bad: str) -> None:
    lengths = OnlineLengths(BrokenOn())
    good = OnlineLengths(ConstantModel()).predict_batch(["x"], [300])[0]
    assert lengths.predict_batch(["a", bad, "c"], [300, 300, 300]) == [good, truncated(DEFAULT_PRIOR, 300), good]
    assert lengths.counters.failed == 1
    assert lengths.counters.predictions == 3


def test_beliefs_respect_the_limit() -> None:
    lengths = OnlineLengths(ConstantModel())
    (free,), (cut,) = lengths.predict_batch(["a"]), lengths.predict_batch(["a"], [50])
    assert cut == truncated(free, 50)
    assert lengths.predict_batch([]) == []
    assert lengths.prior_for(None) == DEFAULT_PRIOR
    assert lengths.prior_for(20) == truncated(DEFAULT_PRIOR, 20)


def test_beliefs_follow_what_really_comes_per_model() -> None:
    lengths = OnlineLengths(ConstantModel())
    rng = np.random.default_rng(4)
    short, other = make_query("x", model="short answers"), make_query("x", model="other")
    before = lengths.forecast_batch([short])[0].belief
    for tokens in rng.integers(5, 60, size=400):
        lengths.observe(lengths.forecast_batch([short])[0], int(tokens), censored=False)
    after = lengths.forecast_batch([short])[0].belief
    assert after.mean_tokens < 0.5 * before.mean_tokens
    assert lengths.forecast_batch([other])[0].belief == before
    assert lengths.counters.observed == 400


def test_the_model_itself_is_never_changed() -> None:
    class Shared(ConstantModel):
        """Hands out what it keeps."""

        def pmf(self, queries: Sequence[LengthQuery]) -> Floats:
            return self._pmf[None]

    model = Shared()
    lengths, before = OnlineLengths(model), model._pmf.copy()
    query = make_query("x")
    for _ in range(50):
        lengths.observe(lengths.forecast_batch([query])[0], 3, censored=False)
    assert lengths.pmf([query])[0].tolist() != before.tolist()
    assert model._pmf.tolist() == before.tolist()


def test_what_teaches_nothing_is_counted_and_ignored() -> None:
    lengths = OnlineLengths(BrokenOn())
    (failed,) = lengths.forecast_batch([make_query("raise")])
    (fine,) = lengths.forecast_batch([make_query("a")])
    lengths.observe(failed, 10, censored=False)
    lengths.observe(fine, 0, censored=True)
    assert lengths.counters.ignored == 2
    assert lengths.counters.observed == 0
    lengths.observe(fine, 10, censored=True)
    assert lengths.counters.observed_censored == 1
    lengths.note_late(3)
    assert lengths.counters.late == 3

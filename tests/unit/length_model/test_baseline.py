from __future__ import annotations

import msgspec
import numpy as np
import pytest

from length_model.baseline import ConstantModel, kaplan_meier, train_histogram
from length_model.core.belief import DEFAULT_PRIOR
from length_model.core.distribution import cdf, log_edges, mean_tokens, pmf_from_hazards, quantiles_tokens
from length_model.core.query import LengthQuery, LengthSample
from tests.helpers.length_samples import made_samples

EDGES = log_edges()


def sample(tokens: int, *, model: str = "m", request_class: str = "", censored: bool = False) -> LengthSample:
    query = LengthQuery(prompt="x", model=model, request_class=request_class)
    return LengthSample(sample_id="s", group="g", query=query, output_tokens=tokens, censored=censored)


def test_the_constant_model_is_its_belief() -> None:
    model = ConstantModel()
    pmf = model.pmf([LengthQuery(prompt="a"), LengthQuery(prompt="b")])
    assert (pmf[0] == pmf[1]).all()
    assert mean_tokens(model.edges, pmf)[0] == pytest.approx(DEFAULT_PRIOR.mean_tokens, rel=0.05)


def test_a_histogram_answers_by_model_and_class_and_falls_back() -> None:
    rows = [sample(10, request_class="chat")] * 200 + [sample(500, request_class="essay")] * 200
    rows += [sample(2000, model="other")] * 100 + [sample(4, model="rare")] * 3
    model = train_histogram(rows)

    def median(name: str, request_class: str) -> int:
        query = LengthQuery(prompt="", model=name, request_class=request_class)
        return int(quantiles_tokens(model.edges, model.pmf([query]), (0.5,))[0, 0])

    assert median("m", "chat") == pytest.approx(10, rel=0.15)
    assert median("m", "essay") == pytest.approx(500, rel=0.15)
    assert 10 < median("m", "never seen") < 550
    assert median("other", "") == pytest.approx(2000, rel=0.15)
    assert median("rare", "") == median("unknown", "")


def test_cut_answers_pull_the_estimate_up_to_the_truth() -> None:
    """Exponential lengths of mean 300, cut at 200: Kaplan-Meier sees the same start that uncut data show."""
    rng = np.random.default_rng(11)
    lengths = np.maximum(1, rng.exponential(300, 20_000).astype(int))
    limit = 200
    cut = [sample(min(int(t), limit), censored=bool(t > limit)) for t in lengths]
    naive = [msgspec.structs.replace(s, censored=False) for s in cut]
    no_prior = np.full(len(EDGES) - 1, 0.02)
    for rows, wanted, tolerance in ((cut, float(np.mean(lengths <= 120)), 0.01), (naive, 1.0, 0.7)):
        pmf = pmf_from_hazards(kaplan_meier(EDGES, rows, no_prior)[None])
        assert cdf(EDGES, pmf, 120)[0] == pytest.approx(wanted, abs=tolerance)
    honest = pmf_from_hazards(kaplan_meier(EDGES, cut, no_prior)[None])
    fooled = pmf_from_hazards(kaplan_meier(EDGES, naive, no_prior)[None])
    assert mean_tokens(EDGES, fooled)[0] < 160
    assert mean_tokens(EDGES, honest)[0] > 250


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no usable samples"):
        train_histogram([])


def test_training_on_made_up_conversations_gives_a_distribution() -> None:
    model = train_histogram(made_samples(300, censored_share=0.3))
    assert model.pmf([LengthQuery(prompt="")]).sum() == pytest.approx(1)

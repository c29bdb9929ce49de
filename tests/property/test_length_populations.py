"""Laws of what is learned online, whatever answers come."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from length_model.core import distribution as dist
from length_model.core.populations import BLOCK, WINDOW, Population, Populations, hazards_of

EDGES = dist.log_edges(3, 512)
K = len(EDGES) - 1
CHAIN: tuple[Population, ...] = (("m",), ("m", ""), ("m", "", "0"))

ANSWERS = st.lists(st.tuples(st.integers(1, 2000), st.booleans()), min_size=BLOCK, max_size=6 * BLOCK)


@st.composite
def beliefs(draw: st.DrawFn) -> dist.Floats:
    """A model's distribution, with buckets that it takes for impossible or certain."""
    hazards = draw(st.lists(st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1)), min_size=K, max_size=K))
    return dist.pmf_from_hazards(np.array([hazards]))


@settings(max_examples=60)
@given(beliefs(), beliefs(), ANSWERS)
def test_whatever_came_beliefs_are_distributions_with_ascending_quantiles(
    pmf: dist.Floats, other: dist.Floats, answers: list[tuple[int, bool]]
) -> None:
    populations = Populations(EDGES)
    hazards = hazards_of(pmf)[0].astype(np.float32)
    for tokens, censored in answers:
        populations.observe(CHAIN, hazards, tokens, censored)
    correction = populations.correction(CHAIN)
    assert correction is not None
    assert (correction.times >= 0).all()
    assert (correction.plus >= 0).all()
    for believed in (pmf, other):
        found = correction.pmf(hazards_of(believed))
        assert np.isfinite(found).all()
        assert (found >= 0).all()
        assert abs(found.sum() - 1) < 1e-9
        quantiles = dist.quantiles_tokens(EDGES, found, np.linspace(0.01, 0.99, 50))[0]
        assert (np.diff(quantiles) >= 0).all()
        assert quantiles[0] >= 1
        assert quantiles[-1] < EDGES[-1]


@settings(max_examples=40)
@given(ANSWERS, st.randoms(use_true_random=False))
def test_the_order_of_answers_makes_no_difference(answers: list[tuple[int, bool]], shuffling: object) -> None:
    """Of whole blocks, none of which was forgotten because answers had changed."""
    whole = answers[: len(answers) // BLOCK * BLOCK]
    shuffled = list(whole)
    shuffling.shuffle(shuffled)  # type: ignore[attr-defined]
    hazards = hazards_of(np.full((1, K), 1 / K))
    found = []
    for order in (whole, shuffled):
        populations = Populations(EDGES)
        for tokens, censored in order:
            populations.observe(CHAIN, hazards[0], tokens, censored)
        if populations.drifts():
            return
        correction = populations.correction(CHAIN)
        assert correction is not None
        found.append(correction.pmf(hazards))
    assert np.allclose(found[0], found[1], rtol=0, atol=1e-5)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=60), st.integers(3, 20))
def test_no_names_make_more_populations_than_are_kept(names: list[tuple[str, str]], most: int) -> None:
    populations = Populations(EDGES, most)
    hazards = hazards_of(np.full((1, K), 1 / K))[0]
    for model, label in names:
        populations.observe(((model,), (model, label), (model, label, "0")), hazards, 5, False)
        assert len(populations) <= most


@settings(max_examples=10)
@given(st.integers(0, 2), st.integers(0, BLOCK - 1))
def test_what_is_older_than_the_window_is_forgotten(windows: int, more: int) -> None:
    hazards = hazards_of(np.full((1, K), 1 / K))[0]
    populations = Populations(EDGES)
    for _ in range(windows * WINDOW + more):
        populations.observe(CHAIN, hazards, 3, False)
    for _ in range(WINDOW + BLOCK):
        populations.observe(CHAIN, hazards, 200, False)
    ended = np.sum(populations._learned[CHAIN[0]]._blocks, axis=0)[1]
    assert ended[: dist.bucket_of(EDGES, 200)].sum() == 0
    assert ended.sum() <= WINDOW

"""Laws of a discretised length distribution, and its scores against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from length_model.core import distribution as dist
from length_model.core.belief import OVERDUE_TOKENS, truncated
from length_model.core.scoring import bootstrap, crps, pinball

EDGES = dist.log_edges()
SHORT = dist.log_edges(3, 64)


@st.composite
def short_pmf(draw: st.DrawFn) -> dist.Floats:
    k = len(SHORT) - 1
    hazards = draw(st.lists(st.floats(0, 1), min_size=k, max_size=k))
    return dist.pmf_from_hazards(np.array([hazards]))


def spelled_out(edges: dist.Ints, pmf: dist.Floats) -> dist.Floats:
    """P(length = t) for t = 0 .. edges[-1] - 1."""
    out = np.zeros(int(edges[-1]))
    for k in range(len(edges) - 1):
        out[edges[k] : edges[k + 1]] = pmf[0, k] / (edges[k + 1] - edges[k])
    return out


def test_edges_grow_and_have_no_gap() -> None:
    assert EDGES[0] == 1
    assert EDGES[-1] == dist.LONGEST_TOKENS
    assert (np.diff(EDGES) >= 1).all()
    assert (np.diff(np.diff(EDGES)) >= -1).all()


@given(short_pmf())
def test_hazards_sum_to_one_and_come_back(pmf: dist.Floats) -> None:
    assert pmf.sum() == pytest.approx(1.0)
    assert (pmf >= 0).all()
    reach = np.cumsum(pmf[..., ::-1], axis=-1)[..., ::-1]
    hazards = np.divide(pmf, reach, out=np.ones_like(pmf), where=reach > 0)
    assert dist.pmf_from_hazards(hazards) == pytest.approx(pmf, abs=1e-9)


@given(short_pmf(), st.lists(st.floats(0.001, 1), min_size=2, max_size=6))
def test_quantiles_are_monotone_and_are_the_smallest_that_reach_the_level(
    pmf: dist.Floats, levels: list[float]
) -> None:
    levels = sorted(levels)
    found = dist.quantiles_tokens(SHORT, pmf, levels)[0]
    assert (np.diff(found) >= 0).all()
    cumulated = np.cumsum(spelled_out(SHORT, pmf))
    for level, t in zip(levels, found, strict=True):
        assert cumulated[t] >= level - 1e-6
        assert t == 0 or cumulated[t - 1] <= level + 1e-6


@given(short_pmf())
def test_mean_and_cdf_agree_with_the_spelled_out_distribution(pmf: dist.Floats) -> None:
    exact = spelled_out(SHORT, pmf)
    assert dist.mean_tokens(SHORT, pmf)[0] == pytest.approx(float(exact @ np.arange(len(exact))))
    for t in (0, 1, 5, 17, 40, 63, 100):
        assert dist.cdf(SHORT, pmf, t)[0] == pytest.approx(float(exact[: t + 1].sum()), abs=1e-9)


@given(short_pmf(), st.integers(0, 80))
def test_what_is_produced_is_impossible_and_the_rest_keeps_its_proportions(pmf: dist.Floats, produced: int) -> None:
    edges, left = dist.given_produced(SHORT, pmf, produced)
    assert left.sum() == pytest.approx(1.0)
    assert edges[0] > produced or produced < 1
    before, after = spelled_out(SHORT, pmf), spelled_out(edges, left)
    mass = before[produced + 1 :].sum()
    if mass > 1e-9:
        assert after[produced + 1 :] == pytest.approx(before[produced + 1 :] / mass, abs=1e-6)
    elif mass == 0:
        low, high = dist.quantiles_tokens(edges, left, [0.01, 1.0])[0]
        assert produced < low <= high
        if edges[-1] - 1 <= produced + OVERDUE_TOKENS:
            assert high <= produced + OVERDUE_TOKENS


@given(short_pmf(), st.integers(0, 30), st.integers(0, 30))
def test_conditioning_twice_is_conditioning_once(pmf: dist.Floats, first: int, more: int) -> None:
    if dist.cdf(SHORT, pmf, first + more)[0] > 1 - 1e-6:
        return
    at_once = dist.given_produced(SHORT, pmf, first + more)
    in_steps = dist.given_produced(*dist.given_produced(SHORT, pmf, first), first + more)
    assert spelled_out(*in_steps) == pytest.approx(spelled_out(*at_once), abs=1e-6)


@given(short_pmf(), st.integers(0, 40))
def test_the_expected_total_never_falls_while_an_answer_grows(pmf: dist.Floats, produced: int) -> None:
    if dist.cdf(SHORT, pmf, produced + 1)[0] > 1 - 1e-6:
        return
    now = dist.mean_tokens(*dist.given_produced(SHORT, pmf, produced))[0]
    later = dist.mean_tokens(*dist.given_produced(SHORT, pmf, produced + 1))[0]
    assert later >= now - 1e-6


@given(short_pmf(), st.integers(0, 90))
def test_a_limit_moves_all_mass_above_it_onto_it(pmf: dist.Floats, limit: int) -> None:
    edges, cut = dist.truncated(SHORT, pmf, limit)
    assert cut.sum() == pytest.approx(1.0)
    exact = spelled_out(SHORT, pmf)
    at = max(1, limit)
    wanted = float(exact @ np.minimum(np.arange(len(exact)), at))
    assert dist.mean_tokens(edges, cut)[0] == pytest.approx(wanted, abs=1e-9)


@given(short_pmf(), st.integers(1, 90))
def test_beliefs_are_the_midpoint_quantiles_under_the_limit(pmf: dist.Floats, limit: int) -> None:
    (free,), (cut,) = dist.beliefs(SHORT, pmf), dist.beliefs(SHORT, pmf, [limit])
    assert len(free.atoms_tokens) == dist.ATOMS
    assert cut == truncated(free, limit)


@settings(max_examples=50)
@given(short_pmf(), st.integers(1, 80))
def test_crps_is_the_sum_of_squared_distances_of_the_cumulated_probability(pmf: dist.Floats, y: int) -> None:
    exact = np.cumsum(spelled_out(SHORT, pmf))
    exact = np.concatenate([exact, np.ones(200 - len(exact))])
    wanted = float(((exact - (np.arange(200) >= y)) ** 2).sum())
    assert crps(SHORT, pmf, np.array([y]))[0] == pytest.approx(wanted, abs=1e-6)


@settings(max_examples=30)
@given(short_pmf(), st.integers(1, 63))
def test_crps_is_twice_the_mean_pinball_loss(pmf: dist.Floats, y: int) -> None:
    levels = (np.arange(2000) + 0.5) / 2000
    q = dist.quantiles_tokens(SHORT, pmf, levels)[0]
    mean = np.mean([pinball(q[i : i + 1], np.array([y]), levels[i])[0] for i in range(len(levels))])
    assert crps(SHORT, pmf, np.array([y]))[0] == pytest.approx(2 * mean, abs=0.15)


@given(short_pmf(), st.lists(st.floats(0, 1), min_size=4, max_size=9))
def test_a_remapped_distribution_is_one(pmf: dist.Floats, inner: list[float]) -> None:
    knots = np.array([0.0, *sorted(inner), 1.0])
    mapped = dist.remapped(pmf, knots)
    assert mapped.sum() == pytest.approx(1.0)
    assert (mapped >= -1e-12).all()
    identity = np.linspace(0, 1, len(knots))
    assert dist.remapped(pmf, identity) == pytest.approx(pmf, abs=1e-9)


def test_bootstrap_interval_holds_the_mean_and_widens_with_grouping() -> None:
    rng = np.random.default_rng(5)
    levels = rng.normal(size=100).repeat(10)
    apart = bootstrap(levels, np.arange(1000))
    together = bootstrap(levels, np.arange(100).repeat(10))
    assert apart.low < apart.mean < apart.high
    assert together.mean == pytest.approx(apart.mean)
    assert together.high - together.low > 2 * (apart.high - apart.low)

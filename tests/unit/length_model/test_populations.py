"""What is learned online of populations of answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from length_model.baseline import ConstantModel
from length_model.core.conversation import Turn
from length_model.core.distribution import Floats, Ints, bucket_of, cdf, log_edges, mean_tokens, quantiles_tokens
from length_model.core.populations import (
    BLOCK,
    STRENGTHS,
    WINDOW,
    LearnedPopulation,
    LengthCorrection,
    Population,
    Populations,
    _log_gamma,
    hazards_of,
    likeliest_strength,
    populations_of,
)
from length_model.core.query import TOOLS_CLASS, make_query
from length_model.core.scoring import crps

EDGES = log_edges()
K = len(EDGES) - 1
SHIPPED = ConstantModel().pmf([make_query("x")])
HAZARDS = hazards_of(SHIPPED)
MODEL: tuple[Population, ...] = (("m",),)


def thinking(rng: np.random.Generator, count: int) -> Ints:
    """Answers that think first: most of them longer than the shipped belief thinks possible."""
    return np.maximum(1, rng.lognormal(7.2, 0.7, count)).astype(np.int64)


def taught(tokens: Ints, levels: tuple[Population, ...] = MODEL, into: Populations | None = None) -> Populations:
    populations = Populations(EDGES) if into is None else into
    for t in tokens.tolist():
        populations.observe(levels, HAZARDS[0], t, False)
    return populations


def corrected(populations: Populations, levels: tuple[Population, ...] = MODEL) -> Floats:
    correction = populations.correction(levels)
    assert correction is not None
    return correction.pmf(HAZARDS)


def loss(pmf: Floats, tokens: Ints) -> float:
    return float(crps(EDGES, np.repeat(pmf, len(tokens), axis=0), tokens).mean())


def conversation(answers: int) -> list[Turn]:
    return [Turn("user", "a"), Turn("assistant", "b")] * answers


def test_who_belongs_to_which_population() -> None:
    def of(answers: int, request_class: str = "") -> Population:
        *wider, found = populations_of(make_query("x", conversation(answers), model="m", request_class=request_class))
        assert wider == [found[:1], found[:2]]
        return found

    assert [of(n)[2] for n in (0, 1, 2, 3, 4, 7, 200)] == ["0", "1", "2", "2", "3", "3", "3"]
    assert of(0)[:2] == of(5)[:2] == ("m", "")
    assert of(0, TOOLS_CLASS) == ("m", "tools", "0")
    assert of(2, "summaries") == ("m", "summaries", "2")


def test_an_agents_turns_are_counted_in_answers() -> None:
    calls = [Turn("user", "go"), *[Turn("assistant", "call")] * 3]
    assert populations_of(make_query("result", calls))[-1][2] == "2"


def test_nothing_is_corrected_before_a_block_of_answers() -> None:
    populations = taught(np.full(BLOCK - 1, 5000))
    assert populations.correction(MODEL) is None
    populations.observe(MODEL, HAZARDS[0], 5000, False)
    assert mean_tokens(EDGES, corrected(populations))[0] > mean_tokens(EDGES, SHIPPED)[0]
    assert populations.correction((("another",),)) is None


@pytest.mark.parametrize(("answers", "closed", "off"), [(112, 0.85, 0.1), (496, 0.9, 0.05)])
def test_another_population_is_learned_within_500_answers(answers: int, closed: float, off: float) -> None:
    rng = np.random.default_rng(3)
    learned = corrected(taught(thinking(rng, answers)))
    later = thinking(rng, 4000)
    own = (np.bincount(bucket_of(EDGES, later), minlength=K) / len(later))[None]
    shipped, oracle = loss(SHIPPED, later), loss(own, later)
    assert (shipped - loss(learned, later)) / (shipped - oracle) > closed
    assert np.mean(later <= quantiles_tokens(EDGES, learned, (0.9,))[0, 0]) == pytest.approx(0.9, abs=off)


def test_answers_as_believed_leave_the_belief_as_it_is() -> None:
    rng = np.random.default_rng(2)
    honest = quantiles_tokens(EDGES, SHIPPED, np.linspace(0.0005, 0.9995, 4000))[0]
    for answers in (112, 496):
        learned = corrected(taught(rng.choice(honest, answers)))
        assert loss(learned, honest) < 1.01 * loss(SHIPPED, honest)


def test_what_the_model_knows_of_prompts_stays() -> None:
    """Half of the prompts are short ones, which the model knows; all answers are half again as long as it thinks."""
    rng = np.random.default_rng(3)
    lengths = {"short": 40.0, "long": 800.0}
    believed = {}
    for name, typical in lengths.items():
        seen = np.clip(
            np.bincount(bucket_of(EDGES, rng.lognormal(math.log(typical), 0.4, 50_000)), minlength=K), 0, None
        )
        believed[name] = hazards_of((seen / seen.sum())[None])
    populations = Populations(EDGES)
    for i in range(480):
        name = ("short", "long")[i % 2]
        t = int(max(1, rng.lognormal(math.log(1.5 * lengths[name]), 0.4)))
        populations.observe(MODEL, believed[name][0], t, False)
    correction = populations.correction(MODEL)
    assert correction is not None
    for name, typical in lengths.items():
        median = quantiles_tokens(EDGES, correction.pmf(believed[name]), (0.5,))[0, 0]
        assert median == pytest.approx(1.5 * typical, rel=0.35)


def test_a_thing_impossible_to_one_prompt_is_no_certainty_to_another() -> None:
    """Half of the answers end after three tokens, which the model took for all but impossible: a prompt of which it
    thinks a thousand times likelier what is still unlikely does not become certain to end there."""
    populations = taught(np.tile([3, 400], 64))
    correction = populations.correction(MODEL)
    assert correction is not None
    likelier = HAZARDS.copy()
    likelier[0, 2] = min(0.01, 1000 * likelier[0, 2])
    assert 0.4 < cdf(EDGES, correction.pmf(likelier), 3)[0] < 0.7


def test_a_seldom_asked_population_leans_on_the_wider_one() -> None:
    rng = np.random.default_rng(5)
    first = (("m",), ("m", ""), ("m", "", "0"))
    tools = (("m",), ("m", "tools"), ("m", "tools", "0"))
    populations = taught(thinking(rng, 480), first)
    before = corrected(populations, tools)
    assert before == pytest.approx(corrected(populations, MODEL)), (
        "of tools nothing is known: as the model's other answers"
    )
    taught(np.full(BLOCK * 4, 30), tools, populations)
    assert quantiles_tokens(EDGES, corrected(populations, tools), (0.5,))[0, 0] < 60
    assert quantiles_tokens(EDGES, corrected(populations, first), (0.5,))[0, 0] > 800


def test_cut_answers_leave_the_belief_unbiased() -> None:
    """Taking cuts for endings would say that answers are shorter than they are."""
    rng = np.random.default_rng(6)
    populations = Populations(EDGES)
    true, limit = thinking(rng, 960), rng.integers(200, 4000, 960)
    for t, most in zip(true.tolist(), limit.tolist(), strict=True):
        populations.observe(MODEL, HAZARDS[0], min(t, most), t > most)
    assert (true > limit).mean() > 0.3
    learned = quantiles_tokens(EDGES, corrected(populations), (0.5,))[0, 0]
    assert learned == pytest.approx(float(np.median(true)), rel=0.15)


def test_only_the_last_answers_count() -> None:
    rng = np.random.default_rng(7)
    group = LearnedPopulation(K)
    for _ in range(3 * WINDOW):
        group.add(np.ones((3, K)), float(rng.uniform()), False)
        assert len(group) <= WINDOW
    assert len(group) == WINDOW or group.drifts


def test_populations_are_bounded_and_the_widest_stay_longest() -> None:
    populations = Populations(EDGES, most=6)
    for i in range(50):
        taught(np.full(BLOCK, 4), (("m",), ("m", f"class {i}"), ("m", f"class {i}", "0")), populations)
        assert len(populations) <= 6
    assert populations.correction((("m",), ("m", "never seen"))) is not None
    assert populations.correction((("m", "class 0"),)) is None


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 100, 5000, 40_000])
def test_the_three_sums_of_one_answer(tokens: int) -> None:
    inside = min(tokens, int(EDGES[-1]) - 1)
    below = float(cdf(EDGES, SHIPPED, inside - 1)[0])
    upto = float(cdf(EDGES, SHIPPED, inside)[0])
    for censored in (False, True):
        populations = Populations(EDGES)
        populations.observe(MODEL, HAZARDS[0], tokens, censored)
        learned = populations._learned["m",]
        reached, ended, expected = learned._filling
        assert ended.sum() == (not censored)
        assert (reached >= ended).all()
        assert expected == pytest.approx(reached * HAZARDS[0], abs=1e-6)
        if tokens < EDGES[-1]:
            wanted = below if censored else (below + upto) / 2
            assert learned._pits[0] == pytest.approx(wanted, abs=1e-5)
        assert 0 <= learned._pits[0] <= 1


def test_the_strength_follows_the_answers() -> None:
    reached = np.full(20, 200.0)
    rng = np.random.default_rng(8)
    prior = np.full(20, 0.1)
    assert likeliest_strength(reached, rng.binomial(200, 0.1, 20).astype(float), prior) >= 128
    assert likeliest_strength(reached, 200 * rng.beta(0.2, 1.8, 20), prior) == STRENGTHS[0]
    assert likeliest_strength(reached[:0], reached[:0], prior[:0]) in STRENGTHS


def test_the_logarithm_of_the_gamma_function() -> None:
    x = np.array([1e-9, 1e-3, 0.5, 1.0, 2.0, 7.7, 100.0, 1e4])
    assert _log_gamma(x) == pytest.approx([math.lgamma(v) for v in x], abs=1e-8)


def test_no_correction_changes_nothing() -> None:
    assert LengthCorrection(np.ones(K), np.zeros(K)).pmf(HAZARDS) == pytest.approx(SHIPPED, abs=1e-5)

"""Laws of step-time learning, for any prior, any batches, any durations."""

from __future__ import annotations

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from predictor.core.step_learning import StepLearner
from predictor.core.step_terms import Quadratic, StepTerms
from simcore.cost.shipped import load_profile
from simcore.cost.step_time import StepTimeModel
from simcore.trace import StepBatch
from tests.property.test_step_time_model import batches, models

SHIPPED = [load_profile(n).step_time_model() for n in ("a30/llama-2-7b", "h200/qwen3-32b", "l40s/qwen2-7b")]


def observation(batch: StepBatch) -> list[float]:
    seqs = batch.prefill_seqs + batch.decode_seqs
    return [batch.total_tokens, batch.prefill_work_tokens2, batch.decode_kv_tokens, seqs, batch.prefill_seqs, 1.0]


@settings(deadline=None)
@given(models(st.just(0.0)), st.lists(batches, min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_any_weighted_sum_of_terms_is_a_model(prior: StepTimeModel, some: list[StepBatch], rng: random.Random) -> None:
    terms = StepTerms(prior)
    columns = terms.columns(np.array([observation(b) for b in some]))
    for weights in (terms.multipliers, np.array([rng.choice((0.0, rng.uniform(0, 5))) for _ in range(len(terms))])):
        model = terms.model(weights, source="")
        for batch, row in zip(some, columns, strict=True):
            assert model.seconds(batch) == pytest.approx(float(row @ weights), rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(models(st.just(0.0)), batches)
def test_the_multipliers_of_the_prior_give_the_prior(prior: StepTimeModel, batch: StepBatch) -> None:
    terms = StepTerms(prior)
    model = terms.model(terms.multipliers, source="")
    assert model.seconds(batch) == pytest.approx(prior.seconds(batch), rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(st.integers(1, 25), st.integers(0, 2**32 - 1))
def test_the_nonnegative_minimum_is_one(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(2 * n, n)) * 10.0 ** rng.uniform(-2, 2, n)
    gram = a.T @ a + 1e-3 * np.eye(n)
    form = Quadratic(gram, gram @ rng.normal(size=n))
    v = form.minimum_nonnegative(np.maximum(0.0, rng.normal(size=n)))
    slope = gram @ v - form.moment
    size = 1e-6 * (np.abs(gram) @ np.abs(v) + np.abs(form.moment)).max()
    assert (v >= 0).all()
    assert (slope >= -size).all(), "a term at 0 would rather be above"
    assert (np.abs(slope[v > 0]) <= size).all(), "a free term is not at its minimum"


anything = st.one_of(st.floats(), st.floats(1e-4, 10.0), st.just(0.02))


@settings(deadline=None, max_examples=60)
@given(models(), st.lists(st.tuples(batches, anything), max_size=30), st.integers(1, 12))
def test_whatever_comes_the_model_is_one_and_serves(
    prior: StepTimeModel, steps: list[tuple[StepBatch, float]], repeats: int
) -> None:
    learner = StepLearner(prior)
    version = 0
    for batch, seconds in steps * repeats:
        learner.add(batch, seconds)
        assert learner.version >= version
        version = learner.version
    learned = learner.learned()
    assert learned.model.name == prior.name
    assert learner.ignored + learner.steps <= len(steps) * repeats
    for batch, _ in steps:
        predicted = learned.model.seconds(batch)
        assert math.isfinite(predicted)
        assert predicted >= 0.0
    if learned.is_learned:
        assert learned.error <= 1.5 * learned.prior_error + 0.05


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(SHIPPED), st.sampled_from(SHIPPED), st.floats(0.05, 20.0), st.floats(0.0, 0.01), st.integers(0, 999)
)
def test_any_hardware_is_learned_from_any_prior(
    hidden: StepTimeModel, prior: StepTimeModel, factor: float, overhead_s: float, seed: int
) -> None:
    note(f"seed {seed}")
    rng = random.Random(seed)
    true = msgspec.structs.replace(hidden.scaled(factor), constant_s=hidden.constant_s * factor + overhead_s)
    learner = StepLearner(prior)
    errors = []
    for step in range(1200):
        batch = any_batch(rng)
        seconds = true.seconds(batch)
        if step >= 1000:
            errors.append(abs(learner.model.seconds(batch) - seconds) / seconds)
        learner.add(batch, seconds * rng.lognormvariate(0.0, 0.02) * (50.0 if rng.random() < 0.01 else 1.0))
    assert np.median(errors) < 0.10
    if prior == hidden:
        assert np.median(errors) < 0.03


def any_batch(rng: random.Random) -> StepBatch:
    """As an engine with 64 sequences and a budget of 1,024 tokens makes them."""
    decodes = rng.randint(0, 64)
    kv = sum(rng.randint(20, 1500) for _ in range(decodes))
    if decodes and rng.random() < 0.7:
        return StepBatch(decode_seqs=decodes, decode_kv_tokens=kv)
    chunk = rng.randint(1, 1024 - decodes)
    return StepBatch(chunk, chunk * (rng.randint(0, 1000) + chunk / 2), rng.randint(1, 4), decodes, kv)

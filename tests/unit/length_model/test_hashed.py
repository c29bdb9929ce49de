from __future__ import annotations

import numpy as np
import pytest

from length_model import hashed_training as ht
from length_model.artifact import ArtifactError, from_bytes, to_bytes
from length_model.baseline import train_histogram
from length_model.core.distribution import Floats, quantiles_tokens
from length_model.core.evaluation import judge
from length_model.core.features import FEATURES_VERSION
from length_model.hashed import HashedModel
from tests.helpers.length_samples import ASKED, made_samples

RECIPE = ht.HashedRecipe(hash_buckets=512, width=4, hidden=16, epochs=12, batch=64, learning_rate=0.02)


def log_likelihood_loss(logits: Floats, bucket: int, censored: bool, exposure: float) -> float:
    hazard = 1 / (1 + np.exp(-logits))
    loss = -np.log(1 - hazard[:bucket]).sum()
    return float(loss - (exposure * np.log(1 - hazard[bucket]) if censored else np.log(hazard[bucket])))


@pytest.mark.parametrize("censored", [False, True])
@pytest.mark.parametrize("bucket", [0, 3, 6])
def test_the_gradient_is_that_of_the_survival_likelihood(bucket: int, censored: bool) -> None:
    logits = np.random.default_rng(bucket).normal(size=7)
    part = 0.3 if censored else 1.0
    got = ht.survival_gradient(
        logits[None].astype(np.float32), np.array([bucket]), np.array([censored]), np.array([part], np.float32)
    )[0]
    for k in range(7):
        step = np.zeros(7)
        step[k] = 1e-5
        up = log_likelihood_loss(logits + step, bucket, censored, part)
        down = log_likelihood_loss(logits - step, bucket, censored, part)
        assert got[k] == pytest.approx((up - down) / 2e-5, abs=1e-4)


def test_training_learns_what_prompts_ask_for_and_beats_the_histogram() -> None:
    samples = made_samples(900, seed=1)
    training, calibration, test = samples[:600], samples[600:750], samples[750:]
    trained = ht.train(training, calibration, RECIPE)
    model = HashedModel.from_artifact(from_bytes(to_bytes("hashed", trained.meta, trained.arrays)))
    ours, theirs = judge(model, test), judge(train_histogram(training), test)
    assert ours.loss.mean() < 0.5 * theirs.loss.mean()
    medians = [
        np.mean([m for s, m in zip(test, ours.quantiles[:, 0], strict=True) if s.query.prompt.endswith(asked)])
        for asked in ASKED
    ]
    assert (np.diff(medians) > 0).all()


def test_training_twice_gives_the_same_bytes() -> None:
    samples = made_samples(120)
    once, again = (ht.train(samples[:90], samples[90:], RECIPE) for _ in range(2))
    assert to_bytes("hashed", once.meta, once.arrays) == to_bytes("hashed", again.meta, again.arrays)


def test_cut_answers_are_not_taken_for_short_ones() -> None:
    whole = made_samples(900, seed=2)
    cut = made_samples(900, seed=2, censored_share=0.5)
    queries = [s.query for s in whole[700:]]
    medians = []
    for samples in (whole, cut):
        trained = ht.train(samples[:600], samples[600:700], RECIPE)
        model = HashedModel.from_artifact(from_bytes(to_bytes("hashed", trained.meta, trained.arrays)))
        medians.append(quantiles_tokens(model.edges, model.pmf(queries), (0.5,)).mean())
    assert medians[1] > 0.75 * medians[0]


def test_both_sides_are_needed() -> None:
    with pytest.raises(ValueError, match="no usable samples"):
        ht.train([], [], RECIPE)
    with pytest.raises(ValueError, match="calibration"):
        ht.train(made_samples(30), [], RECIPE)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_is_an_error() -> None:
    samples = made_samples(60)
    wild = ht.HashedRecipe(hash_buckets=64, width=2, hidden=4, epochs=2, batch=16, learning_rate=float("inf"))
    with pytest.raises(FloatingPointError, match="diverged"):
        ht.train(samples[:50], samples[50:], wild)


def test_an_artefact_of_other_features_or_shapes_is_refused() -> None:
    samples = made_samples(60)
    trained = ht.train(samples[:50], samples[50:], RECIPE)

    def load(meta: dict[str, object], **replaced: object) -> HashedModel:
        arrays = {**trained.arrays, **replaced}
        arrays = {k: v for k, v in arrays.items() if v is not None}
        return HashedModel.from_artifact(from_bytes(to_bytes("hashed", {**trained.meta, **meta}, arrays)))  # type: ignore[arg-type]

    with pytest.raises(ArtifactError, match=f"features version 0, this version has {FEATURES_VERSION}; train it anew"):
        load({"features_version": 0})
    with pytest.raises(ArtifactError, match=r"'out.bias' has shape \(3,\)"):
        load({}, **{"out.bias": np.zeros(3, np.float32)})
    with pytest.raises(ArtifactError, match=r"lacks .*hidden.bias"):
        load({}, **{"hidden.bias": None})
    with pytest.raises(ArtifactError, match="does not ascend"):
        load({}, knots=np.array([0.0, 0.9, 0.1, 1.0]))

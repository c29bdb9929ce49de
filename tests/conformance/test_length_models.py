"""What every length model must do, whatever it is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from length_model import artifact
from length_model.baseline import ConstantModel, train_histogram
from length_model.core import distribution as dist
from length_model.core.conversation import Turn
from length_model.core.features import FEATURES_VERSION
from length_model.core.model import LengthModel
from length_model.core.query import LengthQuery, make_query
from length_model.core.split import split_samples
from length_model.encoder import EncoderModel
from length_model.hashed_training import HashedRecipe
from length_model.models import from_artifact, load_model, model_names, predict
from length_model.training import Kind, TrainingError, train_to_file
from tests.helpers.length_samples import made_samples
from tests.helpers.tiny_encoder import LetterTokenizer, tiny_encoder_artifact, tiny_hashed_arrays

SAMPLES = made_samples(300, seed=5, censored_share=0.1)
TINY = {"hash_buckets": 256, "width": 4, "hidden": 8, "batch": 32}


@functools.cache
def hashed() -> LengthModel:
    from length_model.hashed import HashedModel
    from length_model.hashed_training import train

    trained = train(SAMPLES[:200], SAMPLES[200:], HashedRecipe(**TINY))
    data = artifact.to_bytes("hashed", trained.meta, trained.arrays)
    return HashedModel.from_artifact(artifact.from_bytes(data))


MODELS: dict[str, Callable[[], LengthModel]] = {
    "constant": ConstantModel,
    "histogram": functools.cache(lambda: train_histogram(SAMPLES)),
    "hashed": hashed,
    "encoder": functools.cache(lambda: EncoderModel(tiny_encoder_artifact(), LetterTokenizer())),
    **{f"shipped {name}": functools.partial(load_model, name) for name in model_names()},
}
QUERIES = [
    *(s.query for s in SAMPLES[:20]),
    LengthQuery(prompt=""),
    LengthQuery(prompt="", model="nobody knows it", request_class="nor this"),
    make_query("go on", [Turn("assistant", "I was saying"), Turn("other", "tool output"), Turn("user", "what?")]),
    make_query("word " * 200_000),
    make_query("x" * 1_000_000, [Turn("assistant", "y" * 1_000_000)]),
    LengthQuery(prompt=bytes(range(256)).decode("latin-1") * 50),
    LengthQuery(prompt="half \ud800 surrogate \udfff"),
    LengthQuery(prompt="\0" * 500),
    LengthQuery(prompt="请写一篇关于灯塔的文章"),
]


@pytest.fixture(params=MODELS, ids=str)
def model(request: pytest.FixtureRequest) -> LengthModel:
    return MODELS[request.param]()


def test_every_answer_is_a_distribution(model: LengthModel) -> None:
    pmf = model.pmf(QUERIES)
    assert pmf.shape == (len(QUERIES), len(model.edges) - 1)
    assert np.isfinite(pmf).all()
    assert (pmf >= -1e-12).all()
    assert pmf.sum(axis=1) == pytest.approx(1.0)
    assert model.pmf([]).shape == (0, len(model.edges) - 1)


def test_quantiles_ascend(model: LengthModel) -> None:
    found = dist.quantiles_tokens(model.edges, model.pmf(QUERIES), np.linspace(0.01, 1, 50))
    assert (np.diff(found, axis=1) >= 0).all()
    assert (found >= 1).all()


def test_an_answer_does_not_depend_on_its_batch(model: LengthModel) -> None:
    together = model.pmf(QUERIES)
    alone = np.concatenate([model.pmf([q]) for q in QUERIES])
    assert together == pytest.approx(alone, abs=1e-5)
    assert model.pmf(QUERIES[::-1])[::-1] == pytest.approx(together, abs=1e-5)


@pytest.mark.parametrize("produced", [0, 1, 50, 200, 500, 40_000])
def test_what_remains_is_what_was_believed_less_the_impossible(model: LengthModel, produced: int) -> None:
    pmf = model.pmf(QUERIES)
    edges, left = dist.given_produced(model.edges, pmf, produced)
    assert left.sum(axis=1) == pytest.approx(1.0)
    assert (dist.quantiles_tokens(edges, left, (0.001,))[:, 0] > produced).all()
    survival = 1 - dist.cdf(model.edges, pmf, produced)
    for t in (produced + 5, produced + 100):
        before = dist.cdf(model.edges, pmf, t) - (1 - survival)
        known = survival > 1e-6
        assert dist.cdf(edges, left, t)[known] == pytest.approx((before / survival.clip(1e-12))[known], abs=1e-5)


def test_a_limit_cuts_the_belief(model: LengthModel) -> None:
    for belief in predict(model, QUERIES, [100] * len(QUERIES)):
        assert belief.atoms_tokens[-1] <= 100
    for belief in predict(model, QUERIES):
        assert len(belief.atoms_tokens) == dist.ATOMS


@pytest.mark.parametrize("kind", ["histogram", "hashed"])
def test_a_trained_file_is_loaded_again(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "model.alm"
    recipe = TINY if kind == "hashed" else None
    done = train_to_file(kind, SAMPLES, split_samples(SAMPLES), path, recipe=recipe)
    found = load_model(str(path))
    assert found.name == kind
    assert found.sha256 == done.sha256
    assert done.size_bytes == path.stat().st_size
    assert found.pmf(QUERIES).sum(axis=1) == pytest.approx(1.0)


def test_a_file_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    path = tmp_path / "model.alm"
    with pytest.raises(artifact.ArtifactError, match="cannot be read"):
        load_model(str(path))
    artifact.save(path, "crystal_ball", {}, {})
    with pytest.raises(artifact.ArtifactError, match=r"model\.alm: holds a 'crystal_ball' model"):
        load_model(str(path))
    artifact.save(path, "histogram", {"keys": [["m", ""]]}, {})
    with pytest.raises(artifact.ArtifactError, match=r"model\.alm: histogram artefact"):
        load_model(str(path))
    artifact.save(path, "encoder", {"features_version": 0}, {})
    with pytest.raises(artifact.ArtifactError, match=r"model\.alm: .*train it anew"):
        load_model(str(path))
    with pytest.raises(artifact.ArtifactError, match="no length model 'hashd'; there are constant"):
        load_model("hashd")


@pytest.mark.parametrize(
    ("edges", "pmf", "complaint"),
    [
        ([1, 2, 3], [[np.nan, 1.0]], "not finite"),
        ([1, 2, 3], [[-1.0, 2.0]], "no distribution"),
        ([1, 2, 3], [[0.3, 0.3]], "no distribution"),
        ([5, 2, 3], [[0.5, 0.5]], "do not ascend"),
        ([0, 2, 3], [[0.5, 0.5]], "do not ascend"),
    ],
)
def test_a_file_that_was_made_up_is_tried_out_before_it_is_used(
    edges: list[int], pmf: list[list[float]], complaint: str
) -> None:
    arrays = {"edges": np.array(edges), "pmf": np.array(pmf)}
    with pytest.raises(artifact.ArtifactError, match=rf"x: .*{complaint}.*fetch it again"):
        from_artifact(artifact.Artifact(kind="histogram", meta={"keys": [["", ""]]}, arrays=arrays), "x")


@pytest.mark.parametrize("shape", ["none", "empty", "deeper"])
@pytest.mark.parametrize("name", tiny_hashed_arrays())
def test_arrays_of_any_other_shape_are_one_clear_error(name: str, shape: str) -> None:
    array = tiny_hashed_arrays()[name]
    other = {"none": np.array(1, array.dtype), "empty": np.zeros(0, array.dtype), "deeper": array[..., None]}[shape]
    meta = {"features_version": FEATURES_VERSION}
    from_artifact(artifact.Artifact(kind="hashed", meta=meta, arrays=tiny_hashed_arrays()), "x")
    with pytest.raises(artifact.ArtifactError, match=r"^x: "):
        from_artifact(artifact.Artifact(kind="hashed", meta=meta, arrays={**tiny_hashed_arrays(), name: other}), "x")


def test_a_broken_tokenizer_in_an_encoder_is_one_clear_error() -> None:
    pytest.importorskip("tokenizers")
    tiny = tiny_encoder_artifact()
    arrays = {**tiny.arrays, "tokenizer.json": np.frombuffer(b"{}", np.uint8)}
    with pytest.raises(artifact.ArtifactError, match=r"^x: its parts do not fit together"):
        from_artifact(artifact.Artifact(kind="encoder", meta=tiny.meta, arrays=arrays), "x")


def test_training_on_next_to_nothing_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.alm"
    few = SAMPLES[:12]
    with pytest.raises(TrainingError, match="at least 20 are needed"):
        train_to_file("histogram", few, split_samples(few), path)
    with pytest.raises(TrainingError, match="--encoder"):
        train_to_file("encoder", SAMPLES, split_samples(SAMPLES), path)
    with pytest.raises(TrainingError, match="epochs"):
        train_to_file("hashed", SAMPLES, split_samples(SAMPLES), path, recipe={"epochs": "many"})
    assert not path.exists()


def test_an_unknown_kind_of_artefact_is_named() -> None:
    with pytest.raises(artifact.ArtifactError, match="x: holds a 'tree' model"):
        from_artifact(artifact.Artifact(kind="tree", meta={}, arrays={}), "x")

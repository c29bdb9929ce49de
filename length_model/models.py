"""Length models found by name or file."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from length_model.artifact import SUFFIX, Artifact, ArtifactError, from_bytes, load
from length_model.baseline import ConstantModel, HistogramModel
from length_model.core.distribution import beliefs
from length_model.core.model import LengthModel
from length_model.core.query import LengthQuery
from simcore.types import LengthBelief

DEFAULT_MODEL = "hashed"
"""Shipped trained with the package."""


_READERS = {
    "histogram": ("length_model.baseline", "HistogramModel"),
    "hashed": ("length_model.hashed", "HashedModel"),
    "encoder": ("length_model.encoder", "EncoderModel"),
}
"""Kind of artefact -> who reads it; imported on demand, so that nobody loads what they do not use."""


def model_names() -> list[str]:
    """Names that `load_model` takes besides a path."""
    return ["constant", *shipped_names()]


def shipped_names() -> list[str]:
    """Artefacts that come with the package."""
    folder = resources.files("length_model") / "shipped"
    return sorted(p.name.removesuffix(SUFFIX) for p in folder.iterdir() if p.name.endswith(SUFFIX))


def load_model(name: str) -> LengthModel:
    """A model by name (`constant`, `histogram`, `hashed`) or by the path of an artefact.

    Raises ArtifactError, saying what to do, for an unknown name or a file that cannot be used.
    """
    if name == "constant":
        return ConstantModel()
    if name in shipped_names():
        origin = f"shipped model {name!r}"
        return read_model((resources.files("length_model") / "shipped" / f"{name}{SUFFIX}").read_bytes(), origin)
    path = Path(name)
    if path.suffix == SUFFIX or path.exists():
        return from_artifact(load(path), str(path))
    raise ArtifactError(
        f"no length model {name!r}; there are {', '.join(model_names())}, or give the path of a {SUFFIX} file"
    )


def read_model(data: bytes, origin: str) -> LengthModel:
    return from_artifact(from_bytes(data, origin), origin)


def from_artifact(artifact: Artifact, origin: str) -> LengthModel:
    """Raises ArtifactError for a kind that this version does not know, arrays that do not fit together, or a model that
    answers a trial prompt with something else than a distribution."""
    if artifact.kind not in _READERS:
        raise ArtifactError(f"{origin}: holds a {artifact.kind!r} model, this version reads {', '.join(_READERS)}")
    module, name = _READERS[artifact.kind]
    reader: Any = getattr(importlib.import_module(module), name)
    try:
        model: LengthModel = reader.from_artifact(artifact)
        _try_out(model)
    except ArtifactError as bad:
        raise ArtifactError(f"{origin}: {bad}") from None
    except Exception as bad:
        # Its hash is right, so somebody made it so: whatever it provokes, it must not reach a request.
        raise ArtifactError(
            f"{origin}: its parts do not fit together ({type(bad).__name__}: {bad}); train or fetch it again"
        ) from None
    return model


def _try_out(model: LengthModel) -> None:
    edges = model.edges
    if edges.ndim != 1 or len(edges) < 2 or edges[0] < 1 or (np.diff(edges) <= 0).any():
        raise ValueError("its buckets do not ascend")
    queries = [LengthQuery(prompt=""), LengthQuery(prompt="Write a short story about 3 rivers.")]
    with np.errstate(all="ignore"):
        pmf = model.pmf(queries)
    if pmf.shape != (len(queries), len(edges) - 1) or not np.isfinite(pmf).all():
        raise ValueError("its answer to a trial prompt is not finite or of another shape")
    if (pmf < -1e-9).any() or (np.abs(pmf.sum(axis=1) - 1) > 1e-6).any():
        raise ValueError("its answer to a trial prompt is no distribution")


def predict(
    model: LengthModel, queries: Sequence[LengthQuery], max_tokens: Sequence[int | None] | None = None
) -> list[LengthBelief]:
    """One belief per query, cut at its limit."""
    return beliefs(model.edges, model.pmf(queries), max_tokens) if queries else []


__all__ = [
    "DEFAULT_MODEL",
    "ConstantModel",
    "HistogramModel",
    "from_artifact",
    "load_model",
    "model_names",
    "predict",
    "read_model",
    "shipped_names",
]

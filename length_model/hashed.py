"""The small model: hashed n-grams and a few numbers to hazards, in numpy, a fraction of a millisecond per prompt.

A fastText-like bag of embeddings (Joulin et al., "Bag of Tricks for Efficient Text Classification", 2016) and the
numbers of `features.dense` go through one hidden layer to one logit per bucket; the bag also reaches the logits
directly. Shapes: D hash buckets, r embedding width, n numbers, h hidden units, K length buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from length_model.artifact import Artifact, ArtifactError
from length_model.core.distribution import Floats, Ints, pmf_from_hazards, remapped
from length_model.core.features import DENSE_FEATURES, FEATURES_VERSION, dense, ngrams
from length_model.core.query import LengthQuery

Weights = dict[str, NDArray[Any]]

_SHAPES: dict[str, tuple[str, ...]] = {
    "embedding": ("D", "r"),
    "embedding.scale": ("r",),
    "mean": ("n",),
    "spread": ("n",),
    "hidden.weight": ("n+r", "h"),
    "hidden.bias": ("h",),
    "out.weight": ("h+r", "K"),
    "out.bias": ("K",),
}


class HashedModel:
    """Immutable; safe to call from any thread."""

    name = "hashed"

    def __init__(self, edges: Ints, weights: Weights, knots: Floats, *, sha256: str = "") -> None:
        """`weights` as `_SHAPES` says, as `quantised` makes them: the embedding stays in 8 bits, where it fits a
        processor's cache. `knots` [m + 1] recalibrate the cumulated probability."""
        self.edges = edges
        self.sha256 = sha256
        self._weights = weights
        self._knots = knots
        self._buckets = weights["embedding"].shape[0]

    def pmf(self, queries: Sequence[LengthQuery]) -> Floats:
        if not queries:
            return np.zeros((0, len(self.edges) - 1))
        numbers = np.stack([dense(q) for q in queries])
        table, scale = self._weights["embedding"], self._weights["embedding.scale"]
        # A product with equal weights is the quickest way to add rows up.
        bags = np.stack(
            [
                np.full(len(ids), len(ids) ** -0.5, np.float32) @ table.take(ids, axis=0).astype(np.float32)
                for ids in self._ngrams(queries)
            ]
        )
        bags *= scale
        return remapped(self.raw_pmf(numbers, bags), self._knots)

    def _ngrams(self, queries: Sequence[LengthQuery]) -> list[NDArray[np.int32]]:
        return [ngrams(q, self._buckets) for q in queries]

    def raw_pmf(self, numbers: NDArray[np.float32], bags: NDArray[np.float32]) -> Floats:
        """Before recalibration. numbers [b, n], bags [b, r]; returns [b, K]."""
        w = self._weights
        joined = np.concatenate([(numbers - w["mean"]) / w["spread"], bags], axis=1)
        hidden = silu(joined @ w["hidden.weight"] + w["hidden.bias"])
        logits = np.concatenate([hidden, bags], axis=1) @ w["out.weight"] + w["out.bias"]
        return pmf_from_hazards(sigmoid(logits))

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> HashedModel:
        """Raises ArtifactError for other features than this version's, or arrays that do not fit together."""
        version = artifact.meta.get("features_version")
        if version != FEATURES_VERSION:
            raise ArtifactError(
                f"trained on features version {version}, this version has {FEATURES_VERSION}; train it anew "
                "(`astrolabe length train hashed`)"
            )
        try:
            arrays = artifact.arrays
            weights: Weights = {name: arrays[name].astype(np.float32) for name in _SHAPES if name != "embedding"}
            weights["embedding"] = arrays["embedding"].astype(np.int8)
            edges, knots = arrays["edges"].astype(np.int64), arrays["knots"].astype(np.float64)
        except (KeyError, ValueError) as bad:
            raise ArtifactError(f"hashed artefact lacks {bad}") from None
        _check_shapes(weights, len(edges) - 1)
        if knots.ndim != 1 or len(knots) < 2 or (np.diff(knots) < 0).any() or knots[0] != 0 or knots[-1] != 1:
            raise ArtifactError("hashed artefact: its recalibration does not ascend from 0 to 1")
        return cls(edges, weights, knots, sha256=artifact.sha256)


def quantised(weights: Weights) -> dict[str, NDArray[Any]]:
    """Arrays to store: the embedding in 8 bits with one scale per column, the rest as it is."""
    table = weights["embedding"]
    scale = np.maximum(np.abs(table).max(axis=0), 1e-8) / 127.0
    stored: dict[str, NDArray[Any]] = {k: v.astype(np.float32) for k, v in weights.items() if k != "embedding"}
    stored["embedding"] = np.clip(np.round(table / scale), -127, 127).astype(np.int8)
    stored["embedding.scale"] = scale.astype(np.float32)
    return stored


def _check_shapes(weights: Weights, buckets: int) -> None:
    r, h = weights["embedding"].shape[-1], weights["hidden.bias"].shape[-1]
    n = len(DENSE_FEATURES)
    sizes = {"D": len(weights["embedding"]), "r": r, "n": n, "h": h, "K": buckets, "n+r": n + r, "h+r": h + r}
    for name, letters in _SHAPES.items():
        wanted = tuple(sizes[letter] for letter in letters)
        if weights[name].shape != wanted:
            raise ArtifactError(f"hashed artefact: array {name!r} has shape {weights[name].shape}, expected {wanted}")


def silu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(x * sigmoid(x), dtype=np.float32)


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(-x, -40.0, 40.0))))

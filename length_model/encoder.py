"""A fine-tuned BERT-like encoder at inference, in numpy: no torch, no transformers, only `tokenizers`.

What it says is mixed with what a `hashed` model says, which comes in the same file: a linear opinion pool (Stone, "The
opinion pool", 1961). The two err differently, words by rote here and their sense there, and the mixture is better than
either.

Post-norm transformer as in Devlin et al., "BERT" (2018); RoBERTa differs in where positions begin. The rows of a batch
are laid end to end, so nothing is spent on padding; attention runs row by row. Shapes: T tokens of a row, S of all
rows, d width, H heads.

By hand in numpy for the sake of memory: a gateway may have 250 MB, of which importing torch (2.13, for CPUs) alone
takes 196 MiB; this module and `tokenizers` take 11 MiB.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from length_model.artifact import Artifact, ArtifactError
from length_model.core.distribution import Floats, Ints, pmf_from_hazards, remapped
from length_model.core.encoder_input import FastTokenizer, InputSizes, SpecialIds, token_ids
from length_model.core.features import FEATURES_VERSION, dense
from length_model.core.query import LengthQuery
from length_model.hashed import HashedModel

FloatArray = NDArray[np.float32]

TOKENS_PER_BATCH = 1024
"""Rows beyond this many tokens go into a further matrix product: more would not be faster, only larger."""

HASHED = "hashed."
"""Prefix of the arrays that belong to the hashed model in the file."""

_GELU = math.sqrt(2 / math.pi)


class EncoderModel:
    """Immutable; safe to call from any thread."""

    name = "encoder"

    def __init__(self, artifact: Artifact, tokenizer: FastTokenizer) -> None:
        """Raises KeyError or ValueError when the artefact lacks something."""
        meta, arrays = artifact.meta, artifact.arrays
        self.sha256 = artifact.sha256
        self.edges: Ints = arrays["edges"].astype(np.int64)
        self._knots: Floats = arrays["knots"].astype(np.float64)
        self._tokenizer = tokenizer
        self._special = SpecialIds(**{k: int(v) for k, v in meta["special"].items()})
        self._sizes = InputSizes(**meta["input"])
        self._heads, self._eps = int(meta["heads"]), float(meta["layer_norm_eps"])
        self._first_position = int(meta["pad_position"]) + 1
        self._hashed, self._share = hashed_part(arrays), float(meta["hashed_share"])
        own = {name: array for name, array in arrays.items() if not name.startswith(HASHED)}
        w = {name: array.astype(np.float32) for name, array in own.items() if name not in ("edges", "knots")}
        self._words = w["body.embeddings.word_embeddings.weight"]
        self._positions = w["body.embeddings.position_embeddings.weight"]
        self._type = w["body.embeddings.token_type_embeddings.weight"][0]
        self._norm = (w["body.embeddings.LayerNorm.weight"], w["body.embeddings.LayerNorm.bias"])
        self._layers = [_Layer(w, f"body.encoder.layer.{i}.") for i in range(int(meta["layers"]))]
        self._mean, self._spread = w["dense.mean"], w["dense.spread"]
        self._hidden = (np.ascontiguousarray(w["hidden.weight"].T), w["hidden.bias"])
        self._out = (np.ascontiguousarray(w["out.weight"].T), w["out.bias"])
        if self._out[1].shape != (len(self.edges) - 1,):
            raise ValueError("its output does not fit its buckets")

    def pmf(self, queries: Sequence[LengthQuery]) -> Floats:
        if not queries:
            return np.zeros((0, len(self.edges) - 1))
        mixed = (1 - self._share) * self.own_pmf(queries) + self._share * self._hashed.pmf(queries)
        return remapped(mixed, self._knots)

    def own_pmf(self, queries: Sequence[LengthQuery]) -> Floats:
        """[n, K]: the encoder alone, before mixing and recalibration."""
        rows = [token_ids(self._tokenizer, self._special, q, self._sizes) for q in queries]
        pooled = np.empty((len(rows), self._words.shape[1]), np.float32)
        for chosen in _packed([len(r) for r in rows]):
            pooled[chosen] = self._pooled([rows[i] for i in chosen])
        numbers = (np.stack([dense(q) for q in queries]) - self._mean) / self._spread
        joined = np.concatenate([pooled, numbers], axis=1)
        logits = _gelu(joined @ self._hidden[0] + self._hidden[1]) @ self._out[0] + self._out[1]
        hazards = 1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float64), -40, 40)))
        return pmf_from_hazards(hazards)

    def _pooled(self, rows: list[list[int]]) -> FloatArray:
        """[rows, d]: mean of each row's final token states."""
        lengths = [len(r) for r in rows]
        ends = np.cumsum(lengths)
        starts = ends - lengths
        flat = np.concatenate([np.asarray(r) for r in rows])
        positions = np.concatenate([np.arange(n) for n in lengths]) + self._first_position
        x = _layer_norm(self._words[flat] + self._positions[positions] + self._type, self._norm, self._eps)
        spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
        for layer in self._layers:
            x = layer.forward(x, spans, self._heads, self._eps)
        sums: FloatArray = np.add.reduceat(x, starts.astype(np.int64), axis=0)
        return sums / np.asarray(lengths, np.float32)[:, None]

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> EncoderModel:
        """Raises ArtifactError when the package `tokenizers` is missing or the artefact is of another version."""
        if artifact.meta.get("features_version") != FEATURES_VERSION:
            raise ArtifactError(
                f"trained on features version {artifact.meta.get('features_version')}, this version has "
                f"{FEATURES_VERSION}; train it anew (`astrolabe length train encoder`)"
            )
        try:
            tokenizers = importlib.import_module("tokenizers")
        except ModuleNotFoundError:
            raise ArtifactError("an encoder needs the package tokenizers: `pip install tokenizers`") from None
        try:
            tokenizer = tokenizers.Tokenizer.from_str(artifact.arrays["tokenizer.json"].tobytes().decode())
            return cls(artifact, tokenizer)
        except ArtifactError:
            raise
        except (KeyError, ValueError, TypeError, IndexError) as bad:
            raise ArtifactError(f"encoder artefact does not fit together: {bad}") from None


def hashed_part(arrays: Mapping[str, NDArray[Any]]) -> HashedModel:
    """The hashed model among an encoder's arrays. Raises ArtifactError."""
    own = {name.removeprefix(HASHED): array for name, array in arrays.items() if name.startswith(HASHED)}
    return HashedModel.from_artifact(Artifact(kind="hashed", meta={"features_version": FEATURES_VERSION}, arrays=own))


class _Layer:
    def __init__(self, w: dict[str, FloatArray], prefix: str) -> None:
        def linear(name: str) -> tuple[FloatArray, FloatArray]:
            return np.ascontiguousarray(w[f"{prefix}{name}.weight"].T), w[f"{prefix}{name}.bias"]

        def norm(name: str) -> tuple[FloatArray, FloatArray]:
            return w[f"{prefix}{name}.LayerNorm.weight"], w[f"{prefix}{name}.LayerNorm.bias"]

        parts = [linear(f"attention.self.{name}") for name in ("query", "key", "value")]
        self.qkv = np.concatenate([p[0] for p in parts], axis=1), np.concatenate([p[1] for p in parts])
        self.attended, self.attended_norm = linear("attention.output.dense"), norm("attention.output")
        self.up, self.down = linear("intermediate.dense"), linear("output.dense")
        self.down_norm = norm("output")

    def forward(self, x: FloatArray, spans: list[tuple[int, int]], heads: int, eps: float) -> FloatArray:
        """x [S, d]; `spans`: where each row begins and ends."""
        d = x.shape[1]
        qkv = x @ self.qkv[0] + self.qkv[1]
        mixed = np.empty_like(x)
        for a, b in spans:
            q, k, v = qkv[a:b].reshape(b - a, 3, heads, d // heads).transpose(1, 2, 0, 3)
            scores = (q @ k.transpose(0, 2, 1)) * np.float32(1 / math.sqrt(d // heads))
            scores -= scores.max(axis=2, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=2, keepdims=True)
            mixed[a:b] = (scores @ v).transpose(1, 0, 2).reshape(b - a, d)
        x = _layer_norm(x + mixed @ self.attended[0] + self.attended[1], self.attended_norm, eps)
        up = _gelu(x @ self.up[0] + self.up[1])
        return _layer_norm(x + up @ self.down[0] + self.down[1], self.down_norm, eps)


def _layer_norm(x: FloatArray, weights: tuple[FloatArray, FloatArray], eps: float) -> FloatArray:
    centred = x - x.mean(axis=1, keepdims=True)
    centred *= 1.0 / np.sqrt(np.mean(centred * centred, axis=1, keepdims=True) + np.float32(eps))
    return np.asarray(centred * weights[0] + weights[1])


def _gelu(x: FloatArray) -> FloatArray:
    """The tanh form (Hendrycks and Gimpel, 2016), in which encoders are fine-tuned here."""
    inner = x * x
    inner *= np.float32(0.044715)
    inner += np.float32(1.0)
    inner *= x
    inner *= np.float32(_GELU)
    np.tanh(inner, out=inner)
    inner += np.float32(1.0)
    inner *= x
    inner *= np.float32(0.5)
    return inner


def _packed(lengths: Sequence[int]) -> list[list[int]]:
    """Row positions in groups of at most `TOKENS_PER_BATCH` tokens (or one row)."""
    groups: list[list[int]] = []
    room = 0
    for i, length in enumerate(lengths):
        if not groups or length > room:
            groups.append([])
            room = TOKENS_PER_BATCH
        groups[-1].append(i)
        room -= length
    return groups


def stored_arrays(arrays: dict[str, Any], tokenizer_json: str) -> dict[str, NDArray[Any]]:
    """Arrays of `artifact.save`: matrices in half precision, the tokenizer as bytes."""
    stored: dict[str, NDArray[Any]] = {
        name: array.astype(np.float16) if array.ndim == 2 else array.astype(np.float32)
        for name, array in arrays.items()
    }
    stored["tokenizer.json"] = np.frombuffer(tokenizer_json.encode(), dtype=np.uint8)
    return stored

"""Trains `hashed.HashedModel` in numpy: seconds, no other library.

Loss: negative log-likelihood of discrete-time survival, which takes cut answers as they are. Adam (Kingma and Ba,
2015) with decoupled decay; rows of the embedding are updated only when seen. n-grams are dropped at random while
training, so that no single rare one is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from length_model.baseline import kaplan_meier
from length_model.core.distribution import Floats, Ints, bucket_of, exposure, log_edges
from length_model.core.features import DENSE_FEATURES, FEATURES_VERSION, dense, ngrams
from length_model.core.query import LengthSample
from length_model.core.recalibration import IDENTITY, knots_from_pits, pits
from length_model.core.scoring import crps
from length_model.hashed import HashedModel, Weights, quantised, sigmoid

FloatArray = NDArray[np.float32]


class HashedRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train."""

    hash_buckets: int = 1 << 16
    width: int = 16
    hidden: int = 64
    epochs: int = 3
    batch: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-5
    dropout: float = 0.3
    ngram_dropout: float = 0.2
    seed: int = 0


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """What training gives: arrays and meta for `artifact.save`, and where it stands on the calibration side."""

    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any]
    calibration_crps: float


class _Table:
    """Samples as arrays: numbers [n, f], n-grams of row i at ids[offsets[i]:offsets[i + 1]]."""

    def __init__(self, samples: Sequence[LengthSample], edges: Ints, hash_buckets: int) -> None:
        self.numbers = np.stack([dense(s.query) for s in samples])
        bags = [ngrams(s.query, hash_buckets) for s in samples]
        self.offsets = np.concatenate([[0], np.cumsum([len(f) for f in bags])])
        self.ids = np.concatenate(bags)
        self.tokens = np.array([s.output_tokens for s in samples])
        self.bucket = bucket_of(edges, self.tokens)
        self.censored = np.array([s.censored for s in samples])
        self.exposure = exposure(edges, self.tokens, self.censored).astype(np.float32)

    def ngrams_of(self, rows: Ints) -> tuple[NDArray[np.int32], Ints]:
        """ids [m] and for each the position in `rows`."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        owner = np.repeat(np.arange(len(rows)), counts)
        first = np.repeat(self.offsets[rows] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        return self.ids[first + np.arange(len(owner))], owner


def train(
    training: Sequence[LengthSample],
    calibration: Sequence[LengthSample],
    recipe: HashedRecipe,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> Trained:
    """Raises ValueError when a side has no samples, FloatingPointError when training diverges."""
    if not training or not calibration:
        raise ValueError("no usable samples: training needs some on the train and on the calibration side")
    edges = log_edges()
    table = _Table(training, edges, recipe.hash_buckets)
    rng = np.random.default_rng(recipe.seed)
    weights = _initial(table, kaplan_meier(edges, training, np.full(len(edges) - 1, 0.02)), recipe, rng)
    adam = {name: _Adam(w.shape) for name, w in weights.items() if name not in ("mean", "spread")}
    x_all = ((table.numbers - weights["mean"]) / weights["spread"]).astype(np.float32)
    steps = recipe.epochs * -(-len(training) // recipe.batch)
    step = 0
    for _ in range(recipe.epochs):
        order = rng.permutation(len(training))
        for start in range(0, len(order), recipe.batch):
            rows = order[start : start + recipe.batch]
            rate = recipe.learning_rate * (1 - step / steps)
            _step(weights, adam, table, rows, x_all[rows], rate, recipe, rng)
            step += 1
            progress(step, steps)
    if not all(np.isfinite(w).all() for w in weights.values()):
        raise FloatingPointError("training diverged (weights are not finite); lower the learning rate")
    return _finish(weights, edges, calibration, recipe)


def _initial(table: _Table, hazards: Floats, recipe: HashedRecipe, rng: np.random.Generator) -> Weights:
    n, r, h, k = len(DENSE_FEATURES), recipe.width, recipe.hidden, len(hazards)
    clipped = np.clip(hazards, 1e-4, 1 - 1e-4)
    limit = 1 / np.sqrt(n + r)
    return {
        # Zero, so that an n-gram that was never seen says nothing.
        "embedding": np.zeros((recipe.hash_buckets, r), np.float32),
        "mean": table.numbers.mean(axis=0),
        "spread": table.numbers.std(axis=0) + np.float32(1e-6),
        "hidden.weight": rng.uniform(-limit, limit, (n + r, h)).astype(np.float32),
        "hidden.bias": np.zeros(h, np.float32),
        "out.weight": np.zeros((h + r, k), np.float32),
        "out.bias": np.log(clipped / (1 - clipped)).astype(np.float32),
    }


def _step(
    weights: Weights,
    adam: dict[str, _Adam],
    table: _Table,
    rows: Ints,
    x: FloatArray,
    rate: float,
    recipe: HashedRecipe,
    rng: np.random.Generator,
) -> None:
    ids, owner = table.ngrams_of(rows)
    keep = rng.random(len(ids)) >= recipe.ngram_dropout
    ids, owner = ids[keep], owner[keep]
    scale = (1 / np.sqrt(np.maximum(np.bincount(owner, minlength=len(rows)), 1))).astype(np.float32)
    bag = np.zeros((len(rows), recipe.width), np.float32)
    np.add.at(bag, owner, weights["embedding"][ids])
    bag *= scale[:, None]
    bag_mask = _mask(rng, bag.shape, recipe.dropout)
    e = bag * bag_mask
    joined = np.concatenate([x, e], axis=1)
    before = joined @ weights["hidden.weight"] + weights["hidden.bias"]
    gate = sigmoid(before).astype(np.float32)
    hidden_mask = _mask(rng, before.shape, recipe.dropout)
    hidden = before * gate * hidden_mask
    top = np.concatenate([hidden, e], axis=1)
    logits = top @ weights["out.weight"] + weights["out.bias"]

    g_logits = survival_gradient(logits, table.bucket[rows], table.censored[rows], table.exposure[rows]) / len(rows)
    g_top = g_logits @ weights["out.weight"].T
    g_before = g_top[:, : recipe.hidden] * hidden_mask * (gate * (1 + before * (1 - gate)))
    g_e = g_top[:, recipe.hidden :] + (g_before @ weights["hidden.weight"].T)[:, x.shape[1] :]
    g_bag = g_e * bag_mask * scale[:, None]

    seen, position = np.unique(ids.astype(np.int64), return_inverse=True)
    g_rows = np.zeros((len(seen), recipe.width), np.float32)
    np.add.at(g_rows, position, g_bag[owner])
    adam["embedding"].update(weights["embedding"], g_rows, rate, 0.0, at=seen)
    gradients = {
        "out.weight": top.T @ g_logits,
        "out.bias": g_logits.sum(axis=0),
        "hidden.weight": joined.T @ g_before,
        "hidden.bias": g_before.sum(axis=0),
    }
    for name, gradient in gradients.items():
        adam[name].update(weights[name], gradient, rate, recipe.weight_decay)


def survival_gradient(
    logits: FloatArray, bucket: Ints, censored: NDArray[np.bool_], exposure: FloatArray
) -> FloatArray:
    """d loss / d logits [n, K], loss = sum over rows of the negative log-likelihood. A cut answer survived its own
    bucket for the part `exposure` of it."""
    column = np.arange(logits.shape[1])[None, :]
    own = column == bucket[:, None]
    ended = own & ~censored[:, None]
    at_risk = (column < bucket[:, None]) + own * exposure[:, None]
    return np.asarray(sigmoid(logits) * at_risk - ended, dtype=np.float32)


def _mask(rng: np.random.Generator, shape: tuple[int, ...], dropout: float) -> FloatArray:
    return (rng.random(shape) >= dropout).astype(np.float32) / np.float32(1 - dropout)


class _Adam:
    """Moments of one array; rows that are never touched stay as they began."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.first = np.zeros(shape, np.float32)
        self.second = np.zeros(shape, np.float32)
        self.count = 0

    def update(
        self, weight: FloatArray, gradient: FloatArray, rate: float, decay: float, at: Ints | None = None
    ) -> None:
        self.count += 1
        where: Any = slice(None) if at is None else at
        self.first[where] = 0.9 * self.first[where] + 0.1 * gradient
        self.second[where] = 0.999 * self.second[where] + 0.001 * gradient**2
        first = self.first[where] / (1 - 0.9**self.count)
        second = self.second[where] / (1 - 0.999**self.count)
        weight[where] -= np.float32(rate) * (first / (np.sqrt(second) + 1e-8) + decay * weight[where])


def _finish(weights: Weights, edges: Ints, calibration: Sequence[LengthSample], recipe: HashedRecipe) -> Trained:
    """Quantises, then recalibrates what will really run on the calibration side."""
    stored = quantised(weights)
    queries = [s.query for s in calibration]
    tokens = np.array([s.output_tokens for s in calibration])
    censored = np.array([s.censored for s in calibration])
    raw = HashedModel(edges, stored, IDENTITY).pmf(queries)
    knots = knots_from_pits(pits(edges, raw, tokens, censored), censored)
    after = HashedModel(edges, stored, knots).pmf(queries)
    return Trained(
        arrays={**stored, "edges": edges, "knots": knots},
        meta={"features_version": FEATURES_VERSION, "recipe": msgspec.to_builtins(recipe)},
        calibration_crps=float(crps(edges, after[~censored], tokens[~censored]).mean()) if (~censored).any() else 0.0,
    )

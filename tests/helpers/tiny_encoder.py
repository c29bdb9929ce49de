"""A BERT of two layers with made-up weights, and a tokenizer of single letters: an encoder without any download."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from length_model.artifact import Artifact
from length_model.core.distribution import log_edges
from length_model.core.features import DENSE_FEATURES, FEATURES_VERSION
from length_model.encoder import HASHED
from length_model.hashed import quantised

VOCABULARY, WIDTH, HEADS, LAYERS, INNER, HIDDEN = 64, 8, 2, 2, 16, 6


class Letters:
    def __init__(self, ids: list[int]) -> None:
        self.ids = ids


class LetterTokenizer:
    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Letters:
        sequence.encode()  # as a real tokenizer, it takes no half surrogates
        return Letters([4 + ord(c) % (VOCABULARY - 4) for c in sequence])


def tiny_encoder_arrays(seed: int = 0) -> dict[str, NDArray[Any]]:
    """Names and shapes as training stores them."""
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    edges = log_edges()
    arrays: dict[str, NDArray[Any]] = {
        "body.embeddings.word_embeddings.weight": weight(VOCABULARY, WIDTH),
        "body.embeddings.position_embeddings.weight": weight(128, WIDTH),
        "body.embeddings.token_type_embeddings.weight": weight(2, WIDTH),
        "body.embeddings.LayerNorm.weight": np.ones(WIDTH, np.float32),
        "body.embeddings.LayerNorm.bias": weight(WIDTH),
        "hidden.weight": weight(HIDDEN, WIDTH + len(DENSE_FEATURES)),
        "hidden.bias": weight(HIDDEN),
        "out.weight": weight(len(edges) - 1, HIDDEN),
        "out.bias": np.full(len(edges) - 1, -2.5, np.float32),
        "dense.mean": np.zeros(len(DENSE_FEATURES), np.float32),
        "dense.spread": np.ones(len(DENSE_FEATURES), np.float32),
    }
    for i in range(LAYERS):
        prefix = f"body.encoder.layer.{i}."
        for name, shape in (
            ("attention.self.query", (WIDTH, WIDTH)),
            ("attention.self.key", (WIDTH, WIDTH)),
            ("attention.self.value", (WIDTH, WIDTH)),
            ("attention.output.dense", (WIDTH, WIDTH)),
            ("intermediate.dense", (INNER, WIDTH)),
            ("output.dense", (WIDTH, INNER)),
        ):
            arrays[f"{prefix}{name}.weight"] = weight(*shape)
            arrays[f"{prefix}{name}.bias"] = weight(shape[0])
        for name in ("attention.output", "output"):
            arrays[f"{prefix}{name}.LayerNorm.weight"] = np.ones(WIDTH, np.float32)
            arrays[f"{prefix}{name}.LayerNorm.bias"] = weight(WIDTH)
    return arrays


def tiny_hashed_arrays(seed: int = 0) -> dict[str, NDArray[Any]]:
    """A hashed model of a few made-up weights, as it is stored."""
    rng = np.random.default_rng(seed)
    edges, n, r, h = log_edges(), len(DENSE_FEATURES), 3, 4
    shapes = {
        "embedding": (64, r),
        "mean": (n,),
        "spread": (n,),
        "hidden.weight": (n + r, h),
        "hidden.bias": (h,),
        "out.weight": (h + r, len(edges) - 1),
        "out.bias": (len(edges) - 1,),
    }
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    weights["spread"] = np.ones(n, np.float32)
    return {**quantised(weights), "edges": edges, "knots": np.linspace(0.0, 1.0, 21)}


def tiny_encoder_artifact(*, hashed_share: float = 0.0) -> Artifact:
    arrays = tiny_encoder_arrays()
    arrays |= {f"{HASHED}{name}": array for name, array in tiny_hashed_arrays().items()}
    arrays["edges"] = log_edges()
    arrays["knots"] = np.linspace(0.0, 1.0, 21)
    meta = {
        "architecture": "bert",
        "layers": LAYERS,
        "heads": HEADS,
        "width": WIDTH,
        "layer_norm_eps": 1e-12,
        "pad_position": -1,
        "special": {"begin": 1, "separator": 2, "pad": 0},
        "features_version": FEATURES_VERSION,
        "hashed_share": hashed_share,
        "input": {"prompt_head": 48, "prompt_tail": 24, "answer": 16, "question": 8},
    }
    return Artifact(kind="encoder", meta=meta, arrays=arrays)

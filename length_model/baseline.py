"""What is believed without reading the prompt: how long answers have been, per model and class of request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from length_model.artifact import Artifact, ArtifactError
from length_model.core.belief import DEFAULT_PRIOR
from length_model.core.distribution import Floats, Ints, bucket_of, exposure, log_edges, pmf_from_hazards
from length_model.core.query import Key, LengthQuery, LengthSample
from simcore.types import LengthBelief

ENOUGH_SAMPLES = 50
"""A model and class seen less often than this share the answer of the next wider group."""

PRIOR_WEIGHT = 2.0
"""How many samples the wider group's distribution counts for."""


class ConstantModel:
    """One distribution for every prompt: a belief's atoms, each spread over its bucket."""

    name = "constant"

    def __init__(self, belief: LengthBelief = DEFAULT_PRIOR) -> None:
        self.edges = log_edges()
        self.sha256 = ""
        buckets = bucket_of(self.edges, belief.atoms_tokens)
        smooth = np.bincount(buckets, minlength=len(self.edges) - 1).astype(np.float64)
        self._pmf = smooth / smooth.sum()

    def pmf(self, queries: Sequence[LengthQuery]) -> Floats:
        return np.tile(self._pmf, (len(queries), 1))


class HistogramModel:
    """The answers seen so far of the same model and class; wider groups stand in for what was seen too rarely."""

    name = "histogram"

    def __init__(self, edges: Ints, tables: dict[Key, Floats], *, sha256: str = "") -> None:
        """`tables` must hold ("", ""): everybody."""
        self.edges = edges
        self.sha256 = sha256
        self._tables = tables

    def pmf(self, queries: Sequence[LengthQuery]) -> Floats:
        rows = [self._of(q.model, q.request_class) for q in queries]
        return np.stack(rows) if rows else np.zeros((0, len(self.edges) - 1))

    def _of(self, model: str, request_class: str) -> Floats:
        for key in ((model, request_class), (model, ""), ("", request_class), ("", "")):
            hazards = self._tables.get(key)
            if hazards is not None:
                return hazards
        raise AssertionError("a histogram model always knows everybody")

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> HistogramModel:
        """Raises ArtifactError when a table is missing or of another shape."""
        try:
            edges = artifact.arrays["edges"].astype(np.int64)
            keys = [(str(model), str(request_class)) for model, request_class in artifact.meta["keys"]]
            rows = artifact.arrays["pmf"].astype(np.float64)
        except (KeyError, TypeError, ValueError) as bad:
            raise ArtifactError(f"histogram artefact lacks {bad}") from None
        if rows.shape != (len(keys), len(edges) - 1) or ("", "") not in keys:
            raise ArtifactError(f"histogram artefact: {len(keys)} groups do not fit a table of shape {rows.shape}")
        return cls(edges, dict(zip(keys, rows, strict=True)), sha256=artifact.sha256)

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Meta and arrays for `artifact.save`."""
        keys = sorted(self._tables)
        return {"keys": [list(k) for k in keys]}, {
            "edges": self.edges,
            "pmf": np.stack([self._tables[k] for k in keys]),
        }


def train_histogram(samples: Iterable[LengthSample]) -> HistogramModel:
    """Kaplan-Meier estimate per model and class (so that cut answers count for what they show).

    Raises ValueError without samples.
    """
    edges = log_edges()
    grouped: dict[Key, list[LengthSample]] = defaultdict(list)
    for sample in samples:
        model, request_class = sample.query.model, sample.query.request_class
        for key in {(model, request_class), (model, ""), ("", request_class), ("", "")}:
            grouped[key].append(sample)
    if not grouped:
        raise ValueError("no usable samples to learn from")
    everybody = kaplan_meier(edges, grouped[("", "")], np.full(len(edges) - 1, 0.02))
    tables = {
        key: everybody if key == ("", "") else kaplan_meier(edges, answers, everybody)
        for key, answers in grouped.items()
        if key == ("", "") or len(answers) >= ENOUGH_SAMPLES
    }
    return HistogramModel(edges, {key: pmf_from_hazards(hazards[None])[0] for key, hazards in tables.items()})


def kaplan_meier(edges: Ints, samples: Sequence[LengthSample], wider_hazards: Floats) -> Floats:
    """Hazards [K]: endings over answers that reached the bucket (Kaplan and Meier, 1958), `PRIOR_WEIGHT` samples of
    `wider_hazards` mixed in. A cut answer counts in its bucket for the part before the cut."""
    tokens = [s.output_tokens for s in samples]
    bucket = bucket_of(edges, tokens)
    ended = np.array([not s.censored for s in samples])
    missed = 1.0 - exposure(edges, tokens, ~ended)
    endings = np.bincount(bucket[ended], minlength=len(edges) - 1).astype(np.float64)
    reached = np.bincount(bucket, minlength=len(edges) - 1)[::-1].cumsum()[::-1].astype(np.float64)
    reached -= np.bincount(bucket, weights=missed, minlength=len(edges) - 1)
    return np.asarray((endings + PRIOR_WEIGHT * wider_hazards) / (reached + PRIOR_WEIGHT))

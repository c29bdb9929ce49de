"""A distribution of answer lengths over log-spaced buckets, and what follows from it. Pure.

Bucket k holds the lengths edges[k] <= t < edges[k + 1], all equally likely. Models give hazards: the chance that an
answer which reached bucket k ends in it (discrete-time survival: Singer and Willett, "It's about time", 1993).
Everything is exact for whole tokens; nothing is sampled. Arrays: edges int64 [K + 1], pmf float64 [n, K].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from length_model.core.belief import OVERDUE_TOKENS
from simcore.types import LengthBelief

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LONGEST_TOKENS = 32_768
"""Answers of this length or more share the last bucket."""

ATOMS = 20
"""Equally likely values in the beliefs made here: quantiles 2.5 %, 7.5 %, ... 97.5 %."""

MIDPOINTS: Floats = (np.arange(ATOMS) + 0.5) / ATOMS


def log_edges(per_octave: int = 5, longest_tokens: int = LONGEST_TOKENS) -> Ints:
    """Edges 1, 2, ... 8, then `per_octave` buckets per doubling up to `longest_tokens`: 67 buckets by default."""
    steps = int(np.ceil(per_octave * np.log2(longest_tokens / 8)))
    geometric = np.round(8 * 2.0 ** (np.arange(steps + 1) / per_octave)).astype(np.int64)
    return np.unique(np.concatenate([np.arange(1, 8), np.minimum(geometric, longest_tokens)]))


def bucket_of(edges: Ints, tokens: ArrayLike) -> Ints:
    """The bucket of each length; lengths beyond the edges belong to the first and last."""
    bucket = np.searchsorted(edges, np.asarray(tokens), side="right") - 1
    return np.clip(bucket, 0, len(edges) - 2)


def exposure(edges: Ints, tokens: ArrayLike, censored: ArrayLike) -> Floats:
    """[n]: the part of its own bucket in which each answer could have been seen to end: all of it for a finished one,
    the tokens before the cut for a cut one. Leaving cut answers out of their bucket would make everybody end there."""
    t = np.clip(np.asarray(tokens), edges[0], edges[-1] - 1)
    bucket = bucket_of(edges, t)
    return np.where(np.asarray(censored), (t - edges[bucket]) / np.diff(edges)[bucket], 1.0)


def pmf_from_hazards(hazards: Floats) -> Floats:
    """Probability of each bucket. The last hazard counts as 1, so every row sums to one."""
    h = np.clip(np.asarray(hazards, dtype=np.float64), 0.0, 1.0)
    reach = np.cumprod(1.0 - h[..., :-1], axis=-1)
    pmf = np.empty_like(h)
    pmf[..., 0] = h[..., 0]
    pmf[..., 1:-1] = reach[..., :-1] * h[..., 1:-1]
    pmf[..., -1] = reach[..., -1]
    return pmf


def mean_tokens(edges: Ints, pmf: Floats) -> Floats:
    """Mean length of each row, [n]."""
    return np.asarray(pmf @ ((edges[:-1] + edges[1:] - 1) / 2.0))


def cdf(edges: Ints, pmf: Floats, tokens: ArrayLike) -> Floats:
    """P(length <= tokens), one value per row; `tokens` a number or [n]."""
    t = np.broadcast_to(np.asarray(tokens, dtype=np.float64), (pmf.shape[0],))
    share = np.clip((t[:, None] + 1 - edges[:-1]) / np.diff(edges), 0.0, 1.0)
    return np.asarray(np.clip((pmf * share).sum(axis=1), 0.0, 1.0))


def quantiles_tokens(edges: Ints, pmf: Floats, levels: ArrayLike) -> Ints:
    """[n, len(levels)]: the smallest whole length whose cumulated probability reaches each level."""
    # The tolerances keep a level that a bucket's end meets exactly from sliding into the next bucket.
    wanted = np.atleast_1d(np.asarray(levels, dtype=np.float64)) - 1e-12
    upto = np.zeros((len(pmf), len(edges)))
    np.cumsum(pmf, axis=1, out=upto[:, 1:])
    upto /= upto[:, -1:]
    # The cumulated probability at edges[k] - 1 is upto[k], and between two of them it is a straight line.
    ends = edges - 1
    lengths = np.array([np.interp(wanted, row, ends) for row in upto]).reshape(len(pmf), len(wanted))
    return np.asarray(np.maximum(np.ceil(lengths - 1e-9), edges[0]), dtype=np.int64)


def given_produced(edges: Ints, pmf: Floats, produced_tokens: int) -> tuple[Ints, Floats]:
    """The distribution of the total length once `produced_tokens` have come and the answer goes on.

    New edges and pmf. A row with nothing left is certain to end `OVERDUE_TOKENS` later.
    """
    if produced_tokens < edges[0]:
        return edges, pmf
    width = np.diff(edges)
    left = pmf * np.clip((edges[1:] - 1 - produced_tokens) / width, 0.0, 1.0)
    keep = edges[1:] - 1 > produced_tokens
    overdue = produced_tokens + OVERDUE_TOKENS
    if not keep.any():
        return np.array([overdue, overdue + 1]), np.ones((pmf.shape[0], 1))
    new_edges = np.maximum(np.concatenate([edges[:-1][keep], edges[-1:]]), produced_tokens + 1)
    left = left[:, keep]
    total = left.sum(axis=1, keepdims=True)
    dead = total[:, 0] <= 0
    if dead.any():
        left[dead] = 0.0
        left[dead, bucket_of(new_edges, overdue)] = 1.0
        total[dead] = 1.0
    return new_edges, left / total


def truncated(edges: Ints, pmf: Floats, max_tokens: int) -> tuple[Ints, Floats]:
    """The distribution under a limit: everything above `max_tokens` (at least 1) becomes `max_tokens`."""
    limit = max(1, max_tokens)
    if edges[-1] - 1 <= limit:
        return edges, pmf
    if limit <= edges[0]:
        return np.array([limit, limit + 1]), np.ones((pmf.shape[0], 1))
    keep = edges[:-1] < limit
    new_edges = np.concatenate([edges[:-1][keep], [limit, limit + 1]])
    share = np.clip((limit - edges[:-1][keep]) / np.diff(edges)[keep], 0.0, 1.0)
    kept = pmf[:, keep] * share
    return new_edges, np.concatenate([kept, np.maximum(0.0, 1.0 - kept.sum(axis=1, keepdims=True))], axis=1)


def beliefs(edges: Ints, pmf: Floats, max_tokens: Sequence[int | None] | None = None) -> list[LengthBelief]:
    """Rows as equally likely atoms, cut at each row's limit if there is one."""
    atoms = quantiles_tokens(edges, pmf, MIDPOINTS)
    if max_tokens is not None:
        limits = [atoms[i, -1] if limit is None else max(1, limit) for i, limit in enumerate(max_tokens)]
        atoms = np.minimum(atoms, np.array(limits, dtype=np.int64).reshape(-1, 1))
    return [LengthBelief(tuple(row)) for row in atoms.tolist()]


def remapped(pmf: Floats, knots: Floats) -> Floats:
    """The distribution whose cumulated probability is G(F(t)), G linear between `knots`.

    knots: [m + 1], ascending from 0 to 1: values of G at 0, 1/m, ... 1. Applied at bucket ends, where it keeps order
    and total.
    """
    g = np.cumsum(pmf, axis=1)
    g[:, -1] = 1.0
    g = np.interp(g, np.linspace(0.0, 1.0, len(knots)), knots)
    g[:, 1:] -= g[:, :-1].copy()
    return g

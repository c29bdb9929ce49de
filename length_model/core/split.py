"""Which samples train, which calibrate and which judge: no conversation, and no near-copy of one, on two sides. Pure.

Conversations are joined when they share a prompt: one whose words are the same, or whose sets of word triples have an
estimated Jaccard index of `NEAR` or more (MinHash with banding: Broder, "On the resemblance and containment of
documents", 1997). Very short prompts ("continue", "thanks") recur in unrelated conversations and join only where they
open one.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from length_model.core.query import LengthSample

Side = Literal["train", "calibration", "test"]
SIDES: tuple[Side, ...] = get_args(Side)

NEAR = 0.7
"""Estimated Jaccard index from which two prompts count as copies of each other."""

LONG_ENOUGH_CHARS = 40
"""Prompts of this many characters join conversations wherever they occur."""

_PERMUTATIONS = 32
_ROWS_PER_BAND = 4
_WORDS = re.compile(r"\w+")
_MERSENNE = np.uint64((1 << 61) - 1)


class SplitManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The split, written down."""

    seed: int
    fractions: dict[str, float]
    near_jaccard: float
    counts: dict[str, int]
    """Samples per side."""
    groups: dict[str, int]
    """Conversations per side."""
    joined_groups: int
    """Conversations that share a cluster with at least one other."""
    side_of_group: dict[str, Side]
    samples_sha256: str = ""
    """Of the sample file the split belongs to."""


def normalised(text: str) -> str:
    """Lower-case words joined by single blanks: what decides whether two prompts are the same."""
    return " ".join(_WORDS.findall(text.lower()))


def split_samples(
    samples: Sequence[LengthSample],
    *,
    seed: int = 0,
    calibration: float = 0.1,
    test: float = 0.2,
) -> SplitManifest:
    """Assigns each group to a side. Raises ValueError for fractions that leave nothing to train on.

    Clusters are dealt in random order; one that holds more than 2 % of all samples goes to `train`, so that no single
    template dominates a judgement.
    """
    if not (0 <= calibration < 1 and 0 < test < 1 and calibration + test < 1):
        raise ValueError(f"fractions must be >= 0 and sum to less than 1, got calibration={calibration} test={test}")
    cluster_of = _clusters(samples)
    size: dict[int, int] = defaultdict(int)
    members: dict[int, set[str]] = defaultdict(set)
    for sample in samples:
        size[cluster_of[sample.group]] += 1
        members[cluster_of[sample.group]].add(sample.group)
    order = sorted(members, key=lambda c: min(members[c]))
    np.random.default_rng(seed).shuffle(order)
    wanted: dict[Side, float] = {"test": test * len(samples), "calibration": calibration * len(samples)}
    counts: dict[Side, int] = dict.fromkeys(SIDES, 0)
    side_of_group: dict[str, Side] = {}
    for cluster in order:
        side: Side = "train"
        if size[cluster] <= max(1, 0.02 * len(samples)):
            side = next((s for s, limit in wanted.items() if counts[s] + size[cluster] <= limit), "train")
        counts[side] += size[cluster]
        side_of_group.update(dict.fromkeys(sorted(members[cluster]), side))
    return SplitManifest(
        seed=seed,
        fractions={"train": 1 - calibration - test, "calibration": calibration, "test": test},
        near_jaccard=NEAR,
        counts={side: counts[side] for side in SIDES},
        groups={side: sum(s == side for s in side_of_group.values()) for side in SIDES},
        joined_groups=sum(len(m) for m in members.values() if len(m) > 1),
        side_of_group=side_of_group,
    )


def samples_of(samples: Iterable[LengthSample], manifest: SplitManifest, side: Side) -> list[LengthSample]:
    """Raises ValueError for a sample whose group the manifest does not know."""
    chosen = []
    for sample in samples:
        where = manifest.side_of_group.get(sample.group)
        if where is None:
            raise ValueError(f"sample {sample.sample_id}: the split does not know its conversation {sample.group!r}")
        if where == side:
            chosen.append(sample)
    return chosen


def _clusters(samples: Sequence[LengthSample]) -> dict[str, int]:
    parent: dict[str, str] = {s.group: s.group for s in samples}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    def join(a: str, b: str) -> None:
        a, b = root(a), root(b)
        if a != b:
            parent[max(a, b)] = min(a, b)

    first_with: dict[bytes, str] = {}
    long_texts: dict[str, str] = {}
    for sample in samples:
        text = normalised(sample.query.prompt)
        if len(text) < LONG_ENOUGH_CHARS and sample.query.history:
            continue
        key = hashlib.blake2b(text.encode(), digest_size=12).digest()
        join(sample.group, first_with.setdefault(key, sample.group))
        if len(text) >= LONG_ENOUGH_CHARS:
            long_texts.setdefault(text, sample.group)
    for a, b in near_pairs(long_texts):
        join(long_texts[a], long_texts[b])
    numbers: dict[str, int] = {}
    return {group: numbers.setdefault(root(group), len(numbers)) for group in sorted(parent)}


def near_pairs(texts: Mapping[str, object] | Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of normalised texts whose estimated Jaccard index over word triples reaches `NEAR` (each new text is
    compared with the first of its band's bucket only: enough to chain copies together)."""
    names = list(texts)
    if not names:
        return []
    rng = np.random.default_rng(20_240_601)
    mix = rng.integers(1, 1 << 61, size=(_PERMUTATIONS, 2), dtype=np.uint64)
    signatures = np.stack([_signature(name, mix) for name in names])
    pairs: set[tuple[str, str]] = set()
    for band in range(_PERMUTATIONS // _ROWS_PER_BAND):
        keys = signatures[:, band * _ROWS_PER_BAND : (band + 1) * _ROWS_PER_BAND]
        first: dict[bytes, int] = {}
        for i in range(len(names)):
            j = first.setdefault(keys[i].tobytes(), i)
            if j != i and float(np.mean(signatures[i] == signatures[j])) >= NEAR:
                pairs.add((names[j], names[i]))
    return sorted(pairs)


def _signature(text: str, mix: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = [zlib.crc32(w.encode()) for w in text[:4000].split()]
    hashed = np.array(words, dtype=np.uint64)
    if hashed.size >= 3:
        hashed = hashed[:-2] * np.uint64(0x9E3779B1) + hashed[1:-1] * np.uint64(0x85EBCA6B) + hashed[2:]
    elif hashed.size == 0:
        hashed = np.zeros(1, dtype=np.uint64)
    # Multiply-shift over 64 bits: wraps by design.
    spread = (mix[:, :1] | np.uint64(1)) * hashed[None, :] + mix[:, 1:]
    return np.asarray((spread >> np.uint64(3)).min(axis=1) % _MERSENNE, dtype=np.uint64)

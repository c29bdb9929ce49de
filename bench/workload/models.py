"""Which model each request asks for, where a fleet serves several. Pure."""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Mapping, Sequence

import msgspec

from bench.workload.item import WorkloadItem


def model_shares(said: str | Mapping[str, float], served: Sequence[str]) -> dict[str, float]:
    """Share of the requests per model, 1 in all; empty: all are for the only one.

    `said` is `NAME=SHARE,...` or the same as a table; shares need not sum up to 1. Raises ValueError: one cannot be
    read, nobody serves a model, or several are served and nothing is said.
    """
    shares = _read(said) if isinstance(said, str) else dict(said)
    if not shares:
        if len(served) > 1:
            example = ",".join(f"{name}={1 / len(served):.2g}" for name in served)
            raise ValueError(f"the nodes serve several models; say what share asks for which: models {example}")
        return {}
    for name, share in shares.items():
        if name not in served:
            near = difflib.get_close_matches(name, served, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"models: no group serves {name!r}; {hint}served are {', '.join(served)}")
        if not (math.isfinite(share) and share > 0):
            raise ValueError(f"models: the share of {name!r} is {share:g}; it must be above 0")
    return {name: share / sum(shares.values()) for name, share in shares.items()}


def with_models(items: Sequence[WorkloadItem], shares: Mapping[str, float], seed: int) -> list[WorkloadItem]:
    """The requests, each with a model drawn by its share."""
    if not shares:
        return list(items)
    drawn = random.Random(f"models {seed}").choices(list(shares), list(shares.values()), k=len(items))
    return [msgspec.structs.replace(item, model=model) for item, model in zip(items, drawn, strict=True)]


def _read(text: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in text.split(",") if text.strip() else []:
        name, _, share = (word.strip() for word in part.partition("="))
        try:
            value = float(share)
        except ValueError:
            raise ValueError(f"models: cannot read {part.strip()!r}; write NAME=SHARE,...") from None
        if not name or name in shares:
            raise ValueError(f"models: {name!r} is {'there twice' if name else 'no name'}; write NAME=SHARE,...")
        shares[name] = value
    return shares

"""Which requests are of a higher class than the others. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from bench.workload.item import WorkloadItem

HIGH = -1
"""The priority of the class above that of everybody."""


def with_high(items: Sequence[WorkloadItem], share: float, seed: int) -> list[WorkloadItem]:
    """The requests, each of class `HIGH` with probability `share`: the same ones whatever the rate."""
    if not share:
        return list(items)
    rng = random.Random(f"priorities {seed}")
    return [msgspec.structs.replace(item, priority=HIGH) if rng.random() < share else item for item in items]

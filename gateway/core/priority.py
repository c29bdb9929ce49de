"""Classes of requests: what a priority means, and what a second of each class counts for. Pure.

A priority is vLLM's: a whole number, smaller goes first, 0 is everybody's. `simcore.types.class_of` is its class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from simcore.types import class_of


class PriorityConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How far requests of a higher class are preferred."""

    weight: float = 16.0
    """What a second of a request counts for where nodes are chosen, against one of a request whose priority is larger
    by one; 1: all alike."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 1):
            raise ValueError(f"weight must be >= 1, got {self.weight:g}; 1 makes all classes alike")

    def weight_of(self, priority: int) -> float:
        """What a second of a request with this priority counts for, against one of priority 0."""
        return self.weight ** -class_of(priority)

    def weight_there(self, classes: Mapping[int, int], requests: int) -> float:
        """The mean over `requests` at a node, of which `classes` counts those of a class other than 0."""
        others = sum(classes.values())
        everybody = max(0, requests - others)
        total = everybody + sum(count * self.weight_of(priority) for priority, count in classes.items())
        return total / (everybody + others) if everybody + others else 1.0

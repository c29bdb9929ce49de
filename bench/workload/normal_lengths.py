"""Lengths around a mean, none outside bounds: how load generators draw them. Pure."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray


class NormalLengths(msgspec.Struct, frozen=True, kw_only=True):
    """A normal distribution of tokens; what falls outside the bounds is put on the nearer one."""

    mean_tokens: float
    deviation_tokens: float
    shortest_tokens: int
    longest_tokens: int

    def __post_init__(self) -> None:
        if not 1 <= self.shortest_tokens <= self.mean_tokens <= self.longest_tokens or self.deviation_tokens < 0:
            raise ValueError(
                f"lengths of {self.mean_tokens:g} tokens, give or take {self.deviation_tokens:g}, do not fit between "
                f"{self.shortest_tokens} and {self.longest_tokens}"
            )

    def draw_tokens(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """`count` lengths, whole tokens >= 1."""
        drawn = rng.normal(self.mean_tokens, self.deviation_tokens, count)
        return np.rint(np.clip(drawn, self.shortest_tokens, self.longest_tokens)).astype(np.int64)

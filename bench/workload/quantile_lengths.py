"""Lengths from the few numbers that papers print of them: mean, median, 99th percentile. Pure.

The quantile function is log-linear between knots: the shortest length, P50, P80, P99, the longest. P80 is not printed;
it is the one value that gives the printed mean.
"""

from __future__ import annotations

import itertools
import math

import msgspec
import numpy as np
from numpy.typing import NDArray

LONGEST_TOKENS = 6144
_FREE_SHARE = 0.80


class PrintedLengths(msgspec.Struct, frozen=True, kw_only=True):
    """A length distribution as a paper's table has it, in tokens."""

    mean_tokens: float
    p50_tokens: float
    p99_tokens: float
    shortest_tokens: float = 4.0
    longest_tokens: float = LONGEST_TOKENS

    def knots(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(shares, tokens) of the quantile function.

        Raises:
            ValueError: no P80 between P50 and P99 gives this mean.
        """
        low, high = self.p50_tokens, self.p99_tokens
        if not self._mean_with(low) <= self.mean_tokens <= self._mean_with(high):
            raise ValueError(
                f"no P80 between P50 {low:g} and P99 {high:g} gives a mean of {self.mean_tokens:g}: it must lie "
                f"between {self._mean_with(low):.0f} and {self._mean_with(high):.0f}"
            )
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._mean_with(middle) < self.mean_tokens else (low, middle)
        shares, tokens = zip(*self._points(low), strict=True)
        return np.array(shares), np.array(tokens)

    def draw_tokens(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """`count` lengths, whole tokens >= 1."""
        shares, tokens = self.knots()
        drawn = np.exp(np.interp(rng.random(count), shares, np.log(tokens)))
        return np.maximum(1, np.rint(drawn)).astype(np.int64)

    def _points(self, p80_tokens: float) -> list[tuple[float, float]]:
        return [
            (0.0, self.shortest_tokens),
            (0.5, self.p50_tokens),
            (_FREE_SHARE, p80_tokens),
            (0.99, self.p99_tokens),
            (1.0, self.longest_tokens),
        ]

    def _mean_with(self, p80_tokens: float) -> float:
        return sum(
            (share1 - share0) * _mean_between(tokens0, tokens1)
            for (share0, tokens0), (share1, tokens1) in itertools.pairwise(self._points(p80_tokens))
        )


def _mean_between(low: float, high: float) -> float:
    """Mean of exp(uniform between the logarithms)."""
    return low if math.isclose(low, high) else (high - low) / math.log(high / low)


LLUMNIX_PRINTED: dict[str, tuple[PrintedLengths, PrintedLengths]] = {
    "sharegpt": (
        PrintedLengths(mean_tokens=306, p50_tokens=74, p99_tokens=3388),
        PrintedLengths(mean_tokens=500, p50_tokens=487, p99_tokens=1234, longest_tokens=2048),
    ),
    "burstgpt": (
        PrintedLengths(mean_tokens=830, p50_tokens=582, p99_tokens=3549),
        PrintedLengths(mean_tokens=271, p50_tokens=243, p99_tokens=964, longest_tokens=2048),
    ),
}
"""(prompt, answer) of the real traces of Llumnix (OSDI '24, Table 1)."""

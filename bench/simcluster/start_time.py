"""How long nodes of a group take from the wish to the first request: fetch, load, compile, warm up. Pure."""

from __future__ import annotations

import math
import random
from typing import Literal

import msgspec

_P90 = 1.2815515655446004
_P99 = 2.3263478740408408
"""Of the standard normal distribution."""


class StartTime(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution of seconds: `fixed` (low), `uniform` (low to high), `lognormal` (median low, P90 high)."""

    kind: Literal["fixed", "uniform", "lognormal"] = "fixed"
    low_s: float = 60.0
    high_s: float = 60.0

    def __post_init__(self) -> None:
        good = math.isfinite(self.low_s) and math.isfinite(self.high_s) and 0 <= self.low_s <= self.high_s
        if not good or (self.kind == "lognormal" and self.low_s == 0):
            raise ValueError(f"a start takes {self.low_s:g} to {self.high_s:g} s: give seconds of 0 or more, in order")

    @property
    def median_s(self) -> float:
        """Half of the starts take no longer."""
        return (self.low_s + self.high_s) / 2 if self.kind == "uniform" else self.low_s

    @property
    def latest_s(self) -> float:
        """Hardly any start takes longer: of a log-normal one in a hundred."""
        return self.low_s * (self.high_s / self.low_s) ** (_P99 / _P90) if self.kind == "lognormal" else self.high_s

    def draw(self, rng: random.Random) -> float:
        """Seconds of one start."""
        if self.kind == "uniform":
            return rng.uniform(self.low_s, self.high_s)
        if self.kind == "lognormal":
            return self.low_s * math.exp(rng.gauss(0.0, 1.0) * math.log(self.high_s / self.low_s) / _P90)
        return self.low_s


def parse_start_time(text: str) -> StartTime:
    """`30` (always), `20:60` (uniform) or `40/90` (log-normal by P50 and P90). Raises ValueError."""
    kinds: tuple[tuple[str, Literal["uniform", "lognormal"]], ...] = ((":", "uniform"), ("/", "lognormal"))
    try:
        for sign, kind in kinds:
            if sign in text:
                low, high = (float(part) for part in text.split(sign))
                return StartTime(kind=kind, low_s=low, high_s=high)
        return StartTime(low_s=float(text), high_s=float(text))
    except ValueError as error:
        raise ValueError(
            f"cannot read the start-up time {text!r} ({error}); write seconds as S, as FROM:TO, or as P50/P90"
        ) from None

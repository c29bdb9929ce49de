"""Lengths by a bounded power law, as in Llumnix (OSDI'24, Table 1): many short ones, a few very long ones. Pure.

Density proportional to x^-(1+a) on [shortest, 6144] tokens (the paper's limit is 6k). The paper gives mean, P50 and P99
of each distribution and not its formula; `a` and `shortest` here are those that hit its mean and P50 within 1 %. P99
then is 1,865 (paper: 1,464) for short, 4,157 (4,208) for medium and 5,328 (5,166) for long.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.workload.item import DataRow
from bench.workload.rows import Parsed, plural

PowerLawName = Literal["short", "medium", "long"]
POWER_LAW_NAMES: tuple[PowerLawName, ...] = get_args(PowerLawName)
LONGEST_TOKENS = 6144
_ROWS = 20_000
_SEED = 11


class PowerLaw(msgspec.Struct, frozen=True, kw_only=True):
    """Bounded Pareto distribution of a length in tokens."""

    exponent: float
    """The tail falls as x^-exponent."""
    shortest_tokens: float
    longest_tokens: float = LONGEST_TOKENS

    def __post_init__(self) -> None:
        if not (self.exponent > 0 and 1 <= self.shortest_tokens < self.longest_tokens):
            raise ValueError(
                f"a power law needs an exponent above 0 and 1 <= shortest < longest, got {self.exponent:g}, "
                f"{self.shortest_tokens:g}, {self.longest_tokens:g}"
            )

    def quantile_tokens(self, share: NDArray[np.float64]) -> NDArray[np.float64]:
        """Inverse of the distribution function, for shares in [0, 1]; the shape of `share`."""
        a, low, high = self.exponent, self.shortest_tokens, self.longest_tokens
        return low * (1.0 - share * (1.0 - (low / high) ** a)) ** (-1.0 / a)

    @property
    def mean_tokens(self) -> float:
        """Expectation of the continuous law."""
        a, low, high = self.exponent, self.shortest_tokens, self.longest_tokens
        if abs(a - 1.0) < 1e-9:
            return float(np.log(high / low) * low / (1.0 - low / high))
        return low**a / (1.0 - (low / high) ** a) * a / (a - 1.0) * (low ** (1.0 - a) - high ** (1.0 - a))

    def draw_tokens(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """`count` lengths, whole tokens >= 1."""
        return np.maximum(1, np.rint(self.quantile_tokens(rng.random(count)))).astype(np.int64)


LLUMNIX: dict[PowerLawName, PowerLaw] = {
    "short": PowerLaw(exponent=0.90, shortest_tokens=17.7),
    "medium": PowerLaw(exponent=0.45, shortest_tokens=7.7),
    "long": PowerLaw(exponent=0.17, shortest_tokens=4.2),
}


def parse_shape(text: str) -> tuple[PowerLawName, PowerLawName]:
    """`short-long` or `S-L` as (prompt, answer). Raises ValueError."""
    found = []
    for part in text.split("-"):
        names = [name for name in POWER_LAW_NAMES if part and name.startswith(part.lower())]
        if not names:
            raise ValueError(f"unknown length `{part}` in `{text}`; there are {', '.join(POWER_LAW_NAMES)}")
        found.append(names[0])
    if len(found) != 2:
        raise ValueError(f"`{text}` must name two lengths, of prompts and of answers")
    return found[0], found[1]


def power_law_rows(shape: tuple[PowerLawName, PowerLawName]) -> Parsed:
    """20,000 rows, prompt and answer drawn independently; the same ones every time."""
    rng = np.random.default_rng(_SEED)
    prompts, outputs = (LLUMNIX[name].draw_tokens(rng, _ROWS).tolist() for name in shape)
    rows = [DataRow(prompt_tokens=p, output_tokens=o) for p, o in zip(prompts, outputs, strict=True)]
    notes = [f"power law: {shape[0]} prompts, {shape[1]} answers, {plural(len(rows), 'row')} drawn"]
    return Parsed(rows=rows, counts={"rows": len(rows), "kept": len(rows)}, notes=notes)

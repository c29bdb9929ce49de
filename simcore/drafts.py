"""Speculative decoding: how many drafts a request has for its next step, and how many of them turn out right.

No scheduler knows that before. A simulated engine draws it, so that equal states have equal futures: draws number 0, 1,
2, ... of a request are spread evenly over the odds (steps of the golden ratio, from a start of its own), so that what
it gets in a few draws is about what it would get in the mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from simcore.types import MOST_DRAFTS, EngineConfig

SHARES = 1 << 16
NEXT_DRAW = 40503
NEXT_REQUEST = 27145
"""Of `SHARES`: the golden ratio and the fraction of the root of two, to the next odd number."""


class DraftOdds(msgspec.Struct, frozen=True):
    """How drafts fare: each line (drafts, how many of them in a row are right, weight).

    Raises ValueError for lines that cannot be and where no line has weight.
    """

    lines: tuple[tuple[int, int, float], ...]

    def __post_init__(self) -> None:
        if not all(0 <= right <= drafts <= MOST_DRAFTS and weight >= 0.0 for drafts, right, weight in self.lines):
            raise ValueError(f"odds need 0 <= right <= drafts <= {MOST_DRAFTS} and weights >= 0, got {self.lines}")
        if not any(weight for _, _, weight in self.lines):
            raise ValueError("odds need a line with weight")

    @staticmethod
    def unknown(num_speculative_tokens: int) -> DraftOdds:
        """Nothing has been seen yet: as many drafts as there can be, any number of them right."""
        return DraftOdds(tuple((num_speculative_tokens, right, 1.0) for right in range(num_speculative_tokens + 1)))


def cells_of(config: EngineConfig, odds: DraftOdds | None) -> list[int]:
    """The odds as they are drawn from, one number per line with a share: (upper end of its share of `SHARES`, drafts,
    right), in bits from 16 and 8 on and below; ascending. None: nothing is known.

    An engine that plans ahead plans for all drafts, however many there will be.
    """
    most = config.num_speculative_tokens
    lines = (odds or DraftOdds.unknown(most)).lines
    total = sum(weight for _, _, weight in lines)
    ends = [round(SHARES * x / total) for x in itertools.accumulate(weight for _, _, weight in lines)]
    return [
        end << 16 | (most if config.async_scheduling else drafts) << 8 | right
        for begin, end, (drafts, right, _) in zip([0, *ends[:-1]], ends, lines, strict=True)
        if end > begin
    ]


def draw(cells: Sequence[int], order: int, drawn: int) -> tuple[int, int]:
    """(Drafts, how many of them are right) of a request that came as number `order`, its draw number `drawn`."""
    share = share_of(order, drawn)
    cell = next(cell for cell in cells if cell >> 16 > share)
    return cell >> 8 & 255, cell & 255


def share_of(order: int, drawn: int) -> int:
    """Where in 0..`SHARES` - 1 a draw falls."""
    return (order * NEXT_REQUEST + drawn * NEXT_DRAW) & SHARES - 1

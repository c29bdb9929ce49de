"""How drafts are drawn: in the shares of the odds, evenly, each request from a place of its own."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from simcore.drafts import SHARES, DraftOdds, cells_of, draw
from simcore.types import EngineConfig

ODDS = DraftOdds(((0, 0, 2.0), (2, 0, 1.0), (2, 2, 5.0), (1, 1, 0.0)))
CONFIG = EngineConfig(model="m", num_speculative_tokens=3)
CELLS = cells_of(CONFIG, ODDS)


@pytest.mark.parametrize("order", [0, 1, 7, 1000])
def test_draws_come_in_the_shares_of_the_odds_soon(order: int) -> None:
    counts = Counter(draw(CELLS, order, k) for k in range(40))
    assert counts.keys() == {(0, 0), (2, 0), (2, 2)}
    for line, share in (((0, 0), 10), ((2, 0), 5), ((2, 2), 25)):
        assert abs(counts[line] - share) <= 2


def test_requests_do_not_go_in_step() -> None:
    first = Counter(draw(CELLS, order, 0) for order in range(40))
    assert abs(first[2, 2] - 25) <= 2


def test_the_last_cell_ends_with_all_shares_and_lines_without_weight_have_none() -> None:
    assert len(CELLS) == 3
    assert CELLS[-1] >> 16 == SHARES
    assert sorted(CELLS) == CELLS


def test_of_nothing_known_any_number_is_right() -> None:
    cells = cells_of(CONFIG, None)
    counts = Counter(draw(cells, 0, k) for k in range(400))
    assert counts.keys() == {(3, right) for right in range(4)}
    assert max(counts.values()) - min(counts.values()) <= 3


def test_an_engine_that_plans_ahead_plans_for_all_drafts() -> None:
    ahead = cells_of(msgspec.structs.replace(CONFIG, async_scheduling=True), ODDS)
    counts = Counter(draw(ahead, 0, k) for k in range(40))
    assert counts.keys() == {(3, 0), (3, 2)}


@pytest.mark.parametrize(
    "lines", [(), ((2, 1, 0.0),), ((1, 2, 1.0),), ((2, -1, 1.0),), ((21, 0, 1.0),), ((1, 1, -1.0),)]
)
def test_odds_that_cannot_be_are_refused(lines: tuple[tuple[int, int, float], ...]) -> None:
    with pytest.raises(ValueError, match="odds need"):
        DraftOdds(lines)

"""Lengths drawn from printed numbers have those numbers."""

from __future__ import annotations

import numpy as np
import pytest

from bench.workload.quantile_lengths import LLUMNIX_PRINTED, PrintedLengths


@pytest.mark.parametrize("trace", sorted(LLUMNIX_PRINTED))
@pytest.mark.parametrize("side", [0, 1])
def test_mean_median_and_tail_are_those_printed(trace: str, side: int) -> None:
    printed = LLUMNIX_PRINTED[trace][side]
    drawn = printed.draw_tokens(np.random.default_rng(5), 200_000)
    assert drawn.mean() == pytest.approx(printed.mean_tokens, rel=0.02)
    assert np.percentile(drawn, 50) == pytest.approx(printed.p50_tokens, rel=0.03)
    assert np.percentile(drawn, 99) == pytest.approx(printed.p99_tokens, rel=0.03)
    assert drawn.min() >= 1
    assert drawn.max() <= printed.longest_tokens


def test_numbers_that_no_distribution_has_are_refused() -> None:
    with pytest.raises(ValueError, match="must lie between"):
        PrintedLengths(mean_tokens=5, p50_tokens=100, p99_tokens=1000).knots()

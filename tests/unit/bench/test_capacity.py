"""Capacity by interpolation, worked out by hand."""

from __future__ import annotations

import pytest

from bench.measure.capacity import capacities, crossing
from bench.measure.results import RequestResult, Run, summarise
from simcore.types import Outcome


def run(policy: str, rate: float, ttft_s: float, seed: int = 0) -> Run:
    row = RequestResult(
        request_id="r",
        arrival_s=0.0,
        node_id="n",
        outcome=Outcome.LENGTH,
        prompt_tokens=1,
        output_tokens=1,
        ttft_s=ttft_s,
        e2e_s=ttft_s,
    )
    return Run(policy=policy, rate_per_s=rate, seed=seed, summary=summarise([row]), router="r")


def test_the_limit_is_reached_between_two_points() -> None:
    assert crossing([(20, 1.0), (24, 1.0), (28, 5.0)], 3.0) == (26.0, False)


def test_only_the_first_crossing_counts() -> None:
    assert crossing([(20, 1.0), (22, 5.0), (24, 1.0), (26, 9.0)], 3.0) == (21.0, False)


def test_a_curve_that_never_gets_there_gives_a_bound() -> None:
    assert crossing([(20, 1.0), (24, 2.9)], 3.0) == (24, True)


def test_a_curve_that_starts_above_has_no_capacity() -> None:
    assert crossing([(20, 3.1), (24, 2.0)], 3.0) == (None, False)
    assert crossing([], 3.0) == (None, False)


def test_policies_are_judged_by_the_mean_over_their_seeds() -> None:
    runs = [
        run("a", 20, 1.0, seed=1),
        run("a", 20, 3.0, seed=2),
        run("a", 30, 4.0, seed=1),
        run("a", 30, 8.0, seed=2),
        run("b", 20, 0.5),
    ]
    found = capacities(runs, [3.0])
    # Means 2 and 6: the limit of 3 lies a quarter of the way from 20 to 30.
    assert [(c.policy, c.rate_per_s, c.is_bound) for c in found] == [("a", pytest.approx(22.5), False), ("b", 20, True)]

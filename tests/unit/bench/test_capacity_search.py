"""Bisection for the largest rate that keeps an objective."""

from __future__ import annotations

import msgspec
import pytest

from bench.run.capacity_search import SearchedLimit, combine, combine_nodes, parse_objective, search, search_nodes
from bench.run.spec import RunSpec
from tests.unit.bench.run_lines import line


def found(limit_rate: float, *, low: float = 1.0, step: float = 0.5) -> tuple[float, list[float]]:
    """What the search returns when the objective holds up to `limit_rate`, and the rates it asked for."""
    chain = search(
        RunSpec(), variant="v", values={}, seed=0, objective=parse_objective("ttft_p99_s<=3"), low=low, step=step
    )
    asked: list[float] = []
    task = next(chain)
    while True:
        rate = task.spec.rate_per_s
        assert rate is not None
        asked.append(rate)
        try:
            task = chain.send(line("v", rate, ttft_p99_s=1.0 if rate <= limit_rate else 9.0))
        except StopIteration as stop:
            return stop.value.value, asked


@pytest.mark.parametrize("limit", [1.0, 1.49, 3.7, 30.2, 31.5])
def test_the_last_rate_of_the_steps_that_keeps_the_objective(limit: float) -> None:
    rate, asked = found(limit)
    assert rate == int(limit / 0.5) * 0.5
    assert len(asked) == len(set(asked)), "no rate twice"
    assert len(asked) <= 20


def test_a_lowest_rate_that_fails_ends_the_search() -> None:
    assert found(0.5) == (0.0, [1.0])


def test_seeds_are_combined_into_an_interval() -> None:
    objective = parse_objective("goodput_share >= 0.99")
    assert str(objective) == "goodput_share >= 0.99"
    capacity = combine("v", objective, [SearchedLimit(30.0), SearchedLimit(31.0), SearchedLimit(32.0)])
    assert capacity.rate_per_s is not None
    assert capacity.rate_per_s.mean == 31.0
    assert combine("v", objective, [SearchedLimit(30.0), SearchedLimit(0.0)]).rate_per_s is None


@pytest.mark.parametrize(
    ("text", "says"), [("ttft", "cannot read"), ("ttft_p99_s<=x", "cannot read"), ("ttft_p9_s<=3", "did you mean")]
)
def test_objectives_that_are_none(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_objective(text)


def fewest(enough: int, *, first: int = 12) -> tuple[int, list[int]]:
    """What the search returns when `enough` nodes keep the objective, and the numbers it asked for."""
    base = RunSpec(nodes=first, rate_per_s=20.0)
    chain = search_nodes(base, variant="v", values={}, seed=0, objective=parse_objective("ttft_p99_s<=3"))
    asked: list[int] = []
    task = next(chain)
    while True:
        assert task.spec.rate_per_s == 20.0
        asked.append(task.spec.nodes)
        try:
            task = chain.send(line("v", 20.0, ttft_p99_s=1.0 if task.spec.nodes >= enough else 9.0))
        except StopIteration as stop:
            return int(stop.value.value), asked


@pytest.mark.parametrize("enough", [1, 2, 7, 11, 12, 13, 40, 511, 512])
@pytest.mark.parametrize("first", [1, 12, 600])
def test_the_fewest_nodes_that_keep_the_objective(enough: int, first: int) -> None:
    nodes, asked = fewest(enough, first=first)
    assert nodes == enough
    assert len(asked) == len(set(asked)), "no number twice"
    assert len(asked) <= 30


def test_a_rate_that_no_fleet_carries_ends_the_search() -> None:
    assert fewest(513)[0] == 0
    objective = parse_objective("ttft_p99_s<=3")
    assert combine_nodes("v", objective, [SearchedLimit(7), SearchedLimit(0)]).nodes is None
    assert combine_nodes("v", objective, [SearchedLimit(7), SearchedLimit(8)]).nodes == (7, 8)


@pytest.mark.parametrize("nodes", [False, True])
def test_a_run_that_ends_before_its_answers_do_finds_nothing(nodes: bool) -> None:
    base = RunSpec(requests=200, rate_per_s=20.0)
    objective = parse_objective("ttft_p99_s<=3")
    chain = (
        search_nodes(base, variant="v", values={}, seed=0, objective=objective)
        if nodes
        else search(base, variant="v", values={}, seed=0, objective=objective, low=4.0, step=0.25)
    )
    task, asked = next(chain), 1
    try:
        while True:
            kept = line("v", 1.0, ttft_p99_s=9.0 if task.spec.nodes < 3 else 1.0, e2e_p99_s=18.0)
            task = chain.send(msgspec.structs.replace(kept, spec=task.spec))
            asked += 1
    except StopIteration as stop:
        found = stop.value
    assert asked <= 6
    assert found.too_short
    if nodes:
        assert combine_nodes("v", objective, [SearchedLimit(4), found]).too_short
    else:
        assert 200 / found.value < 18.0
        capacity = combine("v", objective, [SearchedLimit(10.0), found])
        assert (capacity.rate_per_s, capacity.too_short_from) == (None, found.value)

"""The hypervolume of the autoscaling lab, with its edge cases."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from bench.measure.hypervolume import CostPoint, dominates, normalised_hypervolume, pareto_front, reference_of

REFERENCE = CostPoint(100.0, 1.0)


def test_one_point_has_its_rectangle() -> None:
    assert normalised_hypervolume([CostPoint(40.0, 0.25)], REFERENCE) == pytest.approx(0.6 * 0.75)


def test_no_point_has_nothing() -> None:
    assert normalised_hypervolume([], REFERENCE) == 0.0


def test_a_front_is_the_formula_of_the_lab() -> None:
    points = [CostPoint(20.0, 0.8), CostPoint(50.0, 0.4), CostPoint(90.0, 0.1)]
    by_hand = (1 - 0.9) * (1 - 0.1) + (0.5 - 0.2) * (1 - 0.8) + (0.9 - 0.5) * (1 - 0.4)
    assert normalised_hypervolume(points, REFERENCE) == pytest.approx(by_hand)


def test_order_does_not_matter() -> None:
    points = [CostPoint(20.0, 0.8), CostPoint(50.0, 0.4), CostPoint(90.0, 0.1)]
    values = {round(normalised_hypervolume(order, REFERENCE), 12) for order in itertools.permutations(points)}
    assert len(values) == 1


@pytest.mark.parametrize("beyond", [CostPoint(130.0, 0.1), CostPoint(30.0, 4.0), CostPoint(130.0, 4.0)])
def test_a_point_beyond_the_reference_adds_nothing(beyond: CostPoint) -> None:
    alone = normalised_hypervolume([CostPoint(40.0, 0.25)], REFERENCE)
    assert normalised_hypervolume([beyond], REFERENCE) == 0.0
    assert normalised_hypervolume([CostPoint(40.0, 0.25), beyond], REFERENCE) == pytest.approx(alone)


def test_of_equal_costs_the_quickest_counts() -> None:
    quick, slow = CostPoint(40.0, 0.25), CostPoint(40.0, 0.5)
    for points in ([quick, slow], [slow, quick], [quick, quick]):
        assert normalised_hypervolume(points, REFERENCE) == pytest.approx(0.6 * 0.75)


def test_it_is_the_share_of_random_places_that_are_dominated() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    points = [CostPoint(rng.uniform(0, 130), rng.uniform(0, 1.3)) for _ in range(12)]
    places = [(rng.uniform(0, 100), rng.random()) for _ in range(20_000)]
    hit = sum(any(p.cost <= x and p.latency_s <= y for p in points) for x, y in places) / len(places)
    # Five standard deviations of a share from 20,000 draws.
    allowed = 5 * 0.5 / math.sqrt(len(places))
    assert abs(normalised_hypervolume(points, REFERENCE) - hit) < allowed, f"seed {seed}"


def test_a_front_has_nobody_that_another_dominates() -> None:
    points = [CostPoint(3, 1), CostPoint(1, 3), CostPoint(2, 3), CostPoint(2, 2), CostPoint(3, 1)]
    assert pareto_front(points) == [CostPoint(1, 3), CostPoint(2, 2), CostPoint(3, 1)]
    assert dominates(CostPoint(1, 3), CostPoint(2, 3))
    assert not dominates(CostPoint(2, 2), CostPoint(2, 2))


def test_the_reference_is_beyond_the_worst_of_both() -> None:
    found = reference_of([CostPoint(10.0, 0.5), CostPoint(20.0, 0.1)])
    assert tuple(found) == pytest.approx((22.0, 0.55))
    with pytest.raises(ValueError, match="at least one point"):
        reference_of([])


@pytest.mark.parametrize("bad", [CostPoint(math.nan, 1.0), CostPoint(-1.0, 1.0), CostPoint(1.0, math.inf)])
def test_what_is_no_number_is_refused(bad: CostPoint) -> None:
    with pytest.raises(ValueError, match="no cost and latency"):
        normalised_hypervolume([bad], REFERENCE)
    with pytest.raises(ValueError, match="the reference is"):
        normalised_hypervolume([CostPoint(1.0, 1.0)], CostPoint(0.0, 1.0))

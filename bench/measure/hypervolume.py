"""Fronts of cost against latency, and how much of the plane one dominates. Pure.

The hypervolume is that of the Vidur autoscaling lab: costs and latencies as shares of a reference, no more than 1;
points sorted by cost; HV = (1 - c_n)(1 - l_n) + the sum over i < n of (c_(i+1) - c_i)(1 - l_i). 0 is nothing, 1 all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class CostPoint(NamedTuple):
    """What one setting of a scaler comes to; less of both is better."""

    cost: float
    latency_s: float


def reference_of(points: Iterable[CostPoint], factor: float = 1.1) -> CostPoint:
    """`factor` times the worst cost and the worst latency. Raises ValueError without a point."""
    known = list(points)
    if not known:
        raise ValueError("a reference needs at least one point")
    return CostPoint(factor * max(p.cost for p in known), factor * max(p.latency_s for p in known))


def pareto_front(points: Iterable[CostPoint]) -> list[CostPoint]:
    """Those that no other is as good as in both and better in one, cheapest first, each once."""
    front: list[CostPoint] = []
    for point in sorted(set(points)):
        if not front or point.latency_s < front[-1].latency_s:
            front.append(point)
    return front


def normalised_hypervolume(points: Sequence[CostPoint], reference: CostPoint) -> float:
    """Share of the rectangle between the origin and the reference that the points dominate.

    The lab's formula takes the points of a front: here the front of what is given, so that a dominated point changes
    nothing, a point beyond the reference in either adds nothing, and of equal costs the quickest counts. Raises
    ValueError for a reference that is not above 0, or a point that is no number of 0 or more.
    """
    if not (0 < reference.cost < math.inf and 0 < reference.latency_s < math.inf):
        raise ValueError(f"the reference is {tuple(reference)}; give a cost and a latency above 0")
    for point in points:
        if not (0 <= point.cost < math.inf and 0 <= point.latency_s < math.inf):
            raise ValueError(f"the point {tuple(point)} is no cost and latency of 0 or more")
    shares = pareto_front(
        CostPoint(
            min(p.cost, reference.cost) / reference.cost, min(p.latency_s, reference.latency_s) / reference.latency_s
        )
        for p in points
    )
    if not shares:
        return 0.0
    last = shares[-1]
    between = sum((b.cost - a.cost) * (1.0 - a.latency_s) for a, b in itertools.pairwise(shares))
    return (1.0 - last.cost) * (1.0 - last.latency_s) + between


def dominates(one: CostPoint, other: CostPoint) -> bool:
    """As good in both and better in one."""
    return one.cost <= other.cost and one.latency_s <= other.latency_s and one != other

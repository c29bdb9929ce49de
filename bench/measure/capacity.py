"""How much load a policy carries: where its P99-TTFT-over-rate curve reaches a limit. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from bench.measure.results import Run


class InterpolatedCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """Requests per second at which the P99 TTFT reaches `limit_s`."""

    policy: str
    limit_s: float
    rate_per_s: float | None
    """None when even the lowest rate measured is above the limit."""
    is_bound: bool = False
    """True when no rate measured reaches the limit: the capacity is at least `rate_per_s`."""


def crossing(points: Sequence[tuple[float, float]], limit: float) -> tuple[float | None, bool]:
    """(x, is_bound) where the polyline through `points` (ascending x) first reaches `limit`.

    Linear interpolation between neighbours, as the reference systems do it. (None, False) when the first point is above
    already, (last x, True) when none is.
    """
    if not points:
        return None, False
    if points[0][1] > limit:
        return None, False
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y1 > limit:
            return x0 + (x1 - x0) * (limit - y0) / (y1 - y0), False
    return points[-1][0], True


def capacities(runs: Sequence[Run], limits_s: Sequence[float]) -> list[InterpolatedCapacity]:
    """One per policy and limit, from the mean over the seeds at each rate. Runs without a rate do not count."""
    found: list[InterpolatedCapacity] = []
    for policy in dict.fromkeys(run.policy for run in runs):
        by_rate: dict[float, list[float]] = {}
        for run in runs:
            if run.policy == policy and run.rate_per_s is not None and run.summary.ttft_s is not None:
                by_rate.setdefault(run.rate_per_s, []).append(run.summary.ttft_s.p99)
        points = [(rate, sum(p99s) / len(p99s)) for rate, p99s in sorted(by_rate.items())]
        for limit_s in limits_s:
            rate, is_bound = crossing(points, limit_s)
            found.append(InterpolatedCapacity(policy=policy, limit_s=limit_s, rate_per_s=rate, is_bound=is_bound))
    return found

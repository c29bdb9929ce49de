"""Picks the runs that a figure, a table or a claim is about, and takes means over their seeds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bench.measure.capacity import crossing
from bench.measure.measures import read_measure
from bench.measure.statistics import Estimate, estimate, text_of
from bench.run.simulated import RunLine
from bench.run.spec import check_field

RATE = "rate_per_s"


class Point(msgspec.Struct, frozen=True):
    """One x of a curve, over its seeds."""

    x: float
    value: Estimate


def select(
    lines: Sequence[RunLine], *, variant: str, grid: str = "", at: Mapping[str, Any] | None = None
) -> list[RunLine]:
    """Lines of a variant, of a grid unless that is empty, with these values of their spec."""
    wanted = {check_field(name): value for name, value in (at or {}).items()}
    return [
        line
        for line in lines
        if line.variant == variant
        and (not grid or line.group.partition("/")[2] == grid)
        and all(value_of(line, name) == value for name, value in wanted.items())
    ]


def value_of(line: RunLine, field: str) -> Any:
    """The value of a key of the run's spec; None for a router key that was not set."""
    if field.startswith("router."):
        return line.spec.router.get(field.removeprefix("router."))
    return getattr(line.spec, field)


def by_seed(lines: Sequence[RunLine], measure: str) -> dict[int, float]:
    """One value per seed; with several lines of a seed, their mean."""
    found: dict[int, list[float]] = {}
    for line in lines:
        value = read_measure(line.measures, measure)
        if value is not None:
            found.setdefault(line.spec.seed, []).append(value)
    return {seed: sum(values) / len(values) for seed, values in sorted(found.items())}


def by_variant_and_rate(lines: Sequence[RunLine]) -> dict[tuple[str, float | None], list[RunLine]]:
    """In the order in which they first come."""
    found: dict[tuple[str, float | None], list[RunLine]] = {}
    for line in lines:
        found.setdefault((line.variant, line.spec.rate_per_s), []).append(line)
    return found


def mean_text(lines: Sequence[RunLine], measure: str) -> str:
    """The mean over seeds with half its interval, for people; a dash when no run has the measure."""
    values = list(by_seed(lines, measure).values())
    return text_of(estimate(values), digits=3) if values else "–"


def curve(lines: Sequence[RunLine], measure: str, x: str = RATE) -> list[Point]:
    """Mean over seeds at each x, ascending."""
    at: dict[float, list[RunLine]] = {}
    for line in lines:
        place = value_of(line, x)
        if place is not None:
            at.setdefault(float(place), []).append(line)
    points = []
    for place in sorted(at):
        values = by_seed(at[place], measure)
        if values:
            points.append(Point(place, estimate(list(values.values()))))
    return points


def capacity_by_seed(lines: Sequence[RunLine], measure: str, limit: float) -> dict[int, tuple[float, bool]]:
    """(rate at which the measure reaches the limit, whether that is only a bound) per seed; seeds above the limit from
    the first rate on are left out."""
    found: dict[int, tuple[float, bool]] = {}
    for seed in sorted({line.spec.seed for line in lines}):
        own = [line for line in lines if line.spec.seed == seed and line.spec.rate_per_s is not None]
        points = sorted(
            (line.spec.rate_per_s or 0.0, value)
            for line in own
            if (value := read_measure(line.measures, measure)) is not None
        )
        rate, is_bound = crossing(points, limit)
        if rate is not None:
            found[seed] = (rate, is_bound)
    return found


def capacity(lines: Sequence[RunLine], measure: str, limit: float) -> Estimate | None:
    """Mean capacity over the seeds; None when the lowest rate is above the limit for some seed."""
    found = capacity_by_seed(lines, measure, limit)
    if not found or len(found) < len({line.spec.seed for line in lines}):
        return None
    mean = estimate([rate for rate, _ in found.values()])
    return msgspec.structs.replace(mean, is_bound=any(bound for _, bound in found.values()))

"""The largest rate at which an objective holds, found by bisection for each policy and seed, with its interval."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from bench.measures import check_measure, read_measure
from bench.run_chains import Chain
from bench.run_one import RunLine, Task
from bench.run_spec import RunSpec, with_values
from bench.statistics_of_seeds import Estimate, estimate

GROWTH = 1.5
HIGHEST_RATE = 100_000.0


class Objective(msgspec.Struct, frozen=True):
    """`measure` at most, or at least, `limit`."""

    measure: str
    at_most: bool
    limit: float

    def __str__(self) -> str:
        return f"{self.measure} {'<=' if self.at_most else '>='} {self.limit:g}"

    def holds(self, line: RunLine) -> bool:
        """Whether a run keeps it; a run without the measure does not."""
        value = read_measure(line.measures, self.measure)
        return value is not None and (value <= self.limit if self.at_most else value >= self.limit)


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """Of one policy under one objective, over seeds."""

    variant: str
    objective: str
    rate_per_s: Estimate | None
    """None: not even the lowest rate keeps it, for some seed."""


def parse_objective(text: str) -> Objective:
    """`ttft_p99_s<=3`, `goodput_share>=0.99`. Raises ValueError."""
    match = re.fullmatch(r"\s*([A-Za-z_0-9]+)\s*(<=|>=)\s*([0-9.eE+-]+)\s*", text)
    try:
        limit = float(match[3]) if match else 0.0
    except ValueError:
        match = None
    if match is None:
        raise ValueError(f"cannot read the objective {text!r}; write for example 'ttft_p99_s<=3'")
    check_measure(match[1])
    return Objective(match[1], match[2] == "<=", limit)


def search(
    base: RunSpec, *, variant: str, values: dict[str, Any], seed: int, objective: Objective, low: float, step: float
) -> Chain[float]:
    """A chain that returns the largest rate of the grid `k * step` that keeps the objective; 0.0 when `low` does not.

    P99s rise with the rate but for the noise of one run; the bisection takes the first change that it finds.
    """
    own = with_values(base, {**values, "seed": seed})

    def task(k: int) -> Task:
        spec = msgspec.structs.replace(own, rate_per_s=round(k * step, 9))
        return Task(group="capacity", variant=variant, spec=spec)

    good = max(1, round(low / step))
    line = yield task(good)
    if not objective.holds(line):
        return 0.0
    bad = good
    while True:
        bad = max(bad + 1, round(bad * GROWTH))
        if bad * step > HIGHEST_RATE:
            return good * step
        line = yield task(bad)
        if not objective.holds(line):
            break
        good = bad
    while bad - good > 1:
        middle = (good + bad) // 2
        line = yield task(middle)
        good, bad = (middle, bad) if objective.holds(line) else (good, middle)
    return good * step


def combine(variant: str, objective: Objective, found: Sequence[float]) -> Capacity:
    """Of one policy over its seeds."""
    rate = None if any(value == 0.0 for value in found) else estimate(list(found))
    return Capacity(variant=variant, objective=str(objective), rate_per_s=rate)

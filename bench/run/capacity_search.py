"""The largest rate at which an objective holds, or the fewest nodes for a rate: bisection for each policy and seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from bench.measure.measures import check_measure, read_measure
from bench.measure.statistics import Estimate, estimate
from bench.run.executor import Chain
from bench.run.simulated import RunLine, Task
from bench.run.spec import RunSpec, with_values

GROWTH = 1.5
HIGHEST_RATE = 100_000.0
MOST_NODES = 512


class CapacityObjective(msgspec.Struct, frozen=True):
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


class SearchedLimit(msgspec.Struct, frozen=True):
    """What one search found: a rate, or a number of nodes."""

    value: float
    """0: nothing keeps the objective."""
    too_short: bool = False
    """The objective is kept here by a run that is too short to show whether it lasts."""


class SearchedCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """Of one policy under one objective, over seeds."""

    variant: str
    objective: str
    rate_per_s: Estimate | None
    """None: not even the lowest rate keeps it, for some seed, or runs are too short."""
    too_short_from: float | None = None
    """The lowest rate whose run keeps the objective but is too short to show that it lasts."""


class SearchedFleet(msgspec.Struct, frozen=True, kw_only=True):
    """What one policy needs under one objective at a rate."""

    variant: str
    objective: str
    nodes: tuple[int, ...] | None
    """The fewest for each seed. None: `MOST_NODES` are too few for some seed."""
    too_short: bool = False
    """Some seed's run is too short to show that so few last."""


def parse_objective(text: str) -> CapacityObjective:
    """`ttft_p99_s<=3`, `goodput_share>=0.99`. Raises ValueError."""
    match = re.fullmatch(r"\s*([A-Za-z_0-9.-]+)\s*(<=|>=)\s*([0-9.eE+-]+)\s*", text)
    try:
        limit = float(match[3]) if match else 0.0
    except ValueError:
        match = None
    if match is None:
        raise ValueError(f"cannot read the objective {text!r}; write for example 'ttft_p99_s<=3'")
    check_measure(match[1])
    return CapacityObjective(match[1], match[2] == "<=", limit)


def _too_short(line: RunLine) -> bool:
    """Whether requests stop coming before the longest answers are done: until then the load only grows, and how far it
    would have grown, nobody sees."""
    spec, longest_s = line.spec, read_measure(line.measures, "e2e_p99_s")
    if spec.requests is None or spec.rate_per_s is None or longest_s is None:
        return False
    return spec.requests / spec.rate_per_s < longest_s


def search(
    base: RunSpec,
    *,
    variant: str,
    values: dict[str, Any],
    seed: int,
    objective: CapacityObjective,
    low: float,
    step: float,
) -> Chain[SearchedLimit]:
    """A chain that returns the largest rate of the grid `k * step` that keeps the objective; 0.0 when `low` does not.

    It ends at the first run that keeps it but is too short: at higher rates runs are shorter still.

    P99s rise with the rate but for the noise of one run; the bisection takes the first change that it finds.
    """
    own = with_values(base, {**values, "seed": seed})

    def task(k: int) -> Task:
        spec = msgspec.structs.replace(own, rate_per_s=round(k * step, 9))
        return Task(group="capacity", variant=variant, spec=spec)

    good = max(1, round(low / step))
    line = yield task(good)
    if not objective.holds(line):
        return SearchedLimit(0.0)
    bad: int | None = None
    while bad is None or bad - good > 1:
        if _too_short(line):
            return SearchedLimit(good * step, too_short=True)
        tried = max(good + 1, round(good * GROWTH)) if bad is None else (good + bad) // 2
        if tried * step > HIGHEST_RATE:
            return SearchedLimit(good * step, too_short=True)
        tried_line = yield task(tried)
        if objective.holds(tried_line):
            good, line = tried, tried_line
        else:
            bad = tried
    return SearchedLimit(good * step, _too_short(line))


def search_nodes(
    base: RunSpec, *, variant: str, values: dict[str, Any], seed: int, objective: CapacityObjective
) -> Chain[SearchedLimit]:
    """A chain that returns the fewest nodes that keep the objective at the rate of `base`; 0 when `MOST_NODES` do not.

    It begins at the nodes of `base`, and takes the first change that it finds, as `search` does.
    """
    own = with_values(base, {**values, "seed": seed})

    def task(nodes: int) -> Task:
        return Task(group="capacity", variant=variant, spec=msgspec.structs.replace(own, nodes=nodes))

    few, enough = 0, min(own.nodes, MOST_NODES)
    while True:
        line = yield task(enough)
        if objective.holds(line):
            break
        if enough == MOST_NODES:
            return SearchedLimit(0)
        few, enough = enough, min(MOST_NODES, max(enough + 1, round(enough * GROWTH)))
    while enough - few > 1:
        middle = (few + enough) // 2
        tried_line = yield task(middle)
        if objective.holds(tried_line):
            enough, line = middle, tried_line
        else:
            few = middle
    return SearchedLimit(enough, _too_short(line))


def combine_nodes(variant: str, objective: CapacityObjective, found: Sequence[SearchedLimit]) -> SearchedFleet:
    """Of one policy over its seeds."""
    nodes = None if any(one.value == 0 for one in found) else tuple(int(one.value) for one in found)
    return SearchedFleet(
        variant=variant, objective=str(objective), nodes=nodes, too_short=any(one.too_short for one in found)
    )


def combine(variant: str, objective: CapacityObjective, found: Sequence[SearchedLimit]) -> SearchedCapacity:
    """Of one policy over its seeds."""
    short = min((one.value for one in found if one.too_short), default=None)
    kept = short is None and all(one.value for one in found)
    return SearchedCapacity(
        variant=variant,
        objective=str(objective),
        rate_per_s=estimate([one.value for one in found]) if kept else None,
        too_short_from=short,
    )

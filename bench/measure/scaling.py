"""What a scaled fleet did in a run: its course over time, what it cost, and measures of it. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence

import msgspec

from bench.measure.groups import HOUR_S
from bench.measure.results import RequestResult, spread
from gateway.core.scale.scaler import ScaleDecision

FLAP_S = 600.0
"""A turn within so long of the change before it is a flap."""


class GroupCourse(msgspec.Struct, kw_only=True):
    """One group at the moments of a timeline: numbers of nodes."""

    wanted: list[int] = msgspec.field(default_factory=list)
    """What the rule wanted, within the bounds."""
    starting: list[int] = msgspec.field(default_factory=list)
    serving: list[int] = msgspec.field(default_factory=list)
    draining: list[int] = msgspec.field(default_factory=list)


class ScalingTimeline(msgspec.Struct, kw_only=True):
    """The fleet over a run: at every tick, and whenever a node has come or gone."""

    at_s: list[float] = msgspec.field(default_factory=list)
    groups: dict[str, GroupCourse] = msgspec.field(default_factory=dict)
    held: list[int] = msgspec.field(default_factory=list)
    """Requests that waited at the gateway."""
    running: list[int] = msgspec.field(default_factory=list)
    """Requests at nodes."""

    def total(self, what: str) -> list[int]:
        """Over the groups; `what` is a field of `GroupCourse`."""
        courses = [getattr(course, what) for course in self.groups.values()]
        return [sum(values) for values in zip(*courses, strict=True)]


class ScalingCourse(msgspec.Struct, frozen=True, kw_only=True):
    """A timeline with the load and the latencies beside it, as a result line keeps it. Of each moment, what was since
    the one before."""

    timeline: ScalingTimeline
    offered_per_s: list[float]
    """Requests that came."""
    ttft_p90_s: list[float | None]
    """Of those of them that got a token."""
    e2e_p90_s: list[float | None]
    """Of those of them that were answered to the end."""
    missed_share: list[float | None]
    """Of them, those that missed the objective; None where none came."""


class Bill(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One node that was paid for."""

    node_id: str
    group: str
    asked_s: float
    ready_s: float | None
    """None: it never served."""
    gone_s: float
    """It was stopped or taken away, or the run was over."""


class ScalingResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the scaling of one run."""

    began_s: float
    ended_s: float
    """The end of the last answer."""
    node_s: dict[str, float]
    """Paid for, per group: from the moment at which a node is asked for to that at which it is stopped or gone."""
    cost: float
    """Of all of them at the prices of their groups."""
    starts: int
    """Nodes asked for."""
    failed_starts: int
    """Of them those that could not be started, broke while they started, or never came."""
    stops: int
    stops_refused: int
    """Nodes that could not be stopped when it was wanted."""
    nodes_hidden: int
    """Most nodes that a list left out."""
    vanished: int
    """Nodes that somebody took away."""
    peak_nodes: int
    """Most nodes paid for at once."""
    timeline: ScalingTimeline
    bills: list[Bill]
    """In the order in which they ended."""
    decisions: list[ScaleDecision]
    """Those that changed something."""

    @property
    def hours(self) -> float:
        return (self.ended_s - self.began_s) / HOUR_S


COURSE_MOMENTS = 360
"""At most in a `ScalingCourse`."""
LEAST_APART_S = 2.0
"""In less time too little comes to speak of a rate."""


def course_of(
    result: ScalingResult, results: Sequence[RequestResult], is_good: Callable[[RequestResult], bool]
) -> ScalingCourse:
    """The course of a run: of moments that lie close together the first."""
    whole = result.timeline
    least_s = max((result.ended_s - result.began_s) / COURSE_MOMENTS, LEAST_APART_S)
    kept: list[int] = []
    for index, moment_s in enumerate(whole.at_s):
        if not kept or moment_s - whole.at_s[kept[-1]] >= least_s:
            kept.append(index)
    at_s = [whole.at_s[index] for index in kept]
    timeline = ScalingTimeline(
        at_s=at_s,
        groups={
            name: GroupCourse(
                **{what: [getattr(course, what)[index] for index in kept] for what in GroupCourse.__struct_fields__}
            )
            for name, course in whole.groups.items()
        },
        held=[whole.held[index] for index in kept],
        running=[whole.running[index] for index in kept],
    )
    came: list[list[RequestResult]] = [[] for _ in at_s]
    for row in results:
        index = bisect.bisect_left(at_s, row.arrival_s)
        if index < len(came):
            came[index].append(row)
    spans_s = [at - before for before, at in zip([result.began_s, *at_s], at_s, strict=False)]
    return ScalingCourse(
        timeline=timeline,
        offered_per_s=[len(rows) / span if span > 0 else 0.0 for rows, span in zip(came, spans_s, strict=True)],
        ttft_p90_s=[_p90(row.ttft_s for row in rows) for rows in came],
        e2e_p90_s=[_p90(row.e2e_s for row in rows) for rows in came],
        missed_share=[1.0 - sum(map(is_good, rows)) / len(rows) if rows else None for rows in came],
    )


def _p90(values: Iterable[float | None]) -> float | None:
    found = spread(value for value in values if value is not None)
    return None if found is None else found.p90


SCALING_MEASURES = frozenset(
    {
        "node_hours",
        "cost",
        "cost_per_hour",
        "nodes_mean",
        "nodes_peak",
        "node_starts",
        "node_starts_failed",
        "node_stops",
        "nodes_vanished",
        "flaps_per_hour",
        "shortfalls",
    }
)


def scaling_measures(result: ScalingResult) -> dict[str, float]:
    """Node-hours, cost and unrest of a run, by the names of `SCALING_MEASURES`."""
    node_hours = sum(result.node_s.values()) / HOUR_S
    hours = result.hours
    shortfalls = sum(bool(decision.shortfall) for decision in result.decisions)
    return {
        "node_hours": node_hours,
        "cost": result.cost,
        "cost_per_hour": result.cost / hours if hours else 0.0,
        "nodes_mean": node_hours / hours if hours else 0.0,
        "nodes_peak": float(result.peak_nodes),
        "node_starts": float(result.starts),
        "node_starts_failed": float(result.failed_starts),
        "node_stops": float(result.stops),
        "nodes_vanished": float(result.vanished),
        "flaps_per_hour": flaps(result.timeline) / hours if hours else 0.0,
        "shortfalls": float(shortfalls),
    }


def flaps(timeline: ScalingTimeline) -> int:
    """How often the number of nodes wanted of a group turned within `FLAP_S`: went up so soon after it had gone down,
    or down so soon after it had gone up. Summed over the groups."""
    return sum(_turns(timeline.at_s, course.wanted) for course in timeline.groups.values())


def _turns(moments_s: list[float], wanted: list[int]) -> int:
    found, last_way, last_s = 0, 0, 0.0
    for at_s, before, now in zip(moments_s[1:], wanted, wanted[1:], strict=False):
        if now != before:
            way = 1 if now > before else -1
            if last_way == -way and at_s - last_s <= FLAP_S:
                found += 1
            last_way, last_s = way, at_s
    return found

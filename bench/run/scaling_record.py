"""What a live gateway's scaler did, as its recording tells it, in the form in which simulated runs tell it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from bench.measure.groups import HOUR_S
from bench.measure.scaling import GroupCourse, ScalingResult, ScalingTimeline
from gateway.core.events import NodeJoined
from gateway.core.recording import ROUTERS
from gateway.core.scale import events as ev
from gateway.core.scale.recording import SCALERS
from gateway.core.scale.scaler import ScaleDecision, Scaler


def recorded_scaling(path: Path, *, first_arrival_s: float, ended_s: float) -> ScalingResult:
    """From the moment of the first request, which came at `first_arrival_s` of the run, to its end.

    The recording is fed to a fresh scaler, which is asked after every tick. What is paid for is counted from tick to
    tick, so there are no bills of single nodes. Raises RecordingError, OSError.
    """
    with path.open("rb") as lines:
        scaler, entries = SCALERS.begin(lines)
        assert isinstance(scaler, Scaler)
        names = [group.name for group in scaler.config.groups]
        timeline = ScalingTimeline(groups={name: GroupCourse() for name in names})
        decisions: list[ScaleDecision] = []
        counts: Counter[type] = Counter()
        offset_s: float | None = None
        for _, entry in entries:
            if offset_s is None and isinstance(entry.event, ev.RequestCame):
                offset_s = first_arrival_s - entry.now_s
            actions = scaler.handle(entry.event, entry.now_s)
            at_s = None if offset_s is None else entry.now_s + offset_s
            if at_s is None or at_s > ended_s:
                continue
            counts.update(map(type, (entry.event, *actions)))
            if isinstance(entry.event, ev.FleetSeen):
                asked_now = Counter(action.group for action in actions if isinstance(action, ev.StartNode))
                _mark(timeline, scaler, entry.event, asked_now, at_s)
                if actions and scaler.latest is not None:
                    decisions.append(scaler.latest)
    moments_s = [*timeline.at_s, ended_s]
    node_s = {
        name: sum(
            (after - at) * nodes
            for at, after, nodes in zip(moments_s, moments_s[1:], _paid(timeline.groups[name]), strict=False)
        )
        for name in names
    }
    prices = {group.name: group.price_per_hour for group in scaler.config.groups}
    return ScalingResult(
        began_s=first_arrival_s,
        ended_s=ended_s,
        node_s=node_s,
        cost=sum(prices[name] * seconds / HOUR_S for name, seconds in node_s.items()),
        starts=counts[ev.StartNode],
        failed_starts=counts[ev.StartFailed],
        stops=counts[ev.StopNode],
        stops_refused=0,
        nodes_hidden=0,
        vanished=0,
        peak_nodes=max(map(sum, zip(*(_paid(course) for course in timeline.groups.values()), strict=True)), default=0),
        timeline=timeline,
        bills=[],
        decisions=[_moved(decision, offset_s or 0.0) for decision in decisions],
    )


def recorded_starts(router: Path, scaling: Path) -> list[float]:
    """Seconds from the wish for each node to its first session, in the order in which they came up. Raises
    RecordingError, OSError."""
    asked_s: dict[str, float] = {}
    with scaling.open("rb") as lines:
        _, entries = SCALERS.begin(lines)
        for _, entry in entries:
            asked_s |= {a.node_id: entry.now_s for a in entry.actions if isinstance(a, ev.StartNode)}
    found = []
    with router.open("rb") as lines:
        _, entries = ROUTERS.begin(lines)
        for _, entry in entries:
            if isinstance(entry.event, NodeJoined) and entry.event.node_id in asked_s:
                found.append(entry.now_s - asked_s.pop(entry.event.node_id))
    return found


def _mark(timeline: ScalingTimeline, scaler: Scaler, seen: ev.FleetSeen, asked_now: Counter[str], at_s: float) -> None:
    assert scaler.fleet is not None, "there was a tick"
    timeline.at_s.append(at_s)
    timeline.held.append(seen.held)
    timeline.running.append(sum(node.outstanding for node in seen.nodes))
    wanted = scaler.wanted()
    for state in scaler.fleet.groups:
        course = timeline.groups[state.group.name]
        course.wanted.append(wanted[state.group.name])
        course.starting.append(len(state.starting) + asked_now[state.group.name])
        course.serving.append(len(state.serving))
        course.draining.append(len(state.draining))


def _paid(course: GroupCourse) -> list[int]:
    return [sum(states) for states in zip(course.starting, course.serving, course.draining, strict=True)]


def _moved(decision: ScaleDecision, by_s: float) -> ScaleDecision:
    return msgspec.structs.replace(decision, now_s=decision.now_s + by_s)

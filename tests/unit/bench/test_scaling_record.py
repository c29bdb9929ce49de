"""A scaler's recording, told as a simulated run tells its scaling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.run.scaling_record import recorded_scaling, recorded_starts
from gateway.core.events import NodeJoined
from gateway.core.recording import RecordingError, entry_line, header_line
from gateway.core.router_config import RouterConfig
from gateway.core.scale import events as ev
from gateway.core.scale import recording
from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.fleet import SeenNode
from gateway.core.scale.scaler import Scaler
from tests.helpers.scaling import ENGINE, group, seen

CLOCK_S = 5000.0


def up(name: str) -> SeenNode:
    node = seen(name)
    return msgspec.structs.replace(node, view=msgspec.structs.replace(node.view, joined_s=-9.0))


def write(path: Path, events: list[tuple[float, Any]]) -> None:
    """What a gateway records that scales to two nodes."""
    config = ScaleConfig(rule="static", options={"nodes": {"g": 2}}, groups=(group(max=4),), tick_s=5.0)
    scaler = Scaler(config)
    lines = [recording.header_line(recording.ScalerSetup(config=config))]
    for at_s, event in events:
        lines.append(recording.entry_line(CLOCK_S + at_s, event, scaler.handle(event, CLOCK_S + at_s)))
    path.write_bytes(b"".join(lines))


def test_a_recording_is_told_as_a_course_from_the_first_request_on(tmp_path: Path) -> None:
    both = (up("g-0"), up("g-1"))
    listed = ev.NodesListed(nodes=tuple(ev.ListedNode(node_id=f"g-{i}", group="g") for i in range(2)))
    events = [
        (0.0, ev.FleetSeen(nodes=())),
        (2.0, ev.RequestCame(prompt_tokens=10, expected_tokens=5.0)),
        (4.0, ev.NodesListed(nodes=())),
        (5.0, ev.FleetSeen(nodes=(), held=1)),
        (10.0, listed),
        (10.0, ev.FleetSeen(nodes=(up("g-0"),))),
        (15.0, ev.FleetSeen(nodes=both)),
        (99.0, ev.FleetSeen(nodes=both)),
    ]
    write(tmp_path / "r.scaling", events)
    told = recorded_scaling(tmp_path / "r.scaling", first_arrival_s=0.5, ended_s=33.5)
    course = told.timeline.groups["g"]
    assert told.timeline.at_s == pytest.approx([3.5, 8.5, 13.5])
    assert (course.wanted, course.starting, course.serving) == ([2, 2, 2], [2, 1, 0], [0, 1, 2])
    assert (told.timeline.held, told.timeline.running) == ([1, 0, 0], [0, 1, 2])
    assert told.node_s == pytest.approx({"g": 2 * 30.0})
    assert (told.starts, told.stops, told.peak_nodes) == (2, 0, 2)
    (decision,) = told.decisions
    assert decision.now_s == pytest.approx(3.5)
    router = tmp_path / "r"
    times_s = {"g-1": 7.5, "g-0": 9.0}
    joined = [entry_line(CLOCK_S + at_s, NodeJoined(node_id=name, config=ENGINE), []) for name, at_s in times_s.items()]
    router.write_bytes(b"".join([header_line(RouterConfig()), *joined]))
    assert recorded_starts(router, tmp_path / "r.scaling") == pytest.approx([2.5, 4.0])


def test_what_is_no_recording_is_said(tmp_path: Path) -> None:
    (tmp_path / "r.scaling").write_text("hello\n")
    with pytest.raises(RecordingError, match="line 1: not the head of a recording"):
        recorded_scaling(tmp_path / "r.scaling", first_arrival_s=0.0, ended_s=1.0)

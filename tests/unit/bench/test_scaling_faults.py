"""What the faults of scaled fleets complain of, shown on courses that are wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bench.chaos.virtual.scaling import complaints_of
from bench.measure.scaling import Bill, ScalingResult, ScalingTimeline
from bench.simcluster import SimCluster
from bench.simcluster.scaling import ScaledFleet, ScaledGroup, ScaledNodes
from gateway.core.router import RouterConfig
from gateway.core.scale import events as ev
from gateway.core.scale.config import ScaleConfig, ScaleGroup
from tests.helpers.simulated import cluster_nodes, poisson

FLEET = ScaledFleet(
    config=ScaleConfig(rule="static", groups=(ScaleGroup(name="n", max=2),)),
    groups={"n": ScaledGroup(node=cluster_nodes(1)[0])},
)


def result(*bills: tuple[str, float, float], **changes: Any) -> ScalingResult:
    good = ScalingResult(
        began_s=0.0,
        ended_s=100.0,
        node_s={},
        cost=0.0,
        starts=0,
        failed_starts=0,
        stops=0,
        stops_refused=0,
        nodes_hidden=0,
        vanished=0,
        peak_nodes=0,
        timeline=ScalingTimeline(),
        bills=[Bill(node_id=i, group="n", asked_s=a, ready_s=None, gone_s=g) for i, a, g in bills],
        decisions=[],
    )
    return msgspec.structs.replace(good, **changes)


def test_a_good_course_is_not_complained_of() -> None:
    assert complaints_of(FLEET, result(("n-0", 0, 100), ("n-1", 5, 50), ("n-1", 50, 90)), 0) == []


@pytest.mark.parametrize(
    ("bills", "followed", "says"),
    [
        ([("n-0", 0, 50), ("n-0", 49, 60)], 0, "paid for twice at once"),
        ([("n-0", 0, 101)], 0, "is paid for from 0 to 101"),
        ([("n-0", 0, 50), ("n-1", 0, 50), ("n-2", 49, 60)], 0, "3 nodes of n were paid for at once; 2 may be"),
        ([("n-0", 0, 50)], 4, "4 requests are still followed"),
    ],
)
def test_a_bad_course_is(bills: list[tuple[str, float, float]], followed: int, says: str) -> None:
    found = complaints_of(FLEET, result(*bills), followed)
    assert any(says in complaint for complaint in found), found


def test_what_could_not_be_stopped_or_seen_may_be_paid_for_beyond_the_most() -> None:
    three = [("n-0", 0, 50), ("n-1", 0, 50), ("n-2", 0, 50)]
    assert complaints_of(FLEET, result(*three, stops_refused=1), 0) == []
    assert complaints_of(FLEET, result(*three, nodes_hidden=1), 0) == []


def test_a_node_that_is_stopped_with_requests_on_it_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ScaledNodes,
        "_retire",
        lambda self, action, at_s: self._stop(ev.StopNode(node_id=action.node_id, group="n"), at_s),
    )
    config = msgspec.structs.replace(FLEET.config, options={"nodes": {"n": 1}})
    scaled = msgspec.structs.replace(
        FLEET, config=config, groups={"n": msgspec.structs.replace(FLEET.groups["n"], nodes=2)}
    )
    cluster = SimCluster([], RouterConfig(policy="round_robin"), scaled=scaled)
    with pytest.raises(AssertionError, match="is stopped with requests on it"):
        cluster.run(poisson(200, 8.0))

"""Predictors whose forecasts are off by a factor of three cost at most a tenth of the tail of `least_requests`."""

from __future__ import annotations

import pytest

from bench.chaos.lies import LIES, cost
from bench.simcluster import SimCluster
from bench.simcluster.world import Lies
from gateway.core.router import RouterConfig
from tests.helpers.simulated import cluster_nodes, poisson


@pytest.mark.parametrize("lies", LIES.values(), ids=LIES)
def test_lies_cost_little_and_raise_an_alarm(lies: dict[str, float]) -> None:
    ttft_ratio, e2e_ratio, nodes = cost(0, lies)
    assert ttft_ratio <= 1.1
    assert e2e_ratio <= 1.1
    for node_id, node in nodes.items():
        if node_id in lies:
            assert node.forecasts.use != "used"
            assert "forecasts" in node.alarm
        else:
            assert node.forecasts.use == "used"
            assert node.alarm == ""


def test_a_liar_that_tells_the_truth_again_is_believed_again() -> None:
    cluster = SimCluster(cluster_nodes(3), RouterConfig(policy="min_total_latency"))
    world = [(0.0, Lies(node_id="n0", factor=3.0)), (120.0, Lies(node_id="n0", factor=1.0))]
    cluster.run(poisson(2000, 6.0), world)
    told = {node.node_id: node for node in cluster.router.nodes()}
    assert told["n0"].forecasts.use == "used"
    assert told["n0"].forecasts.changes_total >= 2

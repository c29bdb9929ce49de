"""Predictors whose forecasts are off by a factor of three cost at most a tenth of the tail of `least_requests`."""

from __future__ import annotations

import functools

import pytest

from bench.results import Summary
from bench.simcluster import SimCluster
from bench.simcluster_faults import Lies
from gateway.core.node_account import NodeStatus
from gateway.core.router import RouterConfig
from tests.helpers.simulated import cluster_nodes, poisson

NODES, REQUESTS, RATE_PER_S = 4, 2000, 9.4


def run(policy: str, seed: int, lies: dict[str, float]) -> tuple[Summary, dict[str, NodeStatus]]:
    cluster = SimCluster(cluster_nodes(NODES), RouterConfig(policy=policy, seed=seed))
    world = [(0.0, Lies(node_id=node_id, factor=factor)) for node_id, factor in lies.items()]
    summary = cluster.run(poisson(REQUESTS, RATE_PER_S, seed), world).summary()
    return summary, {node.node_id: node for node in cluster.router.nodes()}


@functools.cache
def least_requests(seed: int) -> Summary:
    return run("least_requests", seed, {})[0]


@pytest.mark.parametrize(
    "lies",
    [
        {"n0": 3.0},
        {"n0": 1 / 3},
        {f"n{i}": 3.0 if i % 2 else 1 / 3 for i in range(NODES)},
    ],
    ids=["thrice", "a third", "all, both ways"],
)
def test_lies_cost_little_and_raise_an_alarm(lies: dict[str, float]) -> None:
    summary, nodes = run("min_total_latency", 0, lies)
    base = least_requests(0)
    for mine, theirs in ((summary.ttft_s, base.ttft_s), (summary.e2e_s, base.e2e_s)):
        assert mine is not None
        assert theirs is not None
        assert mine.p99 <= 1.1 * theirs.p99
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

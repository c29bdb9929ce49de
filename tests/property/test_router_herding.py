"""Decisions between two words of a node must see each other (Block's herding, RouteBalance's finding)."""

from __future__ import annotations

import random
import statistics

import msgspec
import pytest

from bench.measure.results import Summary
from bench.simcluster import Delays, SimCluster
from bench.workload.item import WorkloadItem
from gateway.core.router import RouterConfig
from tests.helpers.simulated import burst, cluster_nodes

LOAD_AWARE = [
    "least_requests",
    "min_qpm",
    "infaas",
    "llumnix_freeness",
    "min_total_unprocessed_tokens",
    "min_new_request_latency",
    "min_total_latency",
]
SLOW_NOTES = Delays(note_interval_s=10.0)
INSTANT = Delays(network_one_way_s=0.0, decision_s=0.0, forecast_s=0.0, note_interval_s=0.0)


def run(policy: str, items: list[WorkloadItem], delays: Delays, seed: int = 0) -> Summary:
    return SimCluster(cluster_nodes(12), RouterConfig(policy=policy, seed=seed), delays).run(items).summary()


def one_by_one(items: list[WorkloadItem]) -> list[WorkloadItem]:
    """The same burst, so far apart that without delays each decision sees all before it: what can best be had."""
    return [msgspec.structs.replace(item, arrival_s=item.arrival_s + 1e-9 * i) for i, item in enumerate(items)]


@pytest.mark.parametrize("policy", LOAD_AWARE)
@pytest.mark.parametrize("seed", range(3))
def test_a_burst_within_one_state_interval_spreads_evenly(policy: str, seed: int) -> None:
    """64 equal requests at one moment over 12 idle nodes: 5 or 6 each, and nothing less even."""
    nodes = run(policy, burst([(300, 100)] * 64), SLOW_NOTES, seed).nodes
    assert len(nodes) == 12
    assert set(nodes.values()) == {5, 6}


@pytest.mark.parametrize("policy", [p for p in LOAD_AWARE if p != "min_qpm"])
def test_a_mixed_burst_is_placed_nearly_as_well_as_one_by_one(policy: str) -> None:
    """Mean latency within 3 % of decisions that see all that went before, over a few bursts."""
    together: list[float] = []
    apart: list[float] = []
    for seed in range(3):
        rng = random.Random(seed)
        lengths = [(1 + int(rng.expovariate(1 / 300)), 1 + int(rng.expovariate(1 / 200))) for _ in range(64)]
        for results, items, delays in (
            (together, burst(lengths), SLOW_NOTES),
            (apart, one_by_one(burst(lengths)), INSTANT),
        ):
            spread = run(policy, items, delays, seed).e2e_s
            assert spread is not None
            results.append(spread.mean)
    assert statistics.mean(together) <= 1.03 * statistics.mean(apart)


def test_two_choices_are_enough_to_keep_a_burst_from_piling_up() -> None:
    """Expected maximum over the mean is ln ln n / ln 2 for two choices, against ln n / ln ln n for one."""
    most = [max(run("power_of_two", burst([(300, 20)] * 64), SLOW_NOTES, s).nodes.values()) for s in range(5)]
    blind = [max(run("random", burst([(300, 20)] * 64), SLOW_NOTES, s).nodes.values()) for s in range(5)]
    assert max(most) <= 8
    assert statistics.mean(most) < statistics.mean(blind)

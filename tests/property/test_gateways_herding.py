"""Several gateways over one set of nodes, none knowing of the others: they do not herd, and give no seat away twice."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import pytest

from bench.measure.results import Summary
from bench.simcluster import Delays, SimCluster
from bench.workload.item import WorkloadItem
from gateway.core import events as ev
from gateway.core.queue.queue import HoldConfig
from gateway.core.router import RouterConfig
from tests.helpers.simulated import burst, cluster_nodes, poisson
from tests.helpers.simulated_gateways import with_gateways
from tests.property.test_router_herding import INSTANT, LOAD_AWARE, SLOW_NOTES, one_by_one


def run(
    items: Sequence[WorkloadItem], config: RouterConfig, delays: Delays | None = None, gateways: int = 2
) -> Summary:
    cluster = SimCluster(cluster_nodes(12), config, delays)
    many = with_gateways(cluster, gateways)
    summary = cluster.run(items).summary()
    many.check_quiescent()
    assert summary.completed == len(items)
    return summary


@pytest.mark.parametrize("policy", LOAD_AWARE)
@pytest.mark.parametrize("gateways", [2, 4])
def test_a_burst_within_one_state_interval_spreads(policy: str, gateways: int) -> None:
    """64 equal requests at one moment over 12 idle nodes, 5.3 for each if all were known to all. Here no gateway hears
    of the others' before the interval ends; at random, a node would get between 1 and 10."""
    nodes = run(burst([(300, 100)] * 64), RouterConfig(policy=policy), SLOW_NOTES, gateways).nodes
    assert len(nodes) == 12
    assert min(nodes.values()) >= 3
    assert max(nodes.values()) <= 8


@pytest.mark.parametrize("policy", [p for p in LOAD_AWARE if p != "min_qpm"])
def test_a_mixed_burst_is_placed_nearly_as_well_as_one_by_one(policy: str) -> None:
    """Mean latency within 5 % of one gateway whose decisions see all that went before, over a few bursts."""
    together: list[float] = []
    apart: list[float] = []
    for seed in range(3):
        rng = random.Random(seed)
        lengths = [(1 + int(rng.expovariate(1 / 300)), 1 + int(rng.expovariate(1 / 200))) for _ in range(64)]
        for means, items, delays, gateways in (
            (together, burst(lengths), SLOW_NOTES, 2),
            (apart, one_by_one(burst(lengths)), INSTANT, 1),
        ):
            spread = run(items, RouterConfig(policy=policy, seed=seed), delays, gateways).e2e_s
            assert spread is not None
            means.append(spread.mean)
    assert statistics.mean(together) <= 1.05 * statistics.mean(apart)


class _Bound:
    """Where and when requests are bound."""

    def __init__(self) -> None:
        self.at: list[tuple[float, str]] = []
        self.held = 0

    def __call__(self, at_s: float, event: ev.AnyEvent, actions: Sequence[ev.AnyAction]) -> None:
        self.at.extend((at_s, action.node_id) for action in actions if isinstance(action, ev.Dispatch))
        if isinstance(event, ev.Arrived) and not any(isinstance(a, (ev.Dispatch, ev.AskForecast)) for a in actions):
            self.held += 1


@pytest.mark.parametrize("policy", ["min_total_latency", "llumnix_freeness"])
def test_gateways_that_hold_requests_share_the_seats(policy: str) -> None:
    """Past the knee, where all hold. Two that look within the same millisecond can see the same seat free, so there are
    some more preemptions than under one gateway that holds everything, but the tail is the same."""
    items = poisson(500, 60.0)
    found: dict[str, Summary] = {}
    for name, gateways, hold in (
        ("one", 1, HoldConfig(when="always")),
        ("two", 2, HoldConfig(when="always")),
        ("at once", 1, HoldConfig(when="never")),
    ):
        bound = _Bound()
        cluster = SimCluster(cluster_nodes(12, num_blocks=500), RouterConfig(policy=policy, hold=hold), observe=bound)
        many = with_gateways(cluster, gateways)
        found[name] = cluster.run(items).summary()
        many.check_quiescent()
        assert found[name].completed == len(items)
        assert (bound.held > 50) is (hold.when == "always"), bound.held
    one, two, at_once = found["one"], found["two"], found["at once"]
    assert one.ttft_s is not None
    assert two.ttft_s is not None
    assert two.ttft_s.p99 <= 1.2 * one.ttft_s.p99
    assert (two.preemptions or 0) <= (at_once.preemptions or 0)
    if policy == "min_total_latency":
        assert (two.preemptions or 0) <= 0.3 * (at_once.preemptions or 0)

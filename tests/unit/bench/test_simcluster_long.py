"""Long runs: requests come one by one, and nothing is kept of one that has ended."""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Sequence
from types import FunctionType, ModuleType

import numpy as np
import pytest

from bench.measure.results import RequestResult, RunningSummary, summarise
from bench.simcluster import SimCluster, SimResult
from bench.simcluster.request import SimulatedRequest
from bench.workload.item import WorkloadItem
from gateway.core import events as ev
from gateway.core.request.live import LiveRequest
from gateway.core.router import RouterConfig
from simcore.types import Decision, Outcome
from tests.helpers.simulated import burst, cluster_nodes, poisson

POLICIES = ("least_requests", "llumnix_freeness", "min_total_latency")


def cluster(policy: str = "least_requests", nodes: int = 3) -> SimCluster:
    return SimCluster(cluster_nodes(nodes), RouterConfig(policy=policy, explain_keep=0))


def told(run: SimResult) -> tuple[Sequence[RequestResult], int, int, dict[str, int]]:
    return run.results, run.steps, run.events, run.policies


@pytest.mark.parametrize("policy", POLICIES)
def test_requests_that_come_one_by_one_fare_as_those_of_a_list(policy: str) -> None:
    items = [*poisson(60, 10.0), *burst([(100, 20), (90, 30), (80, 10)], at_s=7.0)]
    items = [
        WorkloadItem(
            request_id=f"r{i}",
            arrival_s=item.arrival_s,
            prompt_tokens=item.prompt_tokens,
            output_tokens=item.output_tokens,
        )
        for i, item in enumerate(sorted(items, key=lambda item: item.arrival_s))
    ]
    assert told(cluster(policy).run(iter(items))) == told(cluster(policy).run(items))


@pytest.mark.parametrize("policy", POLICIES)
def test_results_are_handed_over_as_requests_end(policy: str) -> None:
    items = poisson(60, 10.0)
    ended: list[RequestResult] = []
    run = cluster(policy).run(iter(items), ended=ended.append)
    assert run.results == []
    assert sorted(ended, key=lambda result: result.arrival_s) == cluster(policy).run(items).results
    ends_s = [result.arrival_s + (result.e2e_s or 0.0) for result in ended]
    assert ends_s == pytest.approx(sorted(ends_s))


def reached(root: object) -> list[object]:
    """All that a run could have left behind."""
    found, seen, todo = list[object](), set[int](), [root]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type | FunctionType | ModuleType | np.ndarray):
            continue
        if type(one).__module__.startswith("numba"):
            continue
        seen.add(id(one))
        found.append(one)
        todo += gc.get_referents(one)
    return found


def test_nothing_is_kept_of_requests_that_have_ended() -> None:
    simulated = cluster("min_total_latency")
    there = [False]

    def ended(_: RequestResult) -> None:
        there[0] = there[0] or any(isinstance(found, SimulatedRequest) for found in reached(simulated))

    world: list[tuple[float, ev.AnyEvent]] = [
        (1.0, ev.ClientGone(request_id="r3", outcome=Outcome.CLIENT_LEFT)),
        (2.0, ev.NodeLost(node_id="n1")),
        (3.0, ev.NodeJoined(node_id="n1", config=simulated.specs()[1].config, profile="test/small")),
    ]
    simulated.run(iter(poisson(40, 20.0)), world, ended=ended)
    assert there[0], "they are found while they are there"
    kept = [found for found in reached(simulated) if isinstance(found, LiveRequest | SimulatedRequest | Decision)]
    assert kept == []
    simulated.router.check_quiescent()


def test_what_is_kept_does_not_grow_with_the_number_of_requests() -> None:
    """By the largest of all containers: a dict or list with a row per request would show."""

    def largest(requests: int) -> int:
        simulated = cluster("min_total_latency")
        simulated.run(iter(poisson(requests, 12.0)), ended=lambda _: None)
        return max(
            len(found)
            for found in reached(simulated)
            if isinstance(found, dict | list | set) or (isinstance(found, deque) and found.maxlen is None)
        )

    few, many = 900, 1800
    assert largest(many) - largest(few) < (many - few) / 10


def test_an_iterator_must_give_requests_in_order() -> None:
    late, early = poisson(2, 1.0)[::-1]
    with pytest.raises(ValueError, match="sort them by arrival"):
        cluster().run(iter([late, early]))


def test_an_iterator_cannot_give_requests_that_wait_for_others() -> None:
    with pytest.raises(ValueError, match="a list of them"):
        cluster().run(iter(poisson(3, 1.0)), at_once=2)
    follower = WorkloadItem(request_id="b", arrival_s=1.0, prompt_tokens=5, output_tokens=5, after="a")
    with pytest.raises(ValueError, match="give a list"):
        cluster().run(iter([follower]))


def test_a_running_summary_keeps_numbers_only() -> None:
    results = cluster("min_total_latency").run(poisson(50, 10.0)).results
    so_far = RunningSummary()
    for result in results:
        so_far.add(result)
    assert len(so_far) == 50
    assert so_far.summary() == summarise(results)

    def kept_bytes() -> int:
        return sum(sys.getsizeof(found) for found in reached(so_far))

    before = kept_bytes()
    for _ in range(20):
        for result in results:
            so_far.add(result)
    assert (kept_bytes() - before) / 1000 <= 100

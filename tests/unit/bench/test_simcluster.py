"""The simulated cluster: what can be reckoned by hand, what the world does to it, and what must not matter."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import pytest

from bench.simcluster import Delays, NodeSpec, SimCluster, SimResult
from bench.simcluster.heap import EventHeap, Rank
from bench.simcluster.node import ClusterNode
from bench.workload.item import LengthKnowledge, WorkloadItem
from gateway.core import events as ev
from gateway.core.decision.policies.registry import needs_forecasts, policy_names
from gateway.core.queue.queue import HoldConfig
from gateway.core.router import RouterConfig
from simcore.trace import StepBatch
from simcore.types import Outcome
from tests.helpers.simulated import STEP_TIME, burst, cluster_nodes, poisson

INSTANT = Delays(network_one_way_s=0.0, decision_s=0.0, forecast_s=0.0, note_interval_s=0.0)


def simulate(
    workload: list[WorkloadItem],
    *,
    policy: str = "least_requests",
    nodes: list[NodeSpec] | None = None,
    delays: Delays | None = None,
    world: list[tuple[float, ev.AnyEvent]] | None = None,
    lengths: LengthKnowledge = "known",
    **router: Any,
) -> SimResult:
    """Runs to the end and checks that nothing is left."""
    cluster = SimCluster(
        cluster_nodes(3) if nodes is None else nodes, RouterConfig(policy=policy, **router), delays, lengths=lengths
    )
    result = cluster.run(workload, world or [])
    cluster.router.check_quiescent()
    return result


def test_one_request_alone_takes_its_steps_and_the_ways_between() -> None:
    delays = Delays(network_one_way_s=0.001, decision_s=0.002, forecast_s=0.0, note_interval_s=0.05)
    (row,) = simulate(burst([(100, 3)], at_s=5.0), nodes=cluster_nodes(1), delays=delays).results
    prefill = STEP_TIME.seconds(StepBatch(prefill_tokens=100, prefill_work_tokens2=100 * 50.0, prefill_seqs=1))
    decode = sum(STEP_TIME.seconds(StepBatch(decode_seqs=1, decode_kv_tokens=kv)) for kv in (101, 102))
    there_and_back = 0.002 + 2 * 0.001
    assert row.outcome is Outcome.STOP
    assert row.output_tokens == 3
    assert row.decision_s == pytest.approx(0.002)
    assert row.ttft_s == pytest.approx(there_and_back + prefill, rel=1e-6)
    assert row.e2e_s == pytest.approx(there_and_back + prefill + decode, rel=1e-3)


def test_asking_first_takes_another_round_trip_and_the_time_to_answer() -> None:
    delays = Delays(network_one_way_s=0.001, decision_s=0.002, forecast_s=0.004)
    (row,) = simulate(burst([(100, 3)]), policy="min_total_latency", delays=delays).results
    assert row.decision_s == pytest.approx(2 * 0.002 + 2 * 0.001 + 0.004)


@pytest.mark.parametrize("policy", policy_names())
def test_every_policy_brings_every_request_to_its_end(policy: str) -> None:
    result = simulate(poisson(120, 20.0), policy=policy, hold=HoldConfig(when="never"))
    summary = result.summary()
    assert summary.completed == 120
    assert [row.request_id for row in result.results] == [f"r{i}" for i in range(120)]
    assert set(result.policies) == {policy}
    assert result.forecasts == (360 if needs_forecasts(policy) else 0)
    assert all(row.ttft_s is not None and row.e2e_s is not None and row.ttft_s <= row.e2e_s for row in result.results)


def test_a_run_depends_on_its_input_alone() -> None:
    def rows(seed: int) -> list[object]:
        return [*simulate(poisson(80, 20.0), policy="power_of_two", seed=seed).results]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


@pytest.mark.parametrize("interval_s", [0.0, 0.005, 1.0])
def test_how_far_nodes_run_ahead_at_a_time_changes_nothing(interval_s: float) -> None:
    delays = Delays(note_interval_s=interval_s)

    def in_steps(node: ClusterNode, stretch_s: float, until_s: float) -> None:
        while node.next_s < until_s:
            ClusterNode.run_until(node, min(until_s, math.nextafter(node.next_s, math.inf) + stretch_s))

    def run(stretch_s: float) -> list[object]:
        cluster = SimCluster(cluster_nodes(3), RouterConfig(policy="llumnix_freeness"), delays)
        for node in cluster._nodes.values():
            node.run_until = partial(in_steps, node, stretch_s)  # type: ignore[method-assign]
        return [*cluster.run(poisson(60, 4.0)).results]

    assert run(0.0) == run(0.05) == run(math.inf)


def test_forecasts_are_right_when_lengths_are_known_and_nobody_comes_after() -> None:
    said: dict[str, float] = {}

    def listen(now_s: float, event: ev.AnyEvent, actions: object) -> None:
        for action in actions:  # type: ignore[attr-defined]
            if isinstance(action, ev.Dispatch):
                forecast = action.decision.scores[0].forecast
                # None: placed by the router's own account, to test a node that has not been heard of yet.
                said[action.request_id] = math.nan if forecast is None else forecast.e2e_s.mean

    cluster = SimCluster(cluster_nodes(2), RouterConfig(policy="min_new_request_latency"), INSTANT, observe=listen)
    items = poisson(40, 5.0)
    rows = {row.request_id: row for row in cluster.run(items).results}
    last = items[-1].request_id
    assert rows[last].e2e_s == pytest.approx(said[last], rel=1e-3)


def test_what_is_believed_of_a_length_changes_placement_and_not_the_length() -> None:
    items = [
        msgspec.structs.replace(item, predicted_output_tokens=max(1, item.output_tokens // 2))
        for item in poisson(60, 20.0)
    ]
    kinds: tuple[LengthKnowledge, ...] = ("known", "predicted", "none")
    for lengths in kinds:
        result = simulate(items, policy="min_total_latency", lengths=lengths)
        assert [row.output_tokens for row in result.results] == [item.output_tokens for item in items]


def test_of_predicted_numbers_a_cluster_learns_what_they_are_worth_unless_it_trusts_them() -> None:
    items = [msgspec.structs.replace(item, predicted_output_tokens=4 * item.output_tokens) for item in poisson(80, 2.0)]

    def believed(**told: Any) -> list[float]:
        """Means, over the answers, in the order in which they came."""
        found: list[float] = []

        def listen(at_s: float, event: ev.AnyEvent, actions: Sequence[ev.AnyAction]) -> None:
            if isinstance(event, ev.Arrived):
                item = items[len(found)]
                found.append(event.request.belief.mean_tokens / item.output_tokens)

        config = RouterConfig(policy="least_requests")
        SimCluster(cluster_nodes(3), config, observe=listen, max_output_tokens=8192, **told).run(items)
        return found

    learned = believed(lengths="predicted")
    assert learned[0] == 4.0
    assert max(learned[-20:]) < 3.0
    assert sum(learned[-20:]) / 20 < 1.6
    assert set(believed(lengths="predicted", trusting=True)) == {4.0}
    assert set(believed(lengths="known")) == {1.0}


def test_an_answer_is_cut_where_the_request_or_the_engine_limits_it() -> None:
    nodes = cluster_nodes(1, max_model_len_tokens=100)
    long, short, refused = simulate(burst([(90, 50), (10, 5), (100, 5)]), nodes=nodes).results
    assert (long.outcome, long.output_tokens) == (Outcome.LENGTH, 10)
    assert (short.outcome, short.output_tokens) == (Outcome.STOP, 5)
    assert (refused.outcome, refused.node_id, refused.e2e_s) == (Outcome.INVALID, "", None)
    assert "limit of 100 tokens" in refused.detail


def test_what_a_broken_node_had_begun_goes_on_elsewhere_and_the_rest_begins_there() -> None:
    # Two at once on each of two nodes with room for one: one streams, one waits.
    nodes = cluster_nodes(2, max_num_seqs=1)
    heard: list[ev.AnyAction] = []
    cluster = SimCluster(
        nodes, RouterConfig(policy="least_requests"), observe=lambda at_s, event, actions: heard.extend(actions)
    )
    result = cluster.run(burst([(10, 200)] * 4), [(2.0, ev.NodeLost(node_id="n0", detail="power"))])
    again = [action for action in heard if isinstance(action, ev.Dispatch) and action.attempt == 2]
    assert {action.node_id for action in again} == {"n1"}
    begun = [action.resumed for action in again if action.resumed is not None]
    assert [len(again), len(begun)] == [2, 1]
    assert 10 < begun[0].prompt_tokens < 210
    assert {row.outcome for row in result.results} == {Outcome.STOP}
    assert {row.output_tokens for row in result.results} == {200}


def test_a_node_that_comes_back_is_empty_and_used() -> None:
    items = poisson(100, 10.0)
    world: list[tuple[float, ev.AnyEvent]] = [
        (2.0, ev.NodeLost(node_id="n0")),
        (4.0, ev.NodeJoined(node_id="n0", config=cluster_nodes(1)[0].config)),
    ]
    result = simulate(items, world=world, policy="min_total_latency")
    on_n0 = [row.arrival_s for row in result.results if row.node_id == "n0" and row.outcome is Outcome.STOP]
    assert not [at_s for at_s in on_n0 if 2.0 < at_s < 4.0]
    assert [at_s for at_s in on_n0 if at_s > 4.0]
    assert {row.outcome for row in result.results} <= {Outcome.STOP, Outcome.NODE_LOST}


def test_clients_that_leave_free_their_nodes() -> None:
    items = burst([(10, 1000)] * 6)
    world: list[tuple[float, ev.AnyEvent]] = [(1.5, ev.ClientGone(request_id=f"r{i}")) for i in range(6)]
    result = simulate(items, world=world)
    assert {row.outcome for row in result.results} == {Outcome.CLIENT_LEFT}
    assert result.steps < 3 * 40, "the engines stop within a step of hearing of it"


def test_late_forecasts_are_not_waited_for() -> None:
    delays = Delays(forecast_s=0.2)
    result = simulate(poisson(30, 10.0), policy="min_total_latency", delays=delays)
    assert result.policies == {"least_requests": 30}
    assert result.summary().completed == 30


def test_a_drained_node_gets_nothing_new() -> None:
    result = simulate(poisson(60, 10.0), world=[(2.0, ev.DrainAsked(node_id="n1"))])
    assert not [row for row in result.results if row.node_id == "n1" and row.arrival_s > 2.0]
    assert result.summary().completed == 60


@pytest.mark.parametrize("policy", ["llumnix_freeness", "min_total_latency"])
def test_delays_of_zero_are_allowed(policy: str) -> None:
    assert simulate(poisson(50, 20.0), policy=policy, delays=INSTANT).summary().completed == 50


def test_an_empty_workload_is_an_empty_result() -> None:
    assert simulate([]).results == []


def test_input_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one node"):
        SimCluster([], RouterConfig())
    with pytest.raises(ValueError, match="node ids must differ"):
        SimCluster(cluster_nodes(1) * 2, RouterConfig())
    with pytest.raises(ValueError, match="same id"):
        simulate(burst([(1, 1)]) * 2)
    with pytest.raises(ValueError, match="names node 'x'"):
        simulate(burst([(1, 1)]), world=[(0.0, ev.NodeLost(node_id="x"))])
    with pytest.raises(ValueError, match="network_one_way_s"):
        Delays(network_one_way_s=-1.0)
    cluster = SimCluster(cluster_nodes(1), RouterConfig())
    cluster.run(burst([(1, 1)]))
    with pytest.raises(ValueError, match="run already"):
        cluster.run(burst([(1, 1)]))


def test_simultaneous_events_go_by_rank_and_then_by_age() -> None:
    heap = EventHeap()
    for rank in (Rank.ASK, Rank.TIMER, Rank.FORECAST, Rank.DISPATCH):
        heap.push(1.0, rank, object())
    heap.push(1.0, Rank.FORECAST, "second")
    heap.push(0.5, Rank.ASK, object())
    order = [heapq.heappop(heap.entries) for _ in range(len(heap))]
    assert [(at_s, rank) for at_s, rank, _, _ in order] == [
        (0.5, Rank.ASK),
        (1.0, Rank.FORECAST),
        (1.0, Rank.FORECAST),
        (1.0, Rank.TIMER),
        (1.0, Rank.DISPATCH),
        (1.0, Rank.ASK),
    ]
    assert order[2][3] == "second"


def test_an_answer_that_comes_with_its_timeout_is_in_time() -> None:
    assert Rank.NODE_REPORT < Rank.FORECAST < Rank.TIMER < Rank.CLIENT
    assert Rank.ABORT < Rank.DISPATCH < Rank.ASK, "as a frame of a session is applied"

"""Requests that wait for answers: conversations and closed loops in the simulated cluster."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from bench.measure.results import RequestResult
from bench.run.simulated import Task, run_task
from bench.run.spec import RunSpec, SpecError, check_spec
from bench.simcluster import NodeSpec, SimCluster
from bench.simcluster.cluster import TURNAROUND_S
from bench.workload.compose import fitting, generated, shaped
from bench.workload.drawn import SHAREGPT_CONVERSATIONS
from bench.workload.item import DataRow, WorkloadItem, check_sent_by_the_clock
from bench.workload.rate_profile import RateStep
from gateway.core.router import RouterConfig
from simcore.cost.shipped import load_shipped
from simcore.types import EngineConfig

CONFIG = EngineConfig(
    model="llama-3.1-8b", max_num_seqs=16, max_num_batched_tokens=2048, num_blocks=3000, max_model_len_tokens=16_384
)
CHATS = fitting(SHAREGPT_CONVERSATIONS.draw(np.random.default_rng(5), 150), 16_384)


def cluster(policy: str = "llumnix_freeness") -> SimCluster:
    step_time = load_shipped("a30/llama-3.1-8b")
    nodes = [NodeSpec(node_id=f"n{index}", config=CONFIG, step_time=step_time) for index in range(3)]
    return SimCluster(nodes, RouterConfig(policy=policy))


def chats(rate_per_s: float = 8.0) -> list[WorkloadItem]:
    return generated(CHATS, seed=0, kind="poisson", rate_per_s=rate_per_s, count=len(CHATS))


def end_s(result: RequestResult) -> float:
    assert result.e2e_s is not None
    return result.arrival_s + result.e2e_s


def most_at_once(results: Sequence[RequestResult]) -> int:
    moments = [(r.arrival_s, 1) for r in results] + [(end_s(r), -1) for r in results]
    return int(np.cumsum([change for _, change in sorted(moments)]).max())


def test_a_conversation_is_one_chain_and_the_rate_is_that_of_requests() -> None:
    rows = SHAREGPT_CONVERSATIONS.draw(np.random.default_rng(1), 20_000)
    items = generated(rows, seed=0, kind="poisson", rate_per_s=10.0, count=20_000)
    by_id = {item.request_id: item for item in items}
    for item in items:
        if item.after:
            assert by_id[item.after].session == item.session
            assert item.arrival_s == by_id[item.after].arrival_s
            assert item.think_s > 0
    assert len({item.after for item in items if item.after}) == sum(1 for item in items if item.after)
    assert items[-1].arrival_s == pytest.approx(2000.0, rel=0.05)
    stepped = shaped(rows, [RateStep(duration_s=500.0, rate_per_s=10.0)], seed=0, kind="poisson")
    assert len(stepped) == pytest.approx(5000, rel=0.1)
    shuffled = generated(rows, seed=0, kind="poisson", rate_per_s=10.0, count=5000, shuffle=True)
    by_id = {item.request_id: item for item in shuffled}
    assert all(by_id[item.after].session == item.session for item in shuffled if item.after)


def test_a_turn_comes_when_its_user_has_read_and_thought() -> None:
    items = chats()
    results = {result.request_id: result for result in cluster().run(items).results}
    followers = [item for item in items if item.after]
    assert len(followers) > 50
    for item in followers:
        waited_s = results[item.request_id].arrival_s - end_s(results[item.after])
        assert waited_s == pytest.approx(max(item.think_s, TURNAROUND_S))
    arrivals = [result.arrival_s for result in results.values()]
    assert arrivals == sorted(arrivals)


@pytest.mark.parametrize("policy", ["llumnix_freeness", "min_total_latency"])
@pytest.mark.parametrize("at_once", [None, 7])
def test_what_follows_an_answer_is_what_would_have_come_by_the_clock(policy: str, at_once: int | None) -> None:
    items = chats()
    closed = cluster(policy).run(items, at_once=at_once).results
    at_s = {result.request_id: result.arrival_s for result in closed}
    same = [msgspec.structs.replace(i, arrival_s=at_s[i.request_id], after="", think_s=0.0) for i in items]
    assert cluster(policy).run(same).results == closed


def test_a_closed_loop_has_so_many_under_way() -> None:
    rows = [DataRow(prompt_tokens=50 + 7 * i, output_tokens=20 + i % 40) for i in range(60)]
    items = generated(rows, seed=0, kind="uniform", rate_per_s=1.0, count=60)
    results = cluster().run(items, at_once=7).results
    assert most_at_once(results) == 7
    assert [result.request_id for result in results[:7]] == [f"r{i:06d}" for i in range(7)]
    assert {result.arrival_s for result in results[:7]} == {items[0].arrival_s}
    assert len(results) == 60


def test_nobody_can_be_followed_twice_or_not_be_there() -> None:
    first, second, third = chats()[:3]
    for after in ("nobody", first.request_id):
        two = [first, *(msgspec.structs.replace(item, after=after) for item in (second, third))]
        with pytest.raises(ValueError, match="follow"):
            cluster().run(two)


def test_live_clients_refuse_what_only_simulations_can_do() -> None:
    with pytest.raises(ValueError, match="bench simulate"):
        check_sent_by_the_clock(chats())
    check_sent_by_the_clock([item for item in chats() if not item.after])


def test_a_run_that_is_a_closed_loop_has_no_rate_and_a_warm_up_is_not_measured() -> None:
    base = RunSpec(policy="round_robin", dataset="long-among-short", requests=60, nodes=2, profile="h100/llama-3.1-8b")
    with pytest.raises(SpecError, match="leave one of them out"):
        check_spec(msgspec.structs.replace(base, concurrency=4, rate_per_s=3.0))
    with pytest.raises(SpecError, match="warm_up_s is -1"):
        check_spec(msgspec.structs.replace(base, warm_up_s=-1.0))
    done = run_task(Task(group="", variant="", spec=msgspec.structs.replace(base, concurrency=4)), keep_results=True)
    assert most_at_once(done.results) == 4
    late = msgspec.structs.replace(base, rate_per_s=3.0, warm_up_s=10.0)
    measured = run_task(Task(group="", variant="", spec=late), keep_results=True).results
    everything = msgspec.structs.replace(late, warm_up_s=0.0)
    results = run_task(Task(group="", variant="", spec=everything), keep_results=True).results
    assert measured == [result for result in results if result.arrival_s >= 10.0]
    assert 0 < len(measured) < len(results)
    with pytest.raises(ValueError, match="no request comes after a warm-up of 1e\\+06 s"):
        run_task(Task(group="", variant="", spec=msgspec.structs.replace(late, warm_up_s=1e6)))

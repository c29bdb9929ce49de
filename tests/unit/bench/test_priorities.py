"""A share of the requests of a higher class: who they are, who is told, what is measured of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bench.measure.measures import CLASS_TIMES, check_measure
from bench.run.simulated import Done, Task, run_task
from bench.run.spec import RunSpec, with_values
from bench.run.workload import requests_of
from bench.show.priorities import priorities_table
from bench.workload.priorities import HIGH

CROWDED = with_values(
    RunSpec(),
    {
        "dataset": "power-law",
        "shape": "short-short",
        "nodes": 2,
        "requests": 400,
        "rate_per_s": 16.0,
        "high_share": 0.1,
        "max_num_seqs": 16,
    },
)


def run(**values: Any) -> Done:
    return run_task(Task(group="", variant="", spec=with_values(CROWDED, values)), keep_results=True)


def test_the_same_requests_are_high_whatever_the_rate() -> None:
    slow, fast = (requests_of(msgspec.structs.replace(CROWDED, rate_per_s=rate)) for rate in (1.0, 50.0))
    high = [item.request_id for item in slow if item.priority == HIGH]
    assert high == [item.request_id for item in fast if item.priority == HIGH]
    assert 20 <= len(high) <= 60
    assert not any(item.priority for item in requests_of(msgspec.structs.replace(CROWDED, high_share=0.0)))


def test_runs_without_priorities_are_the_runs_of_before() -> None:
    plain = msgspec.structs.replace(CROWDED, high_share=0.0)
    assert plain.key != CROWDED.key
    blind, sighted = run(high_share=0.0), run(router={"priority": {"weight": 1.0}}, high_share=0.0)
    assert [r.e2e_s for r in blind.results] == [r.e2e_s for r in sighted.results]


def test_a_blind_run_tells_the_classes_apart_and_nobody_else_does() -> None:
    blind, plain = run(priority_blind=True), run(high_share=0.0)
    assert [r.e2e_s for r in blind.results] == [r.e2e_s for r in plain.results]
    for what in CLASS_TIMES:
        for statistic in ("mean", "p99"):
            for priority in (HIGH, 0):
                name = f"{what}_{statistic}_s_of_priority_{priority}"
                check_measure(name)
                assert blind.line.measures[name] >= 0.0
    with pytest.raises(ValueError, match="unknown measure"):
        check_measure("goodput_share_of_priority_-1")


@pytest.mark.parametrize("scheduling", ["fcfs", "priority"])
@pytest.mark.parametrize("policy", ["min_total_latency", "llumnix_freeness"])
def test_high_requests_are_served_better_in_a_crowd(policy: str, scheduling: str) -> None:
    name = f"e2e_mean_s_of_priority_{HIGH}"
    told, blind = run(policy=policy, scheduling_policy=scheduling), run(policy=policy, priority_blind=True)
    assert told.line.measures[name] < blind.line.measures[name]
    assert len(told.results) == len(blind.results) == 400


def test_the_table_has_a_row_for_each_class_and_is_there_only_where_there_are_several() -> None:
    table = priorities_table([run().line])
    assert table is not None
    assert [*table.columns[3].cells] == [str(HIGH), "0"]
    assert priorities_table([run(high_share=0.0).line]) is None

"""A node's timeline: nothing overlaps, every request is there from its arrival to its end."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import pytest

from bench.measure.results import RequestResult
from bench.show.timeline import placed_on, steps_of, timeline
from bench.simcluster import Delays, NodeSpec, SimCluster
from bench.workload.item import WorkloadItem
from gateway.core.router import RouterConfig
from simcore.cost.shipped import load_shipped
from simcore.types import EngineConfig, Outcome

CONFIG = EngineConfig(model="llama-2-7b", max_num_seqs=8, max_num_batched_tokens=128, num_blocks=60)
SPECS = [NodeSpec(node_id=f"n{i}", config=CONFIG, step_time=load_shipped("a30/llama-2-7b")) for i in range(2)]
DELAYS = Delays()


@pytest.fixture(scope="module")
def results() -> list[RequestResult]:
    items = [
        WorkloadItem(request_id=f"r{i}", arrival_s=0.05 * i, prompt_tokens=20 + 7 * i % 300, output_tokens=5 + i % 90)
        for i in range(120)
    ]
    return SimCluster(SPECS, RouterConfig(policy="round_robin"), DELAYS).run(items).results


def document(results: list[RequestResult]) -> dict[str, Any]:
    placed = placed_on(results, "n0", network_one_way_s=DELAYS.network_one_way_s)
    return timeline("n0", steps_of(SPECS[0], placed))


def test_the_replayed_node_ends_its_requests_when_the_run_did(results: list[RequestResult]) -> None:
    ends: dict[str, float] = {}
    for event in document(results)["traceEvents"]:
        if event["ph"] == "X" and "request" in event["args"]:
            name = event["args"]["request"]
            ends[name] = max(ends.get(name, 0.0), (event["ts"] + event["dur"]) / 1e6)
    mine = [row for row in results if row.node_id == "n0"]
    assert len(mine) == 60
    for row in mine:
        assert row.outcome is Outcome.STOP
        assert row.e2e_s is not None
        told = ends[row.request_id] + DELAYS.network_one_way_s
        assert row.arrival_s + row.e2e_s == pytest.approx(told, abs=0.002)


def test_slices_of_a_row_do_not_overlap_and_counters_are_counts(results: list[RequestResult]) -> None:
    rows: dict[int, list[tuple[float, float]]] = defaultdict(list)
    phases = set()
    for event in document(results)["traceEvents"]:
        if event["ph"] == "X":
            rows[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
            phases.add(event["name"])
        elif event["ph"] == "C":
            (value,) = event["args"].values()
            assert 0 <= value <= CONFIG.num_blocks
    assert {"waiting", "prefill", "decode", "preempted"} <= phases, "the node was tight enough to show all phases"
    for slices in rows.values():
        slices.sort()
        for (_, end), (start, _) in itertools.pairwise(slices):
            assert start >= end - 1e-3


def test_an_idle_node_has_an_empty_timeline() -> None:
    events = timeline("n0", steps_of(SPECS[0], []))["traceEvents"]
    assert all(event["ph"] == "M" for event in events)

"""Kernels run by Python give what they give compiled, to the last bit: a daemon answers by them until it has others."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcore.lookahead import WhatIf
from simcore.tracing import NOBODY, TracingNode
from simcore.types import Candidate, LengthBelief
from tests.conformance.scheduler_workloads import Workload, random_workload, with_speculation
from tests.helpers.interpreted import by_python
from tests.property.test_simcore import MODEL, RUNS, SHARED_OR_NOT, as_sim, candidate_for, played, shown

BELIEFS = (LengthBelief((1, 5, 9, 40)), LengthBelief((30,)), LengthBelief((2, 70, 200)))


def told(workload: Workload, steps: int, seed: int, *, jumping: bool) -> list[object]:
    """All that a node tells of itself and its future after so many steps of a workload, and some more."""
    rng = random.Random(seed)
    node = played(workload, steps)
    snapshot = node.snapshot(node.free_at_s)
    beliefs = {i: rng.choice(BELIEFS) for i in node.requests}
    candidates = [candidate_for(workload.config, rng)]
    candidates += [
        Candidate(request_id=i, prompt_tokens=1, max_output_tokens=1, belief=LengthBelief((1,)), leaving=True)
        for i in list(node.requests)[:2]
    ]
    answers: list[object] = []
    for known in (node, shown(snapshot)):
        what_if = WhatIf("n", workload.config, MODEL, scenarios=4, jumping=jumping)
        with contextlib.suppress(ValueError):
            what_if.rebase_node(known, beliefs, 0.0)
            answers += [*what_if.forecast(candidates), what_if.outlook()]
    deltas = [node.step(node.next_step_s) for _ in "abc" if node.has_work]
    return [snapshot, answers, deltas, node.advance(node.free_at_s + 0.5), node.load(1.0), node.snapshot(1.0)]


def same(workload: Workload, steps: int, seed: int, *, jumping: bool) -> None:
    compiled = told(workload, steps, seed, jumping=jumping)
    with by_python():
        assert told(workload, steps, seed, jumping=jumping) == compiled


@given(SHARED_OR_NOT, st.integers(0, 40), st.integers(0, 1000), st.booleans())
@RUNS
def test_a_node_and_its_future(workload: Workload, steps: int, seed: int, jumping: bool) -> None:
    same(workload, steps, seed, jumping=jumping)


@pytest.mark.parametrize("seed", range(8))
def test_a_busy_node_and_its_future(seed: int) -> None:
    drawn = random_workload(seed, shared_prefixes=seed % 4 > 1, async_scheduling=seed % 2 == 1, requests=60)
    same(with_speculation(drawn) if seed > 5 else drawn, 60, seed, jumping=True)


def test_a_node_of_a_simulated_cluster() -> None:
    workload = random_workload(1, shared_prefixes=True, requests=40)

    def run() -> list[object]:
        node = TracingNode("n", workload.config, MODEL, interval_s=0.05, lengths_known=True)
        for actions in workload.actions.values():
            for request in actions.arrivals:
                node.add(as_sim(request, workload.config), node.free_at_s)
        seen: list[object] = []
        while node.has_work:
            seen.append(node.run(node.next_step_s + 0.2, keep_from_s=0.0, watched=NOBODY, mark=0))
            seen.append(node.read(node.free_at_s, 0.0))
        return seen

    compiled = run()
    assert len(compiled) > 40
    with by_python():
        assert run() == compiled

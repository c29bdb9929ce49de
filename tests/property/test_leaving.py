"""What a what-if says of a request that might leave is what happens on the node with it, and when it is aborted."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcore.compiled import layout as at
from simcore.lookahead import WhatIf
from simcore.node import SimNode
from simcore.types import Candidate, Forecast, LengthBelief
from tests.conformance.scheduler_workloads import Workload
from tests.conformance.workload_strategies import workloads
from tests.helpers.step_time import SECOND
from tests.property.test_simcore import (
    MODEL,
    RUNS,
    SHARED_OR_NOT,
    candidate_for,
    exact_beliefs,
    lived_through,
    played,
    rounded,
    shown,
)
from tests.unit.simcore.test_lookahead import known
from tests.unit.simcore.test_node import node, request


def leaving(request_id: str) -> Candidate:
    belief = LengthBelief((1,))
    return Candidate(request_id=request_id, prompt_tokens=1, max_output_tokens=1, belief=belief, leaving=True)


def next_token_s(simulated: SimNode, request_id: str) -> float:
    """When the request's next token is there."""
    copy = simulated.copy()
    before = copy.output_tokens(request_id)
    while copy.output_tokens(request_id) == before:
        copy.step(copy.next_step_s)
    return copy.free_at_s


@given(SHARED_OR_NOT, st.integers(0, 40), st.randoms(use_true_random=False))
@settings(RUNS, max_examples=200)
def test_what_staying_and_leaving_come_to_is_what_then_happens(
    workload: Workload, steps: int, rng: random.Random
) -> None:
    """Synchronous and asynchronous, prompts distinct and shared, running and waiting. (Jumping only counts shared
    blocks.)"""
    simulated = played(workload, steps)
    now_s = max(0.0, simulated.free_at_s - 0.003)
    what_if = WhatIf("n", workload.config, MODEL, jumping=not simulated.shares_blocks and rng.random() < 0.7)
    what_if.rebase_node(simulated, exact_beliefs(simulated), now_s)
    if rng.random() < 0.5:
        what_if.forecast([candidate_for(workload.config, rng)])
    asked = rng.sample(sorted(simulated.requests), min(4, len(simulated.requests)))
    stayed = lived_through(simulated, None, now_s)
    for request_id, answer in zip(asked, what_if.forecast([*map(leaving, asked)]), strict=True):
        without = simulated.copy()
        without.abort(request_id)
        left = lived_through(without, None, now_s)
        end_s = stayed["finished", request_id][0]
        gained_s = [
            stayed[key][0] - times[0] for key, times in left.items() if key[0] == "finished" and key[1] != request_id
        ]
        assert len(gained_s) == len(simulated.requests) - 1
        assert answer.request_id == request_id
        assert answer.e2e_s.mean == pytest.approx(end_s - now_s, rel=1e-9)
        assert answer.ttft_s.mean == pytest.approx(next_token_s(simulated, request_id) - now_s, rel=1e-9)
        assert answer.harm_s.mean == pytest.approx(sum(gained_s), rel=1e-9, abs=1e-9)
        preempted = [t for (kind, _), times in stayed.items() if kind == "preempted" for t in times if t <= end_s]
        assert answer.preemptions == len(preempted)
        assert answer.clear_start_s.p90 == 0.0


@given(workloads(), st.integers(0, 40), st.randoms(use_true_random=False))
@RUNS
def test_jumping_and_stepping_say_the_same_of_one_that_leaves(
    workload: Workload, steps: int, rng: random.Random
) -> None:
    """Also with lengths that are not known, and whatever else is asked with it."""
    simulated = played(workload, steps)
    if not simulated.requests:
        return
    other = candidate_for(workload.config, rng)
    asked = [leaving(rng.choice(sorted(simulated.requests))), other, leaving(rng.choice(sorted(simulated.requests)))]
    beliefs = {i: LengthBelief((1, 5, 9, 40)) for i in simulated.requests}
    answers: list[list[Forecast]] = []
    for jumping in (True, False):
        what_if = WhatIf("n", workload.config, MODEL, scenarios=4, jumping=jumping)
        what_if.rebase_node(shown(simulated.snapshot(0.0)), beliefs, 0.0)
        (alone,) = what_if.forecast([other])
        answers.append(what_if.forecast(asked))
        assert answers[-1][1] == alone
    for jumped, stepped in zip(*answers, strict=True):
        assert rounded(jumped) == pytest.approx(rounded(stepped), rel=1e-9, abs=1e-9)
        if jumped.request_id != other.request_id:
            path = [*jumped.kv_headroom_path, jumped.kv_headroom_blocks]
            assert path == sorted(path, reverse=True), "none is lower than the fewest that are free on the whole way"


@given(workloads(), st.integers(0, 40), st.randoms(use_true_random=False))
@RUNS
def test_one_that_leaves_is_asked_of_the_node_as_it_is_now(workload: Workload, steps: int, rng: random.Random) -> None:
    """Though the future without a candidate may be one that was computed before and carried on."""
    simulated = played(workload, steps)
    old = WhatIf("n", workload.config, MODEL)
    lengths = exact_beliefs(simulated)
    old.rebase_node(simulated, lengths, simulated.free_at_s)
    old.forecast([candidate_for(workload.config, rng)])
    for _ in range(12):
        if not simulated.has_work:
            return
        simulated.step(simulated.next_step_s)
        held = {i: lengths[i] for i in simulated.requests}
        if not old.reuse_baseline(simulated, simulated.free_at_s):
            old.rebase_node(simulated, held, simulated.free_at_s)
        if not held or rng.random() < 0.5:
            continue
        new = WhatIf("n", workload.config, MODEL)
        new.rebase_node(simulated, held, simulated.free_at_s)
        asked = leaving(rng.choice(sorted(held)))
        assert old.forecast([asked]) == new.forecast([asked])


@pytest.mark.parametrize("jumping", [True, False])
def test_blocks_that_others_hold_stay_held_when_one_leaves(jumping: bool) -> None:
    """Counted or told apart: what a leaver shares is free when the last who holds it has gone, whoever came first."""
    config = msgspec.structs.replace(
        node().config, max_num_seqs=4, max_num_batched_tokens=64, block_size_tokens=4, num_blocks=15
    )
    simulated = node(config)
    for name, tokens in (("a", 12), ("b", 8)):
        simulated.add(msgspec.structs.replace(request(name, 17, tokens), block_hashes=(1, 2, 3, 4)), 0.0)
        simulated.step(simulated.next_step_s)
    simulated.add(request("d", 1, 14), 2.0)
    simulated.step(2.0)
    simulated.add(request("c", 38, 2), 3.0)
    what_if = WhatIf("n", config, SECOND, jumping=jumping)
    what_if.rebase_node(simulated, {"a": known(12), "b": known(8), "c": known(2), "d": known(14)}, 3.0)
    # c wants 10 of 15 blocks, d has 3 in the end, a and b share 4 of their 6 to 8: c starts when both have gone: 9 s
    # from now, when a ends; without a 6 s from now, with b.
    a, b = what_if.forecast([leaving("a"), leaving("b")])
    assert (a.e2e_s.mean, b.e2e_s.mean) == (9.0, 6.0)
    assert (a.harm_s.mean, b.harm_s.mean) == (3.0, 0.0)


@given(SHARED_OR_NOT, st.integers(0, 40), st.randoms(use_true_random=False))
@settings(RUNS, max_examples=120)
def test_the_outlook_is_what_then_happens(workload: Workload, steps: int, rng: random.Random) -> None:
    """The first preemption, and when the first that waits is admitted."""
    simulated = played(workload, steps)
    now_s = max(0.0, simulated.free_at_s - 0.003)
    what_if = WhatIf("n", workload.config, MODEL, jumping=not simulated.shares_blocks and rng.random() < 0.7)
    what_if.rebase_node(simulated, exact_beliefs(simulated), now_s)
    outlook = what_if.outlook()
    waiting = simulated.lists[at.WAITING, : simulated.head[at.N_WAITING]]
    head = simulated.ids[waiting[-1]] if len(waiting) else ""
    copy, preempted_s, starts_s = simulated.copy(), [-1.0], [0.0]
    while copy.has_work:
        began_s = copy.next_step_s
        events = copy.advance(began_s + 1e-9)
        preempted_s += [began_s - now_s for event in events if event.kind == "preempted"]
        if head and (copy.computed_tokens(head) or head not in copy.requests):
            starts_s.append(began_s - now_s)
    assert outlook.preemption_ahead_s == pytest.approx(preempted_s[min(1, len(preempted_s) - 1)], abs=1e-9)
    assert outlook.head_waits_s == pytest.approx(starts_s[1] if head else 0.0, abs=1e-9)

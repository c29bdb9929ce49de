"""Laws of the simulation core over random requests, steps and aborts."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simcore.compiled import layout as at
from simcore.cost.step_time import StepTimeModel
from simcore.lookahead import WhatIf
from simcore.node import SimNode, SimRequest
from simcore.trace import TraceSnapshot
from simcore.types import Candidate, EngineConfig, Forecast, LengthBelief, RequestState
from tests.conformance.named_workloads import NAMED
from tests.conformance.scheduler_workloads import (
    SHAREGPT_400,
    Actions,
    OracleRequest,
    Workload,
    first_difference,
    random_workload,
    scheduled,
    sharegpt_at_once,
    with_speculation,
)
from tests.conformance.simulated_schedulers import Compiled, Reference
from tests.conformance.workload_strategies import configs, workloads

MODEL = StepTimeModel(
    name="uneven",
    constant_s=0.01,
    prefill_work_s_per_token2=1e-8,
    decode_kv_s_per_token=1e-6,
    per_seq_s=1e-5,
    prefill_step_s=0.001,
    prefill_seq_s=1e-4,
    host_s=0.011,
    host_seq_s=5e-5,
    host_prefill_seq_s=1e-3,
    dense_knots_tokens=(1, 64, 512),
    dense_knots_s=(0.001, 0.002, 0.05),
)
"""Slower on the host in some steps, on the device in others."""
RUNS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(workloads(shared_prefixes=True))
@settings(RUNS, max_examples=150)
def test_compiled_steps_are_those_of_the_reference(workload: Workload) -> None:
    """Tokens, preemptions, finishes, order of both queues and free blocks; invariants checked at every operation."""
    odds = workload.draft_odds
    ours = Compiled(workload.config, draft_odds=odds)
    difference = first_difference(workload, ours, Reference(workload.config, draft_odds=odds))
    assert not difference, difference


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("name", sorted(NAMED))
def test_compiled_steps_of_named_workloads_are_those_of_the_reference(name: str, asynchronous: bool) -> None:
    workload = scheduled(NAMED[name], asynchronous=asynchronous)
    odds = workload.draft_odds
    ours = Compiled(workload.config, draft_odds=odds)
    difference = first_difference(workload, ours, Reference(workload.config, draft_odds=odds))
    assert not difference, difference


@pytest.mark.parametrize("seed", range(20))
def test_compiled_steps_are_those_of_the_reference_on_longer_runs(seed: int) -> None:
    workload = random_workload(seed, shared_prefixes=seed % 4 > 1, async_scheduling=seed % 2 == 1, requests=60)
    difference = first_difference(workload, Compiled(workload.config), Reference(workload.config))
    assert not difference, f"seed {seed}: {difference}"


@pytest.mark.parametrize("seed", range(40))
def test_compiled_steps_are_those_of_the_reference_with_speculative_decoding(seed: int) -> None:
    drawn = random_workload(seed, shared_prefixes=seed % 4 > 1, async_scheduling=seed % 2 == 1, requests=30)
    workload = with_speculation(drawn)
    odds = workload.draft_odds
    ours = Compiled(workload.config, draft_odds=odds)
    difference = first_difference(workload, ours, Reference(workload.config, draft_odds=odds))
    assert not difference, f"seed {seed}: {difference}"


def test_400_sharegpt_requests_preempt_as_often_as_in_vllm(data_dir: Path) -> None:
    workload = sharegpt_at_once(data_dir, 400)
    node = SimNode("n", workload.config, MODEL)
    for r in workload.actions[0].arrivals:
        node.add(as_sim(r, workload.config), 0.0)
    node.advance(math.inf)
    node.check()
    assert (node.seq, node.load(0.0).preemptions_total) == SHAREGPT_400


def played(workload: Workload, steps: int) -> SimNode:
    """The node after that many steps of a workload."""
    node = SimNode("n", workload.config, MODEL, draft_odds=workload.draft_odds)
    for step in range(steps):
        actions = workload.actions.get(step, Actions())
        for r in actions.arrivals:
            node.add(as_sim(r, workload.config), node.free_at_s)
        for request_id in actions.aborts:
            node.abort(request_id)
        if node.has_work:
            node.step(node.next_step_s)
    return node


def as_sim(r: OracleRequest, config: EngineConfig) -> SimRequest:
    return SimRequest(
        request_id=r.request_id,
        prompt_tokens=r.prompt_tokens,
        output_tokens=r.output_tokens,
        max_output_tokens=r.most_tokens,
        priority=r.priority,
        block_hashes=r.block_hashes(config.block_size_tokens),
        adapter=r.adapter,
    )


def candidate_for(config: EngineConfig, rng: random.Random) -> Candidate:
    longest = config.longest_tokens
    prompt = rng.randint(1, longest - 1)
    output = rng.randint(1, min(80, longest - prompt))
    model = rng.choice(("", "a", "c", "d")) if config.max_loras else ""
    return Candidate(
        request_id="candidate",
        prompt_tokens=prompt,
        max_output_tokens=output,
        belief=LengthBelief((output,)),
        priority=rng.randint(0, 2),
        block_hashes=hashes_for(config, rng, prompt, model),
        model=model,
    )


def hashes_for(config: EngineConfig, rng: random.Random, prompt_tokens: int, adapter: str) -> tuple[int, ...]:
    """Of a prompt that begins like those of a workload's group, or like none."""
    group, shared = rng.choice(("", "g1", "g2")), rng.choice((3, 17, 500))
    like = OracleRequest(
        request_id="r999",
        prompt_tokens=prompt_tokens,
        output_tokens=1,
        shared_prefix=group,
        shared_tokens=shared,
        adapter=adapter,
    )
    return like.block_hashes(config.block_size_tokens) if group else ()


def sim_request(candidate: Candidate) -> SimRequest:
    """A candidate of known length as it arrives."""
    return SimRequest(
        request_id=candidate.request_id,
        prompt_tokens=candidate.prompt_tokens,
        output_tokens=candidate.belief.atoms_tokens[0],
        max_output_tokens=candidate.max_output_tokens,
        priority=candidate.priority,
        block_hashes=candidate.block_hashes,
        adapter=candidate.model,
    )


def lived_through(node: SimNode, candidate: Candidate | None, now_s: float) -> dict[tuple[str, str], list[float]]:
    """Times of all events of a copy of the node that gets the candidate and runs to the end."""
    copy = node.copy()
    if candidate is not None:
        copy.add(sim_request(candidate), now_s)
    times: dict[tuple[str, str], list[float]] = {}
    for kind, request_id, at_s in copy.advance(math.inf):
        times.setdefault((kind, request_id), []).append(at_s)
    copy.check()
    assert copy.load(now_s).free_blocks == copy.config.num_blocks, "blocks are left over when all is done"
    return times


def shown(snapshot: TraceSnapshot) -> SimNode:
    """The engine that a trace shows, at a step boundary. How long its answers are is for beliefs to say."""
    return SimNode.from_snapshot(snapshot, "n", MODEL, output_tokens=lambda s: s.max_output_tokens, free_at_s=0.0)


def exact_beliefs(node: SimNode) -> Mapping[str, LengthBelief]:
    return {i: LengthBelief((a.request.output_tokens,)) for i, a in node.requests.items()}


SHARED_OR_NOT = workloads() | workloads(shared_prefixes=True)


@given(SHARED_OR_NOT, st.integers(0, 40), st.randoms(use_true_random=False))
@settings(RUNS, max_examples=120)
def test_a_what_if_is_what_then_happens(workload: Workload, steps: int, rng: random.Random) -> None:
    """Synchronous and asynchronous, prompts distinct and shared. (Jumping only counts shared blocks.)"""
    node = played(workload, steps)
    now_s = max(0.0, node.free_at_s - 0.003)
    candidate = candidate_for(workload.config, rng)
    what_if = WhatIf("n", workload.config, MODEL, jumping=not node.shares_blocks and rng.random() < 0.7)
    what_if.rebase_node(node, exact_beliefs(node), now_s)
    answer = what_if.forecast([candidate])[0]
    without = lived_through(node, None, now_s)
    with_it = lived_through(node, candidate, now_s)
    end_s = with_it["finished", "candidate"][0]
    harm_s = sum(with_it[key][0] - times[0] for key, times in without.items() if key[0] == "finished")
    assert answer.e2e_s.mean == pytest.approx(end_s - now_s, rel=1e-9)
    assert answer.ttft_s.mean == pytest.approx(with_it["first_token", "candidate"][0] - now_s, rel=1e-9)
    assert answer.harm_s.mean == pytest.approx(harm_s, rel=1e-9, abs=1e-9)
    preempted = [t for (kind, _), times in with_it.items() if kind == "preempted" for t in times if t <= end_s]
    assert answer.preemptions == len(preempted)


def rounded(answer: Forecast) -> list[float]:
    spread = (answer.ttft_s, answer.tpot_s, answer.e2e_s, answer.harm_s, answer.clear_start_s)
    counts = (answer.preemptions, answer.preemption_probability, answer.kv_headroom_blocks)
    return [*(x for q in spread for x in (q.mean, q.p50, q.p90)), *counts]


@given(workloads(), st.integers(0, 40), st.randoms(use_true_random=False))
@RUNS
def test_jumping_and_stepping_answer_alike(workload: Workload, steps: int, rng: random.Random) -> None:
    """Also with lengths that are not known, and for engines that plan ahead."""
    node = played(workload, steps)
    candidate = candidate_for(workload.config, rng)
    beliefs = {i: LengthBelief((1, 5, 9, 40)) for i in node.requests}
    answers = []
    for jumping in (True, False):
        what_if = WhatIf("n", workload.config, MODEL, scenarios=4, jumping=jumping)
        what_if.rebase_node(shown(node.snapshot(0.0)), beliefs, 0.0)
        answers.append(what_if.forecast([candidate])[0])
    assert rounded(answers[0]) == pytest.approx(rounded(answers[1]), rel=1e-9, abs=1e-9)


@given(workloads(), st.integers(0, 40), st.randoms(use_true_random=False))
@settings(RUNS, max_examples=150)
def test_a_future_carried_on_is_that_computed_anew(workload: Workload, steps: int, rng: random.Random) -> None:
    """Whatever happens on the node meanwhile, and whether lengths turn out as believed or not."""
    node = played(workload, steps)
    truth = rng.random() < 0.7
    lengths = {
        i: b if truth else LengthBelief((b.atoms_tokens[0] + rng.choice((0, 0, 3)),))
        for i, b in exact_beliefs(node).items()
    }
    old = WhatIf("n", workload.config, MODEL)
    now_s = node.free_at_s
    candidate = candidate_for(workload.config, rng)
    old.rebase_node(node, lengths, now_s)
    old.forecast([candidate])
    for step in range(12):
        if node.has_work:
            node.step(node.next_step_s)
        if rng.random() < 0.1:
            come = msgspec.structs.replace(candidate_for(workload.config, rng), request_id=f"new{step}")
            node.add(sim_request(come), node.free_at_s)
            lengths[come.request_id] = come.belief
        if rng.random() < 0.05 and node.requests:
            node.abort(rng.choice(sorted(node.requests)))
        now_s = max(now_s, node.free_at_s - rng.choice((0.0, 0.003)))
        held = {i: lengths[i] for i in node.requests}
        new = WhatIf("n", workload.config, MODEL)
        new.rebase_node(node, held, now_s)
        if not old.reuse_baseline(node, now_s):
            old.rebase_node(node, held, now_s)
        (was,), (anew,) = old.forecast([candidate]), new.forecast([candidate])
        assert rounded(was)[:-1] == pytest.approx(rounded(anew)[:-1], rel=1e-9, abs=1e-9), "all but the headroom"
        assert was.trace_seq == anew.trace_seq


def test_a_future_is_carried_on_while_a_candidate_would_wait() -> None:
    config = EngineConfig(model="m", max_num_seqs=2, num_blocks=100, enable_prefix_caching=False)
    node = SimNode("n", config, MODEL)
    for i in range(4):
        node.add(SimRequest(request_id=f"r{i}", prompt_tokens=9, output_tokens=20, max_output_tokens=20), 0.0)
    candidate = Candidate(request_id="c", prompt_tokens=9, max_output_tokens=5, belief=LengthBelief((5,)))
    what_if = WhatIf("n", config, MODEL)
    what_if.rebase_node(node, exact_beliefs(node), 0.0)
    what_if.forecast([candidate])
    carried = []
    while node.has_work:
        node.step(node.next_step_s)
        carried.append(what_if.reuse_baseline(node, node.free_at_s))
    assert carried == [True] * 20 + [False] * 20, "the last two start with the 21st step, and with them whoever comes"


@given(workloads(), st.integers(0, 40), st.randoms(use_true_random=False))
@RUNS
def test_who_comes_when_the_node_is_clear_neither_waits_nor_preempts(
    workload: Workload, steps: int, rng: random.Random
) -> None:
    node = played(workload, steps)
    now_s = node.next_step_s if node.has_work else node.free_at_s
    # Places for LoRA adapters are not foreseen.
    candidate = msgspec.structs.replace(candidate_for(workload.config, rng), model="")
    what_if = WhatIf("n", workload.config, MODEL)
    what_if.rebase_node(node, exact_beliefs(node), now_s)
    answer = what_if.forecast([candidate])[0]
    at_s = now_s + answer.clear_start_s.mean
    # A moment that falls on the boundary between two steps belongs to the later one.
    node.advance(at_s - 1e-9)
    came_s = max(at_s, node.free_at_s)
    with_it = lived_through(node, candidate, came_s)
    assert not [key for key in with_it if key[0] == "preempted"]
    if not answer.clear_start_s.mean:
        assert answer.preemption_probability == 0.0
    node.add(sim_request(candidate), came_s)
    node.step(came_s)
    waiting = [node.ids[slot] for slot in node.lists[at.WAITING, : node.head[at.N_WAITING]].tolist()]
    assert candidate.request_id not in waiting
    # Who waits for a place of an adapter is passed by.
    assert not waiting or workload.config.max_loras
    path = answer.kv_headroom_path
    assert list(path) == sorted(path, reverse=True)
    assert 0 <= path[-1] <= path[0] <= workload.config.num_blocks


@given(SHARED_OR_NOT, st.integers(0, 40), st.randoms(use_true_random=False))
@RUNS
def test_a_request_behind_others_never_makes_them_earlier(workload: Workload, steps: int, rng: random.Random) -> None:
    """FCFS with KV blocks for everybody: one more request harms or does nothing."""
    loose = EngineConfig(
        model="m",
        max_num_seqs=workload.config.max_num_seqs,
        max_num_batched_tokens=workload.config.max_num_batched_tokens,
        num_blocks=5000,
        max_model_len_tokens=workload.config.max_model_len_tokens,
        async_scheduling=workload.config.async_scheduling,
    )
    node = played(Workload(seed=0, config=loose, actions=workload.actions), steps)
    without = lived_through(node, None, node.free_at_s)
    with_it = lived_through(node, candidate_for(workload.config, rng), node.free_at_s)
    for key, times in without.items():
        if key[0] == "finished":
            assert with_it[key][0] >= times[0] - 1e-9, f"{key[1]} finished earlier"


@given(SHARED_OR_NOT, st.integers(0, 40))
@RUNS
def test_steps_one_by_one_and_many_at_once_are_the_same_run(workload: Workload, steps: int) -> None:
    node = played(workload, steps)
    one_by_one = node.copy()
    finished: list[tuple[str, float]] = []
    while one_by_one.has_work:
        delta = one_by_one.step(one_by_one.next_step_s)
        finished.extend((r, delta.end_s) for r in delta.finished)
    events = node.advance(math.inf)
    assert [(r, at_s) for kind, r, at_s in events if kind == "finished"] == finished
    assert [e.at_s for e in events] == sorted(e.at_s for e in events)
    assert node.seq == one_by_one.seq


@st.composite
def odd_snapshots(draw: st.DrawFn) -> TraceSnapshot:
    """States that no engine of ours would show: what a foreign trace, or a lost one, may hold."""
    config = draw(configs())
    states = [
        RequestState(
            request_id=f"r{i}",
            prompt_tokens=draw(st.integers(1, 300)),
            output_tokens=draw(st.integers(0, 100)),
            computed_tokens=draw(st.integers(0, 400)),
            max_output_tokens=draw(st.integers(1, 200)),
            priority=draw(st.integers(0, 2)),
            preemptions=draw(st.integers(0, 2)),
        )
        for i in range(draw(st.integers(0, 12)))
    ]
    running = draw(st.integers(0, len(states)))
    return TraceSnapshot(
        seq=7,
        at_s=0.0,
        config=config,
        running=tuple(states[:running]),
        waiting=tuple(states[running:]),
        free_blocks=draw(st.integers(0, 80)),
    )


@given(odd_snapshots(), st.randoms(use_true_random=False), st.booleans())
@RUNS
def test_an_odd_state_is_refused_or_answered_but_never_hangs(
    snapshot: TraceSnapshot, rng: random.Random, jumping: bool
) -> None:
    what_if = WhatIf("n", snapshot.config, MODEL, scenarios=2, jumping=jumping)
    beliefs = {s.request_id: LengthBelief((2, 60)) for s in (*snapshot.running, *snapshot.waiting)}
    candidate = candidate_for(snapshot.config, rng)
    try:
        what_if.rebase_node(shown(snapshot), beliefs, 0.0)
        answer = what_if.forecast([candidate])[0]
    except ValueError:
        return
    assert 0 < answer.ttft_s.mean <= answer.e2e_s.mean < math.inf

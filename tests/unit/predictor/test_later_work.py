"""What a later prompt is said to cost is what it does cost in a simulated engine."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.core.later_work import DelayCost, LaterWork, WorkSoFar, cost_of, later_of
from simcore.node import SimNode, SimRequest
from simcore.trace import StepBatch
from simcore.types import ExpectedWork
from tests.helpers.simulated import STEP_TIME, cluster_nodes


def end_of(prompt_tokens: int, answer_tokens: int) -> float:
    """When an answer of 300 tokens ends beside which this request comes at its 50th step; 0 tokens: none."""
    (spec,) = cluster_nodes(1)
    node = SimNode("n", spec.config, spec.step_time)
    node.add(SimRequest(request_id="here", prompt_tokens=100, output_tokens=300, max_output_tokens=300), 0.0)
    events = node.advance(1.5)
    if prompt_tokens:
        late = SimRequest(
            request_id="late",
            prompt_tokens=prompt_tokens,
            output_tokens=answer_tokens,
            max_output_tokens=answer_tokens,
        )
        node.add(late, 1.5)
    events += node.advance(1e6)
    return next(event.at_s for event in events if event.request_id == "here" and event.kind == "finished")


@pytest.mark.parametrize("prompt_tokens", [300, 512, 1300, 3000])
def test_a_later_prompt_costs_an_answer_what_it_is_said_to(prompt_tokens: int) -> None:
    (spec,) = cluster_nodes(1)
    cost = cost_of(STEP_TIME, spec.config, prompt_tokens=prompt_tokens, cached_tokens=0)
    assert end_of(prompt_tokens, 1) - end_of(0, 0) == pytest.approx(cost.prefill_s, rel=0.1)


def test_its_decoding_costs_what_it_is_said_to() -> None:
    (spec,) = cluster_nodes(1)
    cost = cost_of(STEP_TIME, spec.config, prompt_tokens=1000, cached_tokens=0)
    decoding_s = end_of(1000, 101) - end_of(1000, 1)
    assert decoding_s == pytest.approx(100 * cost.step_s, rel=0.1)


@given(st.integers(1, 5000), st.integers(0, 6000), st.integers(1, 4000))
def test_a_cost_is_never_below_0_and_grows_with_what_is_not_cached(prompt: int, cached: int, more: int) -> None:
    (spec,) = cluster_nodes(1)
    cost = cost_of(STEP_TIME, spec.config, prompt_tokens=prompt, cached_tokens=cached)
    dearer = cost_of(STEP_TIME, spec.config, prompt_tokens=prompt + more, cached_tokens=cached)
    assert 0.0 <= cost.prefill_s <= dearer.prefill_s
    assert 0.0 < cost.step_s < dearer.step_s


@pytest.mark.parametrize("seed", range(3))
def test_sums_are_those_of_the_requests_since(seed: int) -> None:
    rng = random.Random(seed)
    came = [(rng.uniform(0.0, 100.0), DelayCost(rng.random(), 0.001 * rng.random())) for _ in range(50)]
    came.sort()
    work = WorkSoFar()
    marks = []
    for at_s, cost in came:
        work = work.and_of(cost, at_s)
        marks.append(work)
    since = came[21:]
    assert work.prefill_since_s(marks[20]) == pytest.approx(sum(cost.prefill_s for _, cost in since)), f"seed {seed}"
    by_hand_s = sum(cost.step_s * (120.0 - at_s) / 0.02 for at_s, cost in since)
    assert work.decode_since_s(marks[20], 120.0, 0.02) == pytest.approx(by_hand_s), f"seed {seed}"
    assert work.decode_since_s(work, 120.0, 0.02) == 0.0


@pytest.mark.parametrize("tokens", [1, 64, 100, 512, 700, 1024, 4000])
def test_a_chunk_takes_what_the_step_time_model_says(tokens: int) -> None:
    (spec,) = cluster_nodes(1, max_num_batched_tokens=4096)
    cost = cost_of(STEP_TIME, spec.config, prompt_tokens=tokens, cached_tokens=0)
    chunk = StepBatch(prefill_tokens=tokens, prefill_work_tokens2=0.5 * tokens**2, prefill_seqs=1)
    more_s = STEP_TIME.seconds(chunk) - STEP_TIME.seconds(StepBatch(decode_seqs=1))
    assert cost.prefill_s == pytest.approx(more_s, abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("prompts", [2.0, 5.0, 20.0])
def test_growths_are_the_quantiles_of_what_prompts_of_one_size_bring(prompts: float, seed: int) -> None:
    decode_s, prompt_s = 10.0, 0.2
    rng = random.Random(seed)
    brought = []
    for _ in range(4000):
        count, at = 0, rng.expovariate(prompts)
        while at < 1.0:
            count, at = count + 1, at + rng.expovariate(prompts)
        brought.append(count * prompt_s)
    brought.sort()
    p50, p90 = LaterWork(prompts_per_s=prompts / decode_s, prompt_s=prompt_s).growths(decode_s, 0.02)
    assert decode_s * math.expm1(p50) == pytest.approx(brought[2000], abs=0.5 * prompt_s)
    assert decode_s * math.expm1(p90) == pytest.approx(brought[3600], abs=0.7 * prompt_s)


def test_of_few_long_prompts_the_median_is_none_and_the_p90_one() -> None:
    p50, p90 = LaterWork(prompts_per_s=0.02, prompt_s=1.0).growths(10.0, 0.02)
    assert 10.0 * math.expm1(p50) < 0.05
    assert 0.3 < 10.0 * math.expm1(p90) < 1.2


def test_as_much_work_in_unequal_prompts_comes_as_fewer_longer_ones() -> None:
    (spec,) = cluster_nodes(1)
    equal = ExpectedWork(requests_per_s=2.0, new_tokens_per_s=1000.0, new_tokens2_per_s=500_000.0)
    unequal = ExpectedWork(requests_per_s=2.0, new_tokens_per_s=1000.0, new_tokens2_per_s=2_000_000.0)
    alike, apart = (later_of(work, STEP_TIME, spec.config) for work in (equal, unequal))
    assert alike.prompts_per_s == pytest.approx(2.0)
    assert apart.prompts_per_s == pytest.approx(0.5)
    assert apart.prompt_s > 3.0 * alike.prompt_s
    assert alike.growth_per_s == apart.growth_per_s > 0.0

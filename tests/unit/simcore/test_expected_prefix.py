"""What a prompt will find cached: also what prompts ahead of it are going to leave."""

from __future__ import annotations

import random

import pytest

from simcore.cost.shipped import load_shipped
from simcore.lookahead import WhatIf
from simcore.node import SimNode, SimRequest
from simcore.types import Candidate, EngineConfig, LengthBelief

MODEL = load_shipped("a30/llama-2-7b")
CONFIG = EngineConfig(model="m", max_num_seqs=16, max_num_batched_tokens=512, num_blocks=1500)
SYSTEM = tuple(range(1, 151))
"""Names of 150 blocks, 2,400 tokens."""


def request(name: str, names: tuple[int, ...], tail_tokens: int, output_tokens: int = 50) -> SimRequest:
    return SimRequest(
        request_id=name,
        prompt_tokens=16 * len(names) + tail_tokens,
        output_tokens=output_tokens,
        max_output_tokens=output_tokens,
        block_hashes=names,
    )


def candidate(names: tuple[int, ...], tail_tokens: int = 30, priority: int = 0) -> Candidate:
    return Candidate(
        request_id="new",
        prompt_tokens=16 * len(names) + tail_tokens,
        max_output_tokens=50,
        belief=LengthBelief((50,)),
        priority=priority,
        block_hashes=names,
    )


def busy(*requests: SimRequest, steps: int = 1) -> SimNode:
    node = SimNode("n", CONFIG, MODEL)
    for each in requests:
        node.add(each, 0.0)
    for _ in range(steps):
        node.step(node.next_step_s)
    return node


def test_a_prompt_that_is_being_computed_leaves_all_of_its_blocks() -> None:
    node = busy(request("a", SYSTEM, 100))
    assert node.cached_blocks(SYSTEM, 10_000)[0] == 32
    assert node.expected_blocks(SYSTEM, 10_000) == (150, 150)
    assert node.expected_blocks(SYSTEM, 16 * 150) == (149, 149), "the last token is always computed"
    assert node.expected_blocks((*SYSTEM[:100], 7000), 10_000) == (100, 100)
    assert node.expected_blocks((7000, *SYSTEM), 10_000) == (0, 0)


def test_so_does_one_that_waits() -> None:
    other = tuple(range(5001, 5151))
    node = busy(request("a", other, 0), request("b", SYSTEM, 100))
    assert node.cached_blocks(SYSTEM, 10_000) == (0, 0)
    assert node.expected_blocks(SYSTEM, 10_000) == (150, 150)


def test_under_priority_scheduling_only_one_that_is_ahead() -> None:
    config = EngineConfig(
        model="m", max_num_seqs=16, max_num_batched_tokens=512, num_blocks=1500, scheduling_policy="priority"
    )
    node = SimNode("n", config, MODEL)
    node.add(request("a", tuple(range(5001, 5151)), 0), 0.0)
    node.step(0.0)
    node.add(request("b", SYSTEM, 100), 0.0)
    assert node.expected_blocks(SYSTEM, 10_000, priority=1) == (150, 150)
    assert node.expected_blocks(SYSTEM, 10_000, priority=-1) == (0, 0)


@pytest.mark.parametrize("_turn", range(6))
def test_forecasts_are_those_of_an_engine_that_is_run_step_by_step(_turn: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    families = [tuple(range(1000 * i, 1000 * i + 150)) for i in range(1, 4)]

    def names(i: int) -> tuple[int, ...]:
        shared = rng.choice(families)[: rng.randrange(40, 150)]
        return (*shared, *range(10_000 + 100 * i, 10_000 + 100 * i + rng.randrange(40)))

    requests = [request(f"r{i}", names(i), rng.randrange(1, 60)) for i in range(rng.randrange(2, 9))]
    node = busy(*requests, steps=rng.randrange(1, 6))
    beliefs = {i: LengthBelief((50,)) for i in node.requests}
    asked = [candidate(names(50 + i)) for i in range(4)]
    exact = WhatIf("n", CONFIG, MODEL, jumping=False)
    exact.rebase_node(node, beliefs, node.free_at_s)
    fast = WhatIf("n", CONFIG, MODEL)
    fast.rebase_node(node, beliefs, node.free_at_s)
    for slow, quick in zip(exact.forecast(asked), fast.forecast(asked), strict=True):
        assert quick.ttft_s.mean == pytest.approx(slow.ttft_s.mean, rel=0.02, abs=0.02), f"seed {seed}"
        assert quick.e2e_s.mean == pytest.approx(slow.e2e_s.mean, rel=0.02, abs=0.02), f"seed {seed}"

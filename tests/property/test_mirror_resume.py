"""A node built from a snapshot goes on as the node that the snapshot was taken of."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from simcore.node import SimNode, SimRequest
from simcore.trace import TraceDelta
from simcore.types import EngineConfig
from tests.property.test_mirror import STEP_TIME

CONFIGS = st.builds(
    EngineConfig,
    model=st.just("m"),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(4, 40),
    block_size_tokens=st.sampled_from([1, 4]),
    num_blocks=st.integers(20, 70),
    max_model_len_tokens=st.just(64),
    enable_prefix_caching=st.just(False),
    scheduling_policy=st.sampled_from(["fcfs", "priority"]),
)
REQUESTS = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 24), st.integers(-1, 1), st.integers(0, 6)), max_size=80
)


def comparable(delta: TraceDelta) -> TraceDelta:
    """What a resumed node has no memory of: when its requests arrived."""
    return msgspec.structs.replace(delta, arrived=(), aborted=())


@settings(max_examples=120, deadline=None)
@given(config=CONFIGS, requests=REQUESTS)
def test_a_resumed_node_runs_on_as_the_original(
    config: EngineConfig, requests: list[tuple[int, int, int, int]]
) -> None:
    node = SimNode("n", config, STEP_TIME)
    lengths: dict[str, int] = {}
    now_s = 0.0
    for i, (prompt_tokens, output_tokens, priority, steps) in enumerate(requests):
        now_s += 0.001
        lengths[f"r{i}"] = output_tokens
        request = SimRequest(
            request_id=f"r{i}",
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            max_output_tokens=output_tokens,
            priority=priority,
        )
        try:
            node.add(request, now_s)
        except ValueError:
            continue
        for _ in range(steps):
            if node.has_work:
                now_s = node.step(max(now_s, node.next_step_s)).end_s
    twin = SimNode.from_snapshot(
        node.snapshot(now_s),
        "n",
        STEP_TIME,
        output_tokens=lambda s: lengths[s.request_id],
        free_at_s=node.next_step_s if node.has_work else now_s,
    )
    twin.check()
    assert twin.snapshot(0.0) == node.snapshot(0.0)
    late = SimRequest(request_id="late", prompt_tokens=7, output_tokens=3, max_output_tokens=3)
    for engine in (node, twin):
        engine.add(late, now_s)
    while node.has_work:
        assert comparable(twin.step(node.next_step_s)) == comparable(node.step(node.next_step_s))
        twin.check()
    assert not twin.has_work

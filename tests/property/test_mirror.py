"""The mirror equals the engine after every step, whatever happens to it, and notices every lost delta."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.core.mirror import Applied, NodeMirror
from simcore.cost.step_time import StepTimeModel
from simcore.node import SimNode, SimRequest
from simcore.trace import TraceSnapshot
from simcore.types import EngineConfig

STEP_TIME = StepTimeModel(
    name="test/test",
    constant_s=0.01,
    prefill_work_s_per_token2=0.0,
    decode_kv_s_per_token=0.0,
    per_seq_s=0.0001,
    dense_knots_tokens=(1, 64),
    dense_knots_s=(0.0, 0.01),
)


class Op(NamedTuple):
    kind: Literal["add", "abort", "step", "snapshot", "lose"]
    which: int
    prompt_tokens: int
    output_tokens: int
    priority: int


OPS = st.lists(
    st.builds(
        Op,
        st.sampled_from(["add", "add", "add", "abort", "step", "step", "step", "snapshot", "lose"]),
        st.integers(0, 6),
        st.integers(1, 40),
        st.integers(1, 24),
        st.integers(-1, 1),
    ),
    min_size=40,
    max_size=120,
)
CONFIGS = st.builds(
    EngineConfig,
    model=st.just("m"),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(4, 40),
    block_size_tokens=st.sampled_from([1, 4]),
    num_blocks=st.integers(16, 70),
    max_model_len_tokens=st.just(64),
    enable_prefix_caching=st.booleans(),
    scheduling_policy=st.sampled_from(["fcfs", "priority"]),
    async_scheduling=st.booleans(),
)


def comparable(snapshot: TraceSnapshot) -> TraceSnapshot:
    return msgspec.structs.replace(snapshot, at_s=0.0)


@settings(max_examples=200, deadline=None)
@given(config=CONFIGS, ops=OPS)
def test_the_mirror_equals_the_engine_after_every_step(config: EngineConfig, ops: list[Op]) -> None:
    node = SimNode("n", config, STEP_TIME)
    mirror = NodeMirror(node.snapshot(0.0))
    now_s = 0.0
    lost = False
    lose_next = False
    for op in ops:
        now_s += 0.001
        name = f"r{op.which}"
        if op.kind == "add":
            request = SimRequest(
                request_id=name,
                prompt_tokens=op.prompt_tokens,
                output_tokens=op.output_tokens,
                max_output_tokens=op.output_tokens + (op.which % 2),
                priority=op.priority,
            )
            try:
                node.add(request, now_s)
            except ValueError:
                continue
        elif op.kind == "abort":
            node.abort(name)
        elif op.kind == "snapshot":
            mirror.reset(node.snapshot(now_s))
            lost = False
        elif op.kind == "lose":
            lose_next = True
        elif node.has_work:
            delta = node.step(max(now_s, node.next_step_s))
            now_s = delta.end_s
            if lose_next:
                lose_next, lost = False, True
                continue
            verdict = mirror.apply(delta)
            if lost:
                assert verdict is Applied.GAP
                assert not mirror.synchronised
                mirror.reset(node.snapshot(now_s))
                lost = False
            else:
                assert verdict is Applied.APPLIED
            assert mirror.synchronised
            assert comparable(mirror.snapshot()) == comparable(node.snapshot(now_s))
            assert mirror.apply(delta) is Applied.CONTAINED


@settings(max_examples=50, deadline=None)
@given(config=CONFIGS, ops=OPS)
def test_after_a_gap_nothing_is_applied_until_a_snapshot(config: EngineConfig, ops: list[Op]) -> None:
    node = SimNode("n", config, STEP_TIME)
    mirror = NodeMirror(node.snapshot(0.0))
    for i in range(6):
        node.add(SimRequest(request_id=f"r{i}", prompt_tokens=5, output_tokens=9, max_output_tokens=9), 0.0)
    node.step(0.0)
    before = mirror.snapshot()
    for _ in ops:
        if not node.has_work:
            break
        assert mirror.apply(node.step(node.next_step_s)) is Applied.GAP
        assert mirror.snapshot() == before
    mirror.reset(node.snapshot(1.0))
    assert comparable(mirror.snapshot()) == comparable(node.snapshot(1.0))

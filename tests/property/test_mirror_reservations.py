"""Every request on a node counts exactly once, from its dispatch to its end."""

from __future__ import annotations

from typing import Literal, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from length_model.core.belief import known
from predictor.core.estimator import Estimator
from predictor.core.traced_engine import TracedEngine
from simcore.node import SimNode, SimRequest
from simcore.types import Candidate, EngineConfig, Forecast
from tests.property.test_mirror import STEP_TIME

CONFIG = EngineConfig(
    model="m", max_num_seqs=3, max_num_batched_tokens=16, block_size_tokens=4, num_blocks=18, max_model_len_tokens=60
)


class Op(NamedTuple):
    kind: Literal["dispatch", "deliver", "leave", "step", "lose", "ask"]
    which: int
    prompt_tokens: int
    output_tokens: int


OPS = st.lists(
    st.builds(
        Op,
        st.sampled_from(["dispatch", "dispatch", "deliver", "deliver", "leave", "step", "step", "step", "lose", "ask"]),
        st.integers(0, 9),
        st.integers(1, 30),
        st.integers(1, 12),
    ),
    min_size=20,
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(ops=OPS)
def test_counted_once_from_dispatch_to_end(ops: list[Op]) -> None:
    node = SimNode("n", CONFIG, STEP_TIME)
    traced = TracedEngine("n", CONFIG, STEP_TIME)
    traced.on_snapshot(node.snapshot(0.0), 0.0)
    now_s = 0.0
    on_the_way: dict[str, SimRequest] = {}
    in_engine: set[str] = set()
    named = 0
    aborted_unseen: set[str] = set()
    lost = False
    for op in ops:
        now_s += 0.001
        if op.kind == "dispatch":
            named += 1
            request = SimRequest(
                request_id=f"r{named}",
                prompt_tokens=op.prompt_tokens,
                output_tokens=op.output_tokens,
                max_output_tokens=op.output_tokens,
            )
            candidate = Candidate(
                request_id=request.request_id,
                prompt_tokens=op.prompt_tokens,
                max_output_tokens=op.output_tokens,
                belief=known(op.output_tokens),
            )
            traced.reserve(candidate, now_s=now_s, ttl_s=1e6)
            on_the_way[request.request_id] = request
        elif op.kind == "deliver" and on_the_way:
            name = next(iter(on_the_way))
            node.add(on_the_way.pop(name), now_s)
            in_engine.add(name)
        elif op.kind == "leave" and (everybody := sorted({*on_the_way, *in_engine})):
            name = everybody[op.which % len(everybody)]
            on_the_way.pop(name, None)
            if node.abort(name):
                aborted_unseen.add(name)
            in_engine.discard(name)
            traced.release(name)
        elif op.kind == "ask":
            (answer,) = Estimator(traced).forecast(
                [Candidate(request_id="new", prompt_tokens=5, max_output_tokens=5, belief=known(3))], now_s
            )
            assert isinstance(answer, Forecast)
        elif op.kind == "lose":
            lost = True
        elif op.kind == "step" and node.has_work:
            delta = node.step(max(now_s, node.next_step_s))
            now_s = delta.end_s
            in_engine -= set(delta.finished)
            for name in delta.finished:
                traced.release(name)
            if lost:
                lost = False
                if not node.has_work:
                    traced.on_snapshot(node.snapshot(now_s), now_s)
                continue
            if traced.on_delta(delta, now_s):
                traced.on_snapshot(node.snapshot(now_s), now_s)
            aborted_unseen.clear()
            load = traced.load(now_s)
            assert load is not None
            assert load.running + load.waiting == len(in_engine) + len(on_the_way)
            assert load.reserved == len(on_the_way)
    assert set(traced._beliefs) <= {f"r{i}" for i in range(named + 1)}
    for name in [*on_the_way, *in_engine]:
        node.abort(name)
        traced.release(name)
    traced.on_snapshot(node.snapshot(now_s), now_s)
    assert len(traced.reservations) == 0
    assert traced._beliefs == {}, "beliefs of requests that are gone must not pile up"

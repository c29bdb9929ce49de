"""A forecast is one call of compiled code: it allocates nothing there, and others may run meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Any

from numba.core.runtime import _nrt_python  # type: ignore[attr-defined]
from numba.core.runtime.nrt import rtsys

from simcore.compiled.entry import ENTRIES
from simcore.cost.step_time import StepTimeModel
from simcore.lookahead import WhatIf
from simcore.node import SimNode, SimRequest
from simcore.types import Candidate, EngineConfig, LengthBelief

MODEL = StepTimeModel(
    name="m",
    constant_s=0.01,
    prefill_work_s_per_token2=1e-9,
    decode_kv_s_per_token=1e-7,
    per_seq_s=1e-5,
    dense_knots_tokens=(1, 512),
    dense_knots_s=(0.01, 0.05),
)
BELIEF = LengthBelief((10, 200, 900))


def asked(*, requests: int, scenarios: int) -> WhatIf:
    """What-ifs of a busy node."""
    config = EngineConfig(model="m", max_num_seqs=256, max_num_batched_tokens=512, num_blocks=20_000)
    node = SimNode("n", config, MODEL)
    for i in range(requests):
        node.add(SimRequest(request_id=f"r{i}", prompt_tokens=100, output_tokens=900, max_output_tokens=900), 0.0)
    node.advance(1.0)
    what_if = WhatIf("n", config, MODEL, scenarios=scenarios)
    what_if.rebase_node(node, dict.fromkeys(node.requests, BELIEF), node.free_at_s)
    return what_if


def candidates(n: int) -> list[Candidate]:
    return [Candidate(request_id=f"c{i}", prompt_tokens=50, max_output_tokens=900, belief=BELIEF) for i in range(n)]


def test_compiled_code_allocates_as_much_for_many_candidates_and_scenarios_as_for_one() -> None:
    """Which is the handles of the arrays that it is given, and nothing else."""
    _nrt_python.memsys_enable_stats()
    try:
        counted = set()
        for scenarios, n in ((1, 1), (1, 30), (16, 1), (16, 30)):
            what_if = asked(requests=40, scenarios=scenarios)
            what_if.forecast(candidates(n))
            before = rtsys.get_allocation_stats()
            what_if.forecast(candidates(n))
            after = rtsys.get_allocation_stats()
            counted.add((after.alloc - before.alloc, after.mi_alloc - before.mi_alloc))
        assert len(counted) == 1, counted
    finally:
        _nrt_python.memsys_disable_stats()


def test_other_threads_run_while_a_forecast_is_computed() -> None:
    dispatchers: tuple[Any, ...] = ENTRIES
    assert all(entry.targetoptions["nogil"] for entry in dispatchers)
    what_if = asked(requests=250, scenarios=16)
    many = candidates(40)
    spans: list[tuple[float, float]] = []

    def compute() -> None:
        began_s = time.perf_counter()
        what_if.forecast(many)
        spans.append((began_s, time.perf_counter()))

    for _ in range(50):
        thread = threading.Thread(target=compute)
        seen_s = []
        thread.start()
        while thread.is_alive():
            seen_s.append(time.perf_counter())
        began_s, ended_s = spans[-1]
        margin_s = 0.25 * (ended_s - began_s)
        if any(began_s + margin_s < t < ended_s - margin_s for t in seen_s):
            return
    raise AssertionError("no other thread ran in the middle of any forecast")

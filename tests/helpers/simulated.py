"""Small clusters and workloads for simulated runs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from bench.simcluster import NodeSpec
from bench.workload.item import WorkloadItem
from simcore.cost.step_time import StepTimeModel
from simcore.types import EngineConfig

STEP_TIME = StepTimeModel(
    name="test/small",
    constant_s=0.005,
    prefill_work_s_per_token2=1e-8,
    decode_kv_s_per_token=4e-7,
    per_seq_s=1e-5,
    dense_knots_tokens=(64, 128, 512, 1024),
    dense_knots_s=(0.018, 0.023, 0.09, 0.18),
)
"""Of the order of a 7B model on an A30: 25 ms a decode step, 95 ms for 512 prompt tokens."""


def cluster_nodes(count: int, **config: Any) -> list[NodeSpec]:
    fields = {"max_num_seqs": 48, "max_num_batched_tokens": 512, "enable_prefix_caching": False, **config}
    engine = EngineConfig(model="m", **fields)
    return [NodeSpec(node_id=f"n{i}", config=engine, step_time=STEP_TIME) for i in range(count)]


def poisson(count: int, rate_per_s: float, seed: int = 0) -> list[WorkloadItem]:
    """Many short requests and some long ones, as in conversations."""
    rng = random.Random(seed)
    items, at_s = [], 0.0
    for i in range(count):
        at_s += rng.expovariate(rate_per_s)
        items.append(
            WorkloadItem(
                request_id=f"r{i}",
                arrival_s=at_s,
                prompt_tokens=min(3000, 1 + int(rng.expovariate(1 / 250))),
                output_tokens=min(1000, 1 + int(rng.expovariate(1 / 250))),
            )
        )
    return items


def burst(lengths: Sequence[tuple[int, int]], at_s: float = 1.0) -> list[WorkloadItem]:
    """All at the same moment. `lengths`: prompt and output tokens."""
    return [
        WorkloadItem(request_id=f"r{i}", arrival_s=at_s, prompt_tokens=prompt, output_tokens=output)
        for i, (prompt, output) in enumerate(lengths)
    ]

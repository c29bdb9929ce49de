"""A workload of one's own in one file: one request in ten is a long document, the others are short questions.

    astrolabe bench sweep --axis policy=round_robin,min_total_latency --axis rate=4,8 --seeds 2 \\
        --set dataset=bench/examples/lunch_peak.py --set nodes=4 --set requests=500
"""

from __future__ import annotations

import numpy as np

from bench.workload.item import WorkloadItem


def workload(*, rate_per_s: float | None, requests: int, seed: int) -> list[WorkloadItem]:
    """`requests` of them at `rate_per_s` on average; the same `seed` must give the same ones."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1.0 / (rate_per_s or 1.0), size=requests))
    is_document = rng.random(requests) < 0.1
    return [
        WorkloadItem(
            request_id=f"r{index}",
            arrival_s=float(at_s[index]),
            prompt_tokens=int(rng.integers(1500, 2500) if is_document[index] else rng.integers(20, 200)),
            output_tokens=int(rng.integers(50, 400)),
        )
        for index in range(requests)
    ]

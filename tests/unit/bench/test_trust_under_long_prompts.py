"""Long prompts that come later make answers twice as long; nodes that simulate rightly are trusted all the same."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from bench.simcluster import SimCluster
from bench.workload.item import WorkloadItem
from gateway.core import events as ev
from gateway.core.router import RouterConfig
from tests.helpers.simulated import cluster_nodes


def long_among_short(count: int, rate_per_s: float, seed: int) -> list[WorkloadItem]:
    rng = random.Random(seed)
    at_s, items = 0.0, []
    for i in range(count):
        at_s += rng.expovariate(rate_per_s)
        prompt_tokens = rng.randrange(6000, 18000) if rng.random() < 0.25 else rng.randrange(20, 200)
        items.append(
            WorkloadItem(
                request_id=f"r{i}", arrival_s=at_s, prompt_tokens=prompt_tokens, output_tokens=rng.randrange(2, 120)
            )
        )
    return items


@pytest.mark.parametrize("seed", range(2))
def test_later_prompts_cost_no_node_its_trust(seed: int) -> None:
    distrusted: list[float] = []

    def observe(at_s: float, event: ev.AnyEvent, _: Sequence[ev.AnyAction]) -> None:
        if isinstance(event, ev.LoadNoted) and not event.load.trusted:
            distrusted.append(at_s)

    nodes = cluster_nodes(3, max_model_len_tokens=32768, num_blocks=20000, max_num_batched_tokens=2048)
    cluster = SimCluster(nodes, RouterConfig(policy="min_total_latency", seed=seed), observe=observe)
    cluster.run(long_among_short(900, 2.0, seed))
    assert not distrusted, f"seed {seed}: {len(distrusted)} notes, the first at {distrusted[0]:.1f} s"

"""Prompts that a data set says begin alike: simulated engines take them from their cache, and routers may know."""

from __future__ import annotations

import msgspec
import pytest

from bench.simcluster import NodeSpec, SimCluster
from bench.workload.item import WorkloadItem
from gateway.core.router import RouterConfig
from simcore.cost.shipped import load_shipped
from simcore.types import EngineConfig
from tests.helpers.simulated_gateways import with_gateways

CONFIG = EngineConfig(
    model="llama-3.1-8b", max_num_seqs=32, max_num_batched_tokens=2048, num_blocks=3000, max_model_len_tokens=16_384
)
FAMILIES, BLOCKS, BLOCK_TOKENS = 6, 8, 512


def specs(caching: bool = True) -> list[NodeSpec]:
    config = msgspec.structs.replace(CONFIG, enable_prefix_caching=caching)
    step_time = load_shipped("h100/llama-3.1-8b")
    return [NodeSpec(node_id=f"n{index}", config=config, step_time=step_time) for index in range(3)]


ITEMS = [
    WorkloadItem(
        request_id=f"r{index}",
        arrival_s=0.4 * index,
        prompt_tokens=BLOCKS * BLOCK_TOKENS + 40 + index,
        output_tokens=20,
        prefix_ids=tuple(100 * (index % FAMILIES) + block for block in range(BLOCKS)),
        prefix_block_tokens=BLOCK_TOKENS,
    )
    for index in range(60)
]


def mean_ttft_s(policy: str, *, caching: bool = True, items: list[WorkloadItem] = ITEMS, gateways: int = 1) -> float:
    cluster = SimCluster(specs(caching), RouterConfig(policy=policy))
    if gateways > 1:
        with_gateways(cluster, gateways)
    result = cluster.run(items)
    ttft_s = result.summary().ttft_s
    assert ttft_s is not None
    assert ttft_s.count == len(items)
    return ttft_s.mean


def test_shared_beginnings_are_computed_once_per_node() -> None:
    alone = [msgspec.structs.replace(item, prefix_ids=(), prefix_block_tokens=0) for item in ITEMS]
    shared, without, unnamed = (
        mean_ttft_s("round_robin"),
        mean_ttft_s("round_robin", caching=False),
        mean_ttft_s("round_robin", items=alone),
    )
    assert shared < 0.6 * without
    assert unnamed == pytest.approx(without, rel=0.02)


KNOW_CACHES = ["prefix_affinity", "min_total_latency", "llmd_default", "llmd_affinity", "dynamo_kv", "cache_aware"]
KNOW_CACHES += ["aibrix_prefix", "production_stack", "production_stack_prefix", "planetserve", "lmetric"]


@pytest.mark.parametrize("policy", KNOW_CACHES)
def test_policies_that_know_of_caches_find_them(policy: str) -> None:
    assert mean_ttft_s(policy) < 0.75 * mean_ttft_s("random")


def test_a_gateway_knows_what_others_have_sent() -> None:
    # Six families, five gateways in turn: a gateway by itself would see each family at its sixth request first.
    assert mean_ttft_s("prefix_affinity", gateways=5) < 1.1 * mean_ttft_s("prefix_affinity")

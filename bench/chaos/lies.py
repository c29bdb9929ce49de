"""What wrong forecasts cost against `least_requests`: `python -m bench.chaos.lies` prints it as a table."""

from __future__ import annotations

import functools

from bench.chaos.virtual.scenario import STEP_TIME, Dice
from bench.measure.results import Summary
from bench.simcluster import NodeSpec, SimCluster
from bench.simcluster.world import Lies
from gateway.core.nodes.node import NodeStatus
from gateway.core.router import RouterConfig
from simcore.types import EngineConfig

NODES, REQUESTS, RATE_PER_S = 4, 2000, 9.4
LIES: dict[str, dict[str, float]] = {
    "one node's are three times too high": {"n0": 3.0},
    "one node's are a third": {"n0": 1 / 3},
    "one of each": {"n0": 3.0, "n1": 1 / 3},
    "all nodes', half of them either way": {f"n{i}": 3.0 if i % 2 else 1 / 3 for i in range(NODES)},
}
"""Factors of the lies, per node."""


def run(policy: str, seed: int, lies: dict[str, float]) -> tuple[Summary, dict[str, NodeStatus]]:
    """One simulated run in which these nodes lie from the beginning, and how the router sees its nodes at the end."""
    engine = EngineConfig(model="m", max_num_seqs=48, max_num_batched_tokens=512, enable_prefix_caching=False)
    nodes = [NodeSpec(node_id=f"n{i}", config=engine, step_time=STEP_TIME) for i in range(NODES)]
    cluster = SimCluster(nodes, RouterConfig(policy=policy, seed=seed))
    items = Dice(seed).requests(REQUESTS, RATE_PER_S, prompt_tokens=(250, 3000), output_tokens=(250, 1000))
    world = [(0.0, Lies(node_id=node_id, factor=factor)) for node_id, factor in lies.items()]
    summary = cluster.run(items, world).summary()
    return summary, {node.node_id: node for node in cluster.router.nodes()}


@functools.cache
def least_requests(seed: int) -> Summary:
    return run("least_requests", seed, {})[0]


def cost(seed: int, lies: dict[str, float]) -> tuple[float, float, dict[str, NodeStatus]]:
    """P99 TTFT and E2E of `min_total_latency` under these lies, over those of `least_requests` (ratios)."""
    summary, nodes = run("min_total_latency", seed, lies)
    base = least_requests(seed)
    assert summary.ttft_s is not None
    assert summary.e2e_s is not None
    assert base.ttft_s is not None
    assert base.e2e_s is not None
    return summary.ttft_s.p99 / base.ttft_s.p99, summary.e2e_s.p99 / base.e2e_s.p99, nodes


def main() -> None:
    import click

    click.echo("| forecasts | P99 TTFT | P99 E2E |\n|---|---|---|")
    for name, lies in {"none is wrong": {}, **LIES}.items():
        ratios = [cost(seed, lies)[:2] for seed in range(3)]
        columns = (", ".join(f"{ratio:.2f}" for ratio in column) for column in zip(*ratios, strict=True))
        click.echo(f"| {name} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()

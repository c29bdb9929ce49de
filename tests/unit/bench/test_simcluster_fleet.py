"""A simulated fleet that is mixed, grows and shrinks."""

from __future__ import annotations

import msgspec
import pytest

from bench.simcluster import NodeSpec, SimCluster, SimResult
from bench.simcluster.world import Joins, Leaves, WorldEvent
from bench.workload.item import WorkloadItem
from gateway.core.router import RouterConfig
from simcore.types import Outcome
from tests.helpers.simulated import STEP_TIME, cluster_nodes, poisson


def fast(node_id: str) -> NodeSpec:
    """Twice as fast as the usual node, with blocks of another size."""
    (plain,) = cluster_nodes(1, block_size_tokens=32, num_blocks=600, max_num_seqs=64, enable_prefix_caching=True)
    step_time = msgspec.structs.replace(
        STEP_TIME,
        name="test/fast",
        constant_s=STEP_TIME.constant_s / 2,
        dense_knots_s=tuple(s / 2 for s in STEP_TIME.dense_knots_s),
    )
    return NodeSpec(node_id=node_id, config=plain.config, step_time=step_time)


def run(
    nodes: list[NodeSpec],
    items: list[WorkloadItem],
    world: list[tuple[float, WorldEvent]] | None = None,
    policy: str = "min_total_latency",
) -> tuple[SimCluster, SimResult]:
    """Runs to the end; nothing may be left anywhere."""
    cluster = SimCluster(nodes, RouterConfig(policy=policy))
    result = cluster.run(items, world or [])
    cluster.router.check_quiescent()
    assert cluster.busy_nodes() == []
    assert cluster.free_blocks() == [spec.config.num_blocks for spec in cluster.specs()]
    assert {row.outcome for row in result.results} == {Outcome.STOP}
    assert [row.output_tokens for row in result.results] == [item.output_tokens for item in items]
    return cluster, result


def test_a_mixed_fleet_gives_the_faster_node_more() -> None:
    slow = cluster_nodes(1, enable_prefix_caching=True)
    _, result = run([*slow, fast("fast")], poisson(150, 6.0))
    counts = {name: sum(row.node_id == name for row in result.results) for name in ("n0", "fast")}
    assert counts["fast"] > 1.3 * counts["n0"] > 0


@pytest.mark.parametrize("reverse", [False, True])
def test_nodes_of_different_block_sizes_share_prefixes_each_in_its_own(reverse: bool) -> None:
    """Two sessions of one node each: who comes again finds its blocks cached, whatever their size."""
    items = [
        msgspec.structs.replace(item, prompt_tokens=640, prefix_ids=tuple(range(10)), prefix_block_tokens=64)
        for item in poisson(60, 1.0)
    ]
    specs = [*cluster_nodes(1, enable_prefix_caching=True), fast("fast")]
    _, cached = run(specs[::-1] if reverse else specs, items, policy="round_robin")
    _, fresh = run(
        specs,
        [msgspec.structs.replace(item, prefix_ids=()) for item in items],
        policy="round_robin",
    )
    for name in ("n0", "fast"):
        ttft, without = (
            sum(row.ttft_s or 0.0 for row in result.results if row.node_id == name) for result in (cached, fresh)
        )
        assert ttft < 0.8 * without, name


def test_a_node_that_joins_gets_work_once_it_is_ready() -> None:
    joined = fast("new")
    cluster, result = run(cluster_nodes(1), poisson(120, 6.0), [(4.0, Joins(spec=joined, startup_s=3.0))])
    arrivals_s = [row.arrival_s for row in result.results if row.node_id == "new"]
    assert min(arrivals_s) > 6.9
    assert len(arrivals_s) > 30
    assert [spec.node_id for spec in cluster.specs()] == ["n0", "new"]


def test_a_node_that_leaves_ends_what_it_has_and_gets_nothing_more() -> None:
    cluster, result = run(cluster_nodes(3), poisson(120, 6.0), [(5.0, Leaves(node_id="n1"))])
    on_n1 = [row for row in result.results if row.node_id == "n1"]
    assert on_n1
    assert max(row.arrival_s for row in on_n1) <= 5.0
    assert [spec.node_id for spec in cluster.specs()] == ["n0", "n2"]
    assert [status.node_id for status in cluster.router.nodes()] == ["n0", "n2"]


def test_the_steps_of_a_node_that_left_still_count_and_its_name_is_free() -> None:
    items = poisson(60, 6.0)
    world: list[tuple[float, WorldEvent]] = [
        (3.0, Leaves(node_id="n1")),
        (60.0, Joins(spec=cluster_nodes(2)[1])),
    ]
    _, stayed = run(cluster_nodes(2), items, policy="round_robin")
    cluster, left = run(cluster_nodes(2), items, world, policy="round_robin")
    assert left.steps > 0.5 * stayed.steps
    assert [spec.node_id for spec in cluster.specs()] == ["n0", "n1"]


def test_a_name_that_is_taken_cannot_join() -> None:
    with pytest.raises(ValueError, match="one of that name is here"):
        run(cluster_nodes(1), poisson(5, 5.0), [(0.5, Joins(spec=cluster_nodes(1)[0]))])
    with pytest.raises(ValueError, match="startup_s"):
        Joins(spec=cluster_nodes(1)[0], startup_s=-1.0)

"""Moves in the simulated cluster: nodes that are emptied, stages, cuts, and that what nodes tell comes in time."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import pytest

from bench.simcluster import NodeSpec, SimCluster, SimResult
from bench.simcluster.node import ClusterNode
from bench.simcluster.world import Leaves, WorldEvent
from bench.workload.item import WorkloadItem
from gateway.core import events as ev
from gateway.core.moves.config import MovesConfig, TransferConfig
from gateway.core.router import RouterConfig
from simcore.trace import StepBatch
from simcore.types import Outcome
from tests.helpers.simulated import STEP_TIME, burst, cluster_nodes, poisson

CACHING: dict[str, Any] = {"enable_prefix_caching": True, "num_blocks": 6000}
STEP_S = STEP_TIME.seconds(StepBatch(decode_seqs=1, decode_kv_tokens=2000))


class Watch:
    """When what happened."""

    def __init__(self) -> None:
        self.dispatches: list[tuple[float, ev.Dispatch]] = []
        self.aborts: list[tuple[float, ev.Abort]] = []
        self.last_s = -math.inf

    def __call__(self, at_s: float, event: ev.AnyEvent, actions: Any) -> None:
        assert at_s >= self.last_s, f"{event} came at {at_s}, behind what came at {self.last_s}"
        self.last_s = at_s
        self.dispatches += [(at_s, action) for action in actions if isinstance(action, ev.Dispatch)]
        self.aborts += [(at_s, action) for action in actions if isinstance(action, ev.Abort)]

    @property
    def stages(self) -> list[tuple[float, ev.Dispatch]]:
        return [(at_s, sent) for at_s, sent in self.dispatches if sent.stage]

    @property
    def cuts(self) -> list[tuple[float, ev.Dispatch]]:
        return [(at_s, sent) for at_s, sent in self.dispatches if sent.attempt > 1 and not sent.stage]


def simulate(
    items: list[WorkloadItem],
    world: Sequence[tuple[float, WorldEvent]],
    *,
    nodes: list[NodeSpec] | None = None,
    policy: str = "least_requests",
    **moves: Any,
) -> tuple[SimResult, Watch]:
    watch = Watch()
    config = RouterConfig(policy=policy, moves=MovesConfig(**moves))
    cluster = SimCluster(cluster_nodes(2, **CACHING) if nodes is None else nodes, config, observe=watch)
    result = cluster.run(items, world)
    cluster.router.check_quiescent()
    assert not cluster.busy_nodes()
    for item, row in zip(items, result.results, strict=True):
        assert (row.outcome, row.output_tokens) == (Outcome.STOP, item.output_tokens), row
    return result, watch


def test_a_node_with_48_running_answers_is_empty_within_five_seconds() -> None:
    rng = random.Random(1)
    items = burst([(rng.randint(50, 600), rng.randint(400, 1700)) for _ in range(144)])
    drained_s = 6.0
    nodes = cluster_nodes(3, **CACHING | {"max_num_seqs": 96, "num_blocks": 6000})
    drain = (drained_s, ev.DrainAsked(node_id="n0"))
    result, watch = simulate(items, [drain], nodes=nodes, policy="round_robin")
    left = [at_s for at_s, abort in watch.aborts if abort.node_id == "n0"]
    moved = [row for row in result.results if row.moves]
    assert result.moves is not None
    assert len(left) == len(moved) == result.moves.done == 48
    assert max(left) - drained_s < 5.0
    assert all(row.node_id != "n0" for row in moved)
    assert 0.0 < result.moves.stage_share < 0.5


@pytest.mark.parametrize("output_tokens", [50, 400])
def test_the_client_waits_for_a_step_or_two(output_tokens: int) -> None:
    asked_s = 1.2 + output_tokens * STEP_S
    drain = (asked_s, ev.DrainAsked(node_id="n0"))
    result, watch = simulate(burst([(2000, 600)]), [drain], policy="round_robin")
    (row,) = result.results
    assert (row.moves, row.node_id) == (1, "n1")
    prompts = [sent.resumed.prompt_tokens for _, sent in watch.stages if sent.resumed is not None]
    # All there is, then what was decoded meanwhile.
    assert prompts[0] == pytest.approx(2000 + output_tokens, abs=12)
    assert prompts == sorted(prompts)
    ((_, rest),) = watch.cuts
    assert rest.resumed is not None
    assert rest.resumed.prompt_tokens - prompts[-1] < 32
    assert row.downtime_s is not None
    assert STEP_S < row.downtime_s < 2 * STEP_S


def test_without_a_prefix_cache_the_client_waits_for_all_of_it() -> None:
    drain = (3.0, ev.DrainAsked(node_id="n0"))
    result, watch = simulate(burst([(2000, 600)]), [drain], nodes=cluster_nodes(2), policy="round_robin")
    (row,) = result.results
    assert (row.moves, watch.stages) == (1, [])
    assert row.downtime_s is not None
    assert row.downtime_s > 10 * STEP_S


def test_only_what_was_decoded_meanwhile_is_computed_anew() -> None:
    """By the time that stages take: each finds in the cache what those before it left there."""
    _, watch = simulate(
        burst([(3000, 900)]), [(4.0, ev.MoveAsked(request_id="r0", node_id="n1"))], policy="round_robin"
    )
    began_s = [at_s for at_s, _ in watch.stages]
    whole_s, *_ = [after - before for before, after in itertools.pairwise(began_s)]
    (cut_s, _), (last_s, _) = watch.cuts[0], watch.stages[-1]
    assert whole_s > 10 * STEP_S
    assert cut_s - last_s < 4 * STEP_S


def test_who_is_about_to_end_stays_or_ends() -> None:
    """Moves begun within the last tokens of an answer: it has all its tokens, once, wherever it ended."""
    for tenths in range(60):
        simulate(
            burst([(300, 40), (300, 45)]),
            [(1.9 + tenths * STEP_S / 2, ev.DrainAsked(node_id="n0"))],
            policy="round_robin",
        )


@pytest.mark.parametrize("seed", range(4))
def test_nodes_that_are_emptied_in_turn_lose_nothing(seed: int) -> None:
    """What the router hears is in the order of time, which `Watch` looks after, and answers are whole."""
    items = poisson(80, 8.0, seed)
    world: list[tuple[float, ev.AnyEvent]] = []
    for turn in range(8):
        node_id = f"n{turn % 3}"
        world += [
            (1.0 + turn, ev.DrainAsked(node_id=node_id)),
            (1.9 + turn, ev.DrainAsked(node_id=node_id, undo=True)),
        ]
    result, _ = simulate(items, world, nodes=cluster_nodes(3, **CACHING))
    assert result.moves is not None
    assert result.moves.done > 20


def test_how_far_nodes_run_ahead_at_a_time_changes_nothing_of_moves() -> None:
    def in_steps(node: ClusterNode, stretch_s: float, until_s: float) -> None:
        while node.next_s < until_s:
            ClusterNode.run_until(node, min(until_s, math.nextafter(node.next_s, math.inf) + stretch_s))

    def run(stretch_s: float) -> list[object]:
        cluster = SimCluster(cluster_nodes(3, **CACHING), RouterConfig(policy="llumnix_freeness"))
        for node in cluster._nodes.values():
            node.run_until = partial(in_steps, node, stretch_s)  # type: ignore[method-assign]
        world = [(4.0 + 2 * i, ev.DrainAsked(node_id=f"n{i}")) for i in range(2)]
        result = cluster.run(poisson(60, 4.0), world)
        assert result.moves is not None
        return [*result.results]

    assert run(0.0) == run(0.05) == run(math.inf)


def test_a_scaled_down_node_does_not_wait_for_its_longest_answer() -> None:
    items = burst([(100, 1500)] * 6)
    world: list[tuple[float, WorldEvent]] = [(3.0, Leaves(node_id="n0"))]
    result, watch = simulate(items, world, nodes=cluster_nodes(3, **CACHING), policy="round_robin")
    assert result.moves is not None
    assert result.moves.done == 2
    assert max(at_s for at_s, _ in watch.cuts) < 4.0


# --- KV that is fetched -----------------------------------------------------------------------------------------------

SLOW_LINK = TransferConfig(fixed_s=0.016, s_per_1000_tokens=0.5)


def test_a_transfer_takes_its_time_and_no_step_of_anybody() -> None:
    items = burst([(2000, 600), (500, 600)])
    asked = (3.0, ev.MoveAsked(request_id="r0", node_id="n1"))
    result, watch = simulate(items, [asked], policy="round_robin", transfer=SLOW_LINK)
    moved, bystander = result.results
    (first_s, first), (second_s, _), *_ = watch.stages
    assert first.resumed is not None
    tokens = first.resumed.prompt_tokens // 16 * 16
    assert second_s - first_s == pytest.approx(0.0005 + 0.016 + 0.5 * tokens / 1000 + 0.0002, abs=1e-6)
    assert moved.downtime_s is not None
    assert STEP_S < moved.downtime_s < 2 * STEP_S
    assert result.moves is not None
    assert result.moves.stage_share == 0.0
    alone, _ = simulate([items[1]], [], policy="round_robin")
    assert bystander.ttft_s == pytest.approx(alone.results[0].ttft_s)


def test_a_blocking_transfer_is_what_the_client_waits_for() -> None:
    asked = (3.0, ev.MoveAsked(request_id="r0", node_id="n1"))
    blocking = msgspec.structs.replace(SLOW_LINK, overlap=False)
    result, watch = simulate(burst([(2000, 600)]), [asked], policy="round_robin", transfer=blocking)
    (row,) = result.results
    assert watch.stages == []
    ((_, rest),) = watch.cuts
    assert rest.resumed is not None
    copy_s = SLOW_LINK.seconds(rest.resumed.prompt_tokens)
    assert row.downtime_s is not None
    assert copy_s + STEP_S / 2 < row.downtime_s < copy_s + 1.5 * STEP_S


def test_two_transfers_of_one_node_share_its_link() -> None:
    items = burst([(2000, 600), (10, 600), (2000, 600)])
    world = [(3.0, ev.MoveAsked(request_id=name, node_id="n1")) for name in ("r0", "r2")]
    _, watch = simulate(items, world, policy="round_robin", nodes=cluster_nodes(2, **CACHING), transfer=SLOW_LINK)
    began: dict[str, list[float]] = {}
    for at_s, sent in watch.stages:
        began.setdefault(sent.request_id, []).append(at_s)
    took_s = [times[1] - times[0] for times in began.values()]
    assert max(took_s) == pytest.approx(2 * min(took_s), rel=0.1)


def test_a_request_that_ends_while_its_kv_is_on_the_way_leaves_nothing_behind() -> None:
    for overlap in (True, False):
        transfer = TransferConfig(fixed_s=5.0, overlap=overlap)
        world: list[tuple[float, WorldEvent]] = [
            (2.0, ev.MoveAsked(request_id="r0", node_id="n1")),
            (3.0, ev.ClientGone(request_id="r0")),
        ]
        cluster = SimCluster(
            cluster_nodes(2, **CACHING), RouterConfig(policy="round_robin", moves=MovesConfig(transfer=transfer))
        )
        (row,) = cluster.run(burst([(100, 400)]), world).results
        assert row.outcome is Outcome.CLIENT_LEFT
        cluster.router.check_quiescent()
        assert not cluster.busy_nodes()

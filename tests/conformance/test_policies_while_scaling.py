"""What every policy owes a fleet that shrinks and grows again, run over the registry in virtual time."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from bench.simcluster import SimCluster
from bench.simcluster.perfect import PERFECT
from bench.simcluster.scaling import ScaledFleet, ScaledGroup
from bench.simcluster.start_time import StartTime
from bench.workload.item import WorkloadItem
from gateway.core import events as ev
from gateway.core.decision.policies.registry import policy_names
from gateway.core.queue.queue import HoldConfig
from gateway.core.router import RouterConfig
from gateway.core.scale.config import ScaleConfig, ScaleGroup
from simcore.types import Outcome
from tests.helpers.simulated import cluster_nodes, poisson

SHRINKS_S, GROWS_S, COLD_S = 30.0, 60.0, 5.0
AT_ONCE = ("planetserve", "production_stack")
"""Peers that send a newcomer nearly everything, as published: by requests of the last minute, or by latencies that it
has not shown yet."""
STICKY = ("aibrix_prefix", "aibrix_least_latency", "production_stack_prefix")
"""Peers that stay with the nodes which they know, as published, as long as those are not busy."""


class Seen:
    """Where requests were sent, and who was to leave then."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, str, str]] = []
        self.to_the_leaving: list[str] = []
        self.retired: list[str] = []
        self._leaving: set[str] = set()

    def __call__(self, at_s: float, event: ev.AnyEvent, actions: Sequence[ev.AnyAction]) -> None:
        if isinstance(event, ev.RetirementTold):
            (self._leaving.add if event.retiring else self._leaving.discard)(event.node_id)
            self.retired += [event.node_id] * event.retiring
        elif isinstance(event, ev.NodeRemoved):
            self._leaving.discard(event.node_id)
        for action in actions:
            if isinstance(action, ev.Dispatch):
                self.sent.append((at_s, action.request_id, action.node_id))
                if action.node_id in self._leaving:
                    self.to_the_leaving.append(action.request_id)


def conversations(count: int, rate_per_s: float) -> list[WorkloadItem]:
    """Thirty of them, each with a beginning of its own."""
    return [
        msgspec.structs.replace(
            item,
            session=f"s{index % 30}",
            prompt_tokens=item.prompt_tokens + 128,
            prefix_ids=tuple(100 * (index % 30) + block for block in range(2)),
            prefix_block_tokens=64,
        )
        for index, item in enumerate(poisson(count, rate_per_s, seed=5))
    ]


def shrink_and_grow(policy: str) -> tuple[SimCluster, Seen, list[WorkloadItem]]:
    """Five nodes, then three, then four; every request gets its whole answer."""
    items = conversations(450, 4.5)
    group = ScaleGroup(name="n", min=1, max=5, cold_start_s=COLD_S)
    options = {"plan": {"n": [(0.0, 5), (SHRINKS_S, 3), (GROWS_S, 4)]}}
    seen = Seen()
    node = cluster_nodes(1, enable_prefix_caching=True)[0]
    cluster = SimCluster(
        [],
        RouterConfig(policy=policy, hold=HoldConfig(when="never")),
        observe=seen,
        scaled=ScaledFleet(
            config=ScaleConfig(rule=PERFECT, options=options, groups=(group,), tick_s=1.0),
            groups={"n": ScaledGroup(node=node, start_time=StartTime(low_s=COLD_S, high_s=COLD_S), nodes=5)},
        ),
    )
    result = cluster.run(items)
    cluster.router.check_quiescent()
    assert {row.outcome for row in result.results} == {Outcome.STOP}
    assert [row.output_tokens for row in result.results] == [item.output_tokens for item in items]
    return cluster, seen, items


@pytest.mark.parametrize("policy", policy_names())
def test_nobody_is_sent_to_a_node_that_leaves_and_a_newcomer_gets_its_share(policy: str) -> None:
    cluster, seen, _ = shrink_and_grow(policy)
    assert seen.to_the_leaving == []
    assert len(seen.retired) == 2
    names = {spec.node_id for spec in cluster.specs()}
    assert len(names) == 4
    (newcomer,) = names & set(seen.retired)
    used = {node_id for at_s, _, node_id in seen.sent if SHRINKS_S + 10.0 < at_s < GROWS_S - 5.0}
    staying = {f"n-{i}" for i in range(5)} - set(seen.retired)
    assert used == staying or (policy in STICKY and used < staying), "numbers with gaps are used like any"
    first = [node_id for at_s, _, node_id in seen.sent if GROWS_S + COLD_S + 1.0 < at_s < GROWS_S + COLD_S + 16.0]
    share = first.count(newcomer) / len(first)
    assert share > 0.0 or policy in STICKY
    assert share < 0.7 or policy in AT_ONCE + STICKY, f"{share:.0%} of the requests go to a node that has just come"


def test_conversations_stay_where_they_are_and_only_those_of_the_leaving_move() -> None:
    _, seen, items = shrink_and_grow("session")
    session_of = {item.request_id: item.session for item in items}
    at: dict[str, dict[str, str]] = {"before": {}, "between": {}, "after": {}}
    for at_s, request_id, node_id in seen.sent:
        phase = "before" if at_s < SHRINKS_S - 2.0 else "after" if at_s > GROWS_S + COLD_S + 10.0 else "between"
        if phase != "between" or SHRINKS_S + 2.0 < at_s < GROWS_S - 2.0:
            at[phase].setdefault(session_of[request_id], node_id)
            assert at[phase][session_of[request_id]] == node_id, "in one fleet a conversation has one node"
    gone = set(seen.retired)
    for session, node_id in at["before"].items():
        if node_id not in gone:
            assert at["between"][session] == node_id
            assert at["after"][session] == node_id
    came_back = [s for s, node_id in at["before"].items() if node_id in gone and at["after"][s] == node_id]
    assert came_back, "one of the same name gets its conversations back"


def test_beginnings_that_a_node_had_cached_are_not_believed_of_the_next_one_of_its_name() -> None:
    cluster, seen, _ = shrink_and_grow("prefix_affinity")
    (newcomer,) = {spec.node_id for spec in cluster.specs()} & set(seen.retired)
    statuses = {status.node_id: status for status in cluster.router.nodes()}
    assert statuses[newcomer].alarm == "", "it would be said to claim what it has not"
    assert len([row for row in seen.sent if row[2] == newcomer and row[0] > GROWS_S + COLD_S]) > 5

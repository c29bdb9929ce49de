"""A fleet that does at once what a scaling rule wants, without a router and without a scaler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from gateway.core.nodes.pace import Pace
from gateway.core.scale.config import Objective, ScaleConfig, ScaleGroup
from gateway.core.scale.fleet import FleetState, GroupState, SeenNode, StartingNode
from gateway.core.scale.rule import Wish
from gateway.core.scale.rules.registry import make_rule, rule_class, rule_names
from simcore.types import NodeLoad, NodePace
from tests.helpers.routing import engine_config, node_load, node_view

PACE = NodePace(batches=(1, 256), step_s=(0.02, 0.03), kv_s_per_token=1e-8, prefill_s_per_token=1e-4)

SHIPPED = [name for name in rule_names() if rule_class(name).__module__.startswith("gateway.")]
"""Rules of the product: others may have been made known by whoever was imported before."""

LoadOf = Callable[[str], NodeLoad | None]


def idle(node_id: str) -> NodeLoad | None:
    return node_load(node_id)


def silent(node_id: str) -> NodeLoad | None:
    return None


def overloaded(node_id: str) -> NodeLoad | None:
    """Its cache full, 64 running, 20 waiting."""
    return node_load(
        node_id, running=64, waiting=20, free_blocks=0, waiting_prompt_blocks=200, prefill_tokens=40_000,
        unprocessed_tokens=60_000,
    )  # fmt: skip


STEADY = (idle, silent, overloaded)
"""Loads that are always the same."""


def seen_node(node_id: str, load: NodeLoad | None, **changes: Any) -> SeenNode:
    pace = Pace(PACE, engine_config().max_num_seqs)
    view = node_view(node_id, pace=pace, in_flight=0 if load is None else load.running + load.waiting)
    view = msgspec.structs.replace(view, load=load)
    return SeenNode(**{"node_id": node_id, "state": "up", "view": view, "empty": False, **changes})


def scale_config(rule: str, options: Mapping[str, Any] | None = None, **changes: Any) -> ScaleConfig:
    """One group `n` of 1 to 16 nodes, changes to it, and an objective in all three times."""
    group = ScaleGroup(**{"name": "n", "min": 1, "max": 16, "cold_start_s": 30.0, **changes})
    objective = Objective(ttft_s=3.0, tpot_s=0.1, e2e_s=20.0)
    return ScaleConfig(rule=rule, options=dict(options or {}), groups=(group,), objective=objective)


class RuleWorld:
    """One rule and one group of nodes that follows it: starts take as long as told, who leaves is gone at once."""

    def __init__(
        self,
        config: ScaleConfig,
        *,
        nodes: int,
        load: LoadOf = idle,
        start_s: float = 30.0,
        now_s: float = 1000.0,
    ) -> None:
        self.rule = make_rule(config)
        self.group = config.groups[0]
        self.load = load
        self.start_s = start_s
        self.now_s = now_s
        self.held = 0
        self._made = nodes
        self._nodes: dict[tuple[str, LoadOf], SeenNode] = {}
        self.serving = [f"n-{i}" for i in range(nodes)]
        self.starting: list[StartingNode] = []
        self.log: list[tuple[FleetState, float, Wish | None]] = []
        """What was shown and said."""

    def _node(self, node_id: str) -> SeenNode:
        if self.load not in STEADY:
            return seen_node(node_id, self.load(node_id))
        key = (node_id, self.load)
        if key not in self._nodes:
            self._nodes[key] = seen_node(node_id, self.load(node_id))
        return self._nodes[key]

    def fleet(self) -> FleetState:
        state = GroupState(
            group=self.group,
            serving=tuple(self._node(node_id) for node_id in self.serving),
            draining=(),
            starting=tuple(
                msgspec.structs.replace(node, ready_s=max(node.ready_s, self.now_s)) for node in self.starting
            ),
            start_p50_s=self.group.cold_start_s,
            start_p90_s=self.group.cold_start_s,
        )
        return FleetState(
            now_s=self.now_s, groups=(state,), held=self.held, held_prompt_tokens=100 * self.held,
            held_expected_tokens=100.0 * self.held, oldest_held_s=30.0 if self.held else 0.0,
        )  # fmt: skip

    @property
    def count(self) -> int:
        return len(self.serving) + len(self.starting)

    def tick(self, after_s: float = 5.0) -> Wish | None:
        """Time passes, the rule is asked, and what it says is done."""
        self.now_s += after_s
        for node in [node for node in self.starting if node.asked_s + self.start_s <= self.now_s]:
            self.starting.remove(node)
            self.serving.append(node.node_id)
        fleet = self.fleet()
        wish = self.rule.tick(fleet, self.now_s)
        self.log.append((fleet, self.now_s, wish))
        if wish is not None:
            self._follow(wish)
        return wish

    def _follow(self, wish: Wish) -> None:
        wanted = min(max(wish.wanted.get("n", self.count), self.group.min), self.group.max)
        while self.count < wanted:
            node_id = f"n-{self._made}"
            self._made += 1
            self.starting.append(
                StartingNode(node_id=node_id, asked_s=self.now_s, ready_s=self.now_s + self.group.cold_start_s)
            )
        while self.count > wanted and self.starting:
            self.starting.pop()
        order = [*(node_id for node_id in wish.leave if node_id in self.serving), *sorted(self.serving)]
        for node_id in dict.fromkeys(order):
            if self.count <= wanted:
                break
            self.serving.remove(node_id)

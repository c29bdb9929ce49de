"""So much of the KV cache in use: AIBrix' APA and llm-d's workload variant autoscaler. Pure."""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Annotated, ClassVar, Literal

import msgspec

from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.fleet import FleetState, SeenNode
from gateway.core.scale.rule import Wish
from gateway.core.scale.rules.apportion import provisioned, serving, wish
from gateway.core.scale.rules.paced import Paced
from gateway.core.scale.windows import WindowMax
from simcore.types import NodeLoad

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class KvUtilisationOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `kv_utilisation`. `aibrix_apa` reads the first block of options, `wva` the second."""

    preset: Literal["aibrix_apa", "wva"] = "aibrix_apa"
    """Whose law and defaults."""

    target: Positive = 0.5
    """Share of the KV cache in use (AIBrix' own example; it has no default)."""
    up_fluctuation_tolerance: NotNegative = 0.1
    down_fluctuation_tolerance: NotNegative = 0.1
    max_scale_up_rate: Positive = 2.0
    max_scale_down_rate: Positive = 2.0
    scale_down_cooldown_s: NotNegative = 300.0
    resync_s: Positive = 10.0

    kv_cache_threshold: Positive = 0.8
    """Share of a replica's KV tokens that counts as its capacity."""
    queue_threshold: Annotated[int, msgspec.Meta(ge=1)] = 5
    """Waiting requests at which what a replica has in use is its capacity as measured."""
    scale_up_at: Positive = 0.85
    scale_down_at: Positive = 0.70
    look_back_s: Positive = 60.0
    """Demand is the most seen within it."""
    interval_s: Positive = 15.0
    idle_s: NotNegative = 600.0
    """Without demand for so long the last node may leave."""

    def __post_init__(self) -> None:
        if not self.scale_down_at < self.scale_up_at:
            raise ValueError("scale_down_at is below scale_up_at: between the two nothing changes")


class KvUtilisation(Paced):
    """`aibrix_apa`: outside the tolerance of 10 %, ceil(N x use / target), at most 2 x up and down in a step, down by
    the most of the last 300 s. N is here the ready nodes, those whose use is measured: AIBrix multiplies by all, so
    that nodes that start are asked for again.

    `wva` (final release 0.9.0): capacity k of a replica = the lesser of 80 % of its KV tokens and, where known, the
    tokens it had in use when 5 or more waited (mean of the last 10); demand = tokens in use and waiting, those at the
    gateway too. Up by ceil((demand / 0.85 - supply) / k), starting replicas are supply; down by the whole replicas in
    supply - demand / 0.70. Not below one before 10 minutes without demand.
    """

    name: ClassVar[str] = "kv_utilisation"
    source: ClassVar[str] = "AIBrix e3e10f9 pkg/controller/podautoscaler APA; llm-d workload-variant-autoscaler 0.9.0"
    options_type: ClassVar[type[msgspec.Struct]] = KvUtilisationOptions

    def __init__(self, config: ScaleConfig, options: KvUtilisationOptions, rng: random.Random) -> None:
        aibrix = options.preset == "aibrix_apa"
        super().__init__(options.resync_s if aibrix else options.interval_s)
        self._options = options
        self._most = WindowMax(options.scale_down_cooldown_s if aibrix else options.look_back_s)
        self._in_use_when_queued: deque[float] = deque(maxlen=10)
        self._demand_s: float | None = None

    def decide(self, fleet: FleetState, now_s: float) -> Wish | None:
        nodes = serving(fleet)
        known = [(node, node.view.load) for node in nodes if node.view.load is not None]
        if self._demand_s is None:
            self._demand_s = now_s
        if not known:
            return None
        had = provisioned(fleet)
        asked, seen = (
            self._apa(known, had, now_s) if self._options.preset == "aibrix_apa" else self._wva(known, fleet, now_s)
        )
        if asked < had and len(known) < len(nodes):
            return wish(fleet, had, seen=seen, why="some nodes say nothing of themselves: none leaves")
        return wish(fleet, asked, seen=seen, why=f"{seen['kv_use']:.0%} of the KV cache in use: {asked} nodes")

    def _apa(self, known: list[tuple[SeenNode, NodeLoad]], had: int, now_s: float) -> tuple[int, dict[str, float]]:
        told, ready = self._options, len(known)
        use = sum(_used(load) for _, load in known) / ready
        ratio = use / told.target
        if ratio > 1.0 + told.up_fluctuation_tolerance:
            asked = max(had, min(math.ceil(ready * ratio), math.ceil(told.max_scale_up_rate * ready)))
        elif ratio < 1.0 - told.down_fluctuation_tolerance:
            asked = max(math.ceil(ready * ratio), math.floor(ready / told.max_scale_down_rate))
        else:
            asked = had
        settled = round(self._most.read(asked, now_s))
        return (asked if asked > had else min(settled, had)), {"kv_use": use, "ready_nodes": float(ready)}

    def _wva(
        self, known: list[tuple[SeenNode, NodeLoad]], fleet: FleetState, now_s: float
    ) -> tuple[int, dict[str, float]]:
        told, had = self._options, provisioned(fleet)
        room = in_use = waiting = 0.0
        for node, load in known:
            size = node.view.config.block_size_tokens
            used = size * (load.total_blocks - load.free_blocks)
            if load.waiting >= told.queue_threshold:
                self._in_use_when_queued.append(float(used))
            room += size * load.total_blocks
            in_use += used
            waiting += size * load.waiting_prompt_blocks
        held = fleet.held_prompt_tokens + fleet.held_expected_tokens
        capacity = told.kv_cache_threshold * room / len(known)
        if self._in_use_when_queued:
            measured = sum(self._in_use_when_queued) / len(self._in_use_when_queued)
            capacity = min(capacity, measured) or capacity
        demand = self._most.read(in_use + waiting + held, now_s)
        if demand:
            self._demand_s = now_s
        supply = had * capacity
        need, spare = demand / told.scale_up_at - supply, supply - demand / told.scale_down_at
        asked = had + math.ceil(need / capacity) if need > 0 else had - max(0, math.floor(spare / capacity))
        assert self._demand_s is not None
        if now_s - self._demand_s < told.idle_s:
            asked = max(1, asked)
        seen = {"kv_use": in_use / room, "demand_tokens": demand, "node_capacity_tokens": capacity}
        return asked, seen


def _used(load: NodeLoad) -> float:
    return 1.0 - load.free_blocks / load.total_blocks

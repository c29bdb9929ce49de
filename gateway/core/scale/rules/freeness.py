"""Llumnix' scaling: the mean freeness of the nodes is kept in a band (Sun et al., OSDI '24). Pure."""

from __future__ import annotations

import random
from typing import Annotated, ClassVar

import msgspec

from gateway.core.nodes.freeness import freeness, has_high
from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.fleet import FleetState, SeenNode
from gateway.core.scale.rule import Deaf, Wish
from gateway.core.scale.rules.apportion import provisioned, serving, wish


class FreenessOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `freeness`."""

    scale_up_threshold: float = 10.0
    """Mean freeness below which a node is added (their artifact: 10, and 5 to 85 in figure 15)."""
    scale_down_threshold: float = 60.0
    """Above which one leaves (their artifact: 50 more than the other)."""
    scaling_interval: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    """Seconds that the mean must have been there, and between two changes."""

    def __post_init__(self) -> None:
        if not self.scale_up_threshold < self.scale_down_threshold:
            raise ValueError("scale_up_threshold is below scale_down_threshold: a node is added where little is free")


class Freeness(Deaf):
    """Freeness of a node = (KV blocks free - blocks that waiting prompts need - headroom where requests of high
    priority are) / requests that run, in KV blocks per request; negative when more is wanted than there is room. Mean
    below x for a period: add a node; above y for a period: drain the one with the fewest running requests. x, y = 10,
    60 and the period 10 s, as in the evaluation.

    While a node starts no other is added. Nodes that say nothing of themselves are left out of the mean, and while
    there are any nobody leaves.
    """

    name: ClassVar[str] = "freeness"
    source: ClassVar[str] = "Llumnix (OSDI '24) section 4.4.3; artifact AlibabaPAI/llumnix osdi24ae"
    options_type: ClassVar[type[msgspec.Struct]] = FreenessOptions

    def __init__(self, config: ScaleConfig, options: FreenessOptions, rng: random.Random) -> None:
        self._options = options
        self._below_s: float | None = None
        self._above_s: float | None = None

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        nodes = serving(fleet)
        known = [
            freeness(load, node.view.config, keeps_headroom=has_high(node.view.classes))
            for node in nodes
            if (load := node.view.load) is not None
        ]
        if not known:
            self._below_s = self._above_s = None
            return None
        mean, had = sum(known) / len(known), provisioned(fleet)
        told = self._options
        self._below_s = _since(self._below_s, mean < told.scale_up_threshold, now_s)
        self._above_s = _since(self._above_s, mean > told.scale_down_threshold and len(known) == len(nodes), now_s)
        starting = sum(len(state.starting) for state in fleet.groups)
        seen = {"freeness_blocks_per_request": mean, "starting_nodes": float(starting)}
        if self._below_s is not None and now_s - self._below_s >= told.scaling_interval:
            if starting:
                return wish(fleet, had, seen=seen, why=f"freeness {mean:.1f}: a node starts already")
            self._below_s = None
            return wish(fleet, had + 1, seen=seen, why=f"freeness {mean:.1f} < {told.scale_up_threshold:g}: add one")
        if self._above_s is not None and now_s - self._above_s >= told.scaling_interval:
            self._above_s = None
            why = f"freeness {mean:.1f} > {told.scale_down_threshold:g}: drain the one with fewest running"
            order = [node.node_id for node in sorted(nodes, key=_running)]
            return wish(fleet, had - 1, seen=seen, why=why, leave=order)
        return wish(fleet, had, seen=seen, why=f"freeness {mean:.1f} is within the band, or not out of it for long")


def _since(since_s: float | None, holds: bool, now_s: float) -> float | None:
    if not holds:
        return None
    return now_s if since_s is None else since_s


def _running(node: SeenNode) -> tuple[int, int, str]:
    load = node.view.load
    return (0 if load is None else load.running, node.outstanding, node.node_id)

"""The perfect system: a scaling rule that is told the future. A row of tables, no part of the product. Pure."""

from __future__ import annotations

import bisect
import random
from typing import ClassVar

import msgspec

from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import Deaf, Wish
from gateway.core.scale.rules.registry import register_rule


class PerfectOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `perfect`: what is to come."""

    plan: dict[str, tuple[tuple[float, int], ...]] = {}
    """Per group, from which moment of the run how many nodes must serve. Before the first: as many as in it."""
    ahead_s: dict[str, float] = {}
    """Per group, how long before that a node is asked for."""


class Perfect(Deaf):
    """As many nodes at every moment as a plan says, each asked for just early enough."""

    name: ClassVar[str] = "perfect"
    source: ClassVar[str] = "the bound: fewest nodes with the future known"
    options_type: ClassVar[type[msgspec.Struct]] = PerfectOptions

    def __init__(self, config: ScaleConfig, options: PerfectOptions, rng: random.Random) -> None:
        self._tick_s = config.tick_s
        self._ahead_s = options.ahead_s
        self._moments_s = {name: [at_s for at_s, _ in steps] for name, steps in options.plan.items()}
        self._nodes = {name: [nodes for _, nodes in steps] for name, steps in options.plan.items()}

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        return Wish(
            wanted={name: self._most(name, now_s) for name in self._nodes},
            why="the most that is needed before a node asked for at the next tick would be there",
        )

    def _most(self, name: str, now_s: float) -> int:
        moments_s, nodes = self._moments_s[name], self._nodes[name]
        until_s = now_s + self._ahead_s.get(name, 0.0) + self._tick_s
        first = max(0, bisect.bisect_right(moments_s, now_s) - 1)
        return max(nodes[first : max(first + 1, bisect.bisect_right(moments_s, until_s))], default=0)


PERFECT = register_rule(Perfect, origin="bench")

"""As many nodes as the bounds allow at most, always: what a fleet without a scaler costs and keeps. Pure."""

from __future__ import annotations

import random
from typing import ClassVar

import msgspec

from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import Deaf, Wish


class StaticOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `static`."""

    nodes: dict[str, int] = {}
    """Per group; a group that is not named has its maximum."""


class Static(Deaf):
    """A row of every table: the fleet at its peak."""

    name: ClassVar[str] = "static"
    source: ClassVar[str] = "no scaling"
    options_type: ClassVar[type[msgspec.Struct]] = StaticOptions

    def __init__(self, config: ScaleConfig, options: StaticOptions, rng: random.Random) -> None:
        self._wanted = {group.name: options.nodes.get(group.name, group.max) for group in config.groups}

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        return Wish(wanted=self._wanted, why="a fixed number of nodes")

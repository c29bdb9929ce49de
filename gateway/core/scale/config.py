"""What a scaler is told before it begins: the groups it may grow, what they must keep, the rule. Pure data."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from simcore.types import EngineConfig, NodePace


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the fleet must keep: so large a share of the requests within each of the times that are given."""

    ttft_s: float | None = 3.0
    """Time to first token."""
    tpot_s: float | None = 0.1
    """Time per token after the first."""
    e2e_s: float | None = None
    """From arrival to the last token."""
    share: float = 0.95
    """Of the requests, within all of them at once."""


class ScaleGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Equal nodes that may be started and stopped."""

    name: str
    """Its nodes are called `name-0`, `name-1`, ...: two leaders that want one more want the same one."""
    model: str = ""
    """Name under which clients ask for what they serve."""
    min: int = 1
    """Nodes that stay, whatever the rule says."""
    max: int = 8
    price_per_hour: float = 1.0
    """Of one node; only what groups cost compared with each other matters to rules."""
    cold_start_s: float = 60.0
    """From the wish for a node to its first request, until that has been measured."""
    leaves: Literal["any", "last"] = "any"
    """Which nodes can be stopped: any, or only the one with the highest number (a Kubernetes StatefulSet)."""
    engine: EngineConfig | None = None
    """What its engines are started with; None: as those of the group that are seen."""
    pace: NodePace | None = None
    """How fast they work, as a profile says; None: as those of the group that are seen."""


class ScaleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration of one scaler. `check` says whether it can be."""

    rule: str
    """A name (`rules.registry`), or a path to a file of the user's own."""
    options: dict[str, Any] = {}
    """Of the rule; its `Options` say which there are."""
    groups: tuple[ScaleGroup, ...]
    objective: Objective = Objective()
    tick_s: float = 5.0
    """Between two decisions."""
    start_limit_s: float | None = None
    """A node that is not ready so long after it was asked for is given up; None: three times what starts of its group
    take, at least `cold_start_s`."""
    seed: int = 0


class ScaleError(ValueError):
    """A scaler that cannot be. The message says which key and how to mend it."""


def check(config: ScaleConfig) -> None:
    """Raises ScaleError."""
    if not config.groups:
        raise ScaleError("scaling: no groups; name at least one group of nodes that may be started")
    names = [group.name for group in config.groups]
    for group in config.groups:
        at = f"scaling: group {group.name!r}"
        if not group.name or names.count(group.name) > 1:
            raise ScaleError(f"{at}: give each group a name of its own")
        if group.min < 0 or group.max < 1:
            raise ScaleError(f"{at}: min is {group.min} and max is {group.max}; min is 0 or more, max 1 or more")
        if group.min > group.max:
            raise ScaleError(f"{at}: min {group.min} is above max {group.max}")
        for key in ("price_per_hour", "cold_start_s"):
            value = getattr(group, key)
            if not (math.isfinite(value) and value >= 0):
                raise ScaleError(f"{at}: {key} is {value}; give a number of 0 or more")
    if not (math.isfinite(config.tick_s) and config.tick_s > 0):
        raise ScaleError(f"scaling: tick_s is {config.tick_s}; give seconds above 0")
    objective = config.objective
    limits = [objective.ttft_s, objective.tpot_s, objective.e2e_s]
    if all(limit is None for limit in limits):
        raise ScaleError("scaling: the objective names no time; give ttft_s, tpot_s or e2e_s")
    if any(limit is not None and not limit > 0 for limit in limits):
        raise ScaleError("scaling: the objective's times are seconds above 0")
    if not 0 < objective.share < 1:
        raise ScaleError(f"scaling: the objective's share is {objective.share}; give a number between 0 and 1")

"""What a scaling rule is: told of every request, asked at every tick for how many nodes of which group. Pure.

A rule reads no clock and never waits. It says what it wants; bounds, starts that fail, nodes that are late, draining
and taking back are the scaler's (`scaler.Scaler`), the same for all rules.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import msgspec

from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.events import RequestCame, RequestDone, RequestPlaced
from gateway.core.scale.fleet import FleetState


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule wants at a tick."""

    wanted: Mapping[str, int]
    """Nodes that serve or start, per group; a group that is not in it stays as it is. The scaler keeps the bounds."""
    leave: tuple[str, ...] = ()
    """Which nodes leave first, should some have to; then those with the fewest requests (the lab's LOR)."""
    seen: Mapping[str, float] = {}
    """The numbers it went by, for people: names with units."""
    why: str = ""
    """One line for people."""
    shortfall: str = ""
    """Said when the objective cannot be kept by any fleet within the bounds, with the best that can be had."""


class ScalingRule(Protocol):
    """One instance serves one scaler; state is its own.

    The constructor takes the configuration, its own options as `options_type` has checked them, and a seeded generator.
    One whose ticks run compiled code has a text `kernels`, too: the function of `simcore.warmup` that gets it ready. A
    live gateway asks it for nothing before.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    """Whose rule it is: paper, section, or product with its release."""
    options_type: ClassVar[type[msgspec.Struct]]
    """A record with defaults; `forbid_unknown_fields`."""

    def __init__(self, config: ScaleConfig, options: Any, rng: random.Random) -> None: ...

    def came(self, request: RequestCame, now_s: float) -> None:
        """A request has come."""

    def placed(self, request: RequestPlaced, now_s: float) -> None:
        """It was sent to a node."""

    def done(self, request: RequestDone, now_s: float) -> None:
        """Its answer is whole."""

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        """What is wanted now; None: there is nothing to go by, all stays as it is."""


class Deaf:
    """A rule that need not hear of requests; for those that hear of some."""

    def came(self, request: RequestCame, now_s: float) -> None: ...

    def placed(self, request: RequestPlaced, now_s: float) -> None: ...

    def done(self, request: RequestDone, now_s: float) -> None: ...

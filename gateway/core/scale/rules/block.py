"""Block's provisioning: a node when a forecast or a measured time exceeds the objective. Pure."""

from __future__ import annotations

import random
from typing import Annotated, ClassVar

import msgspec

from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.events import RequestCame, RequestDone, RequestPlaced
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import Deaf, Wish
from gateway.core.scale.rules.apportion import provisioned, wish
from gateway.core.scale.windows import SlidingHistogram

Positive = Annotated[float, msgspec.Meta(gt=0)]


class ProvisioningOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `preemptive` and `reactive`."""

    max_slo_in_seconds: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Of a whole request (Block's default: 12; 70 in its figure 8); 0 adds nothing; None: the objective's `e2e_s`, or
    12."""
    down: bool = True
    """Whether nodes leave too, which is ours. Published is only the half that adds: false."""
    down_after_s: Positive = 60.0
    """So long nothing has been near the objective before a node leaves, and between two that do."""
    down_share: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.8
    """Of the objective: near it is what n - 1 nodes would make of the slowest, taken as n / (n - 1) times as slow."""
    down_quantile: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.99
    """Which of the requests is meant by the slowest."""


class _Provisioning(Deaf):
    """Both of them: what differs is the time that a request is judged by, and when it is known."""

    options_type: ClassVar[type[msgspec.Struct]] = ProvisioningOptions

    def __init__(self, config: ScaleConfig, options: ProvisioningOptions, rng: random.Random) -> None:
        self._options = options
        slo_s = options.max_slo_in_seconds
        self._slo_s = (config.objective.e2e_s or 12.0) if slo_s is None else slo_s
        self._times = SlidingHistogram(window_s=options.down_after_s)
        self._came_s: float | None = None
        self._worst_s = 0.0
        """Of those judged since the last tick."""
        self._quiet_since_s: float | None = None

    def came(self, request: RequestCame, now_s: float) -> None:
        self._came_s = now_s

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        worst_s, self._worst_s = max(self._worst_s, self._waits(fleet)), 0.0
        if self._quiet_since_s is None:
            self._quiet_since_s = now_s
        had, slo_s = provisioned(fleet), self._slo_s
        starting = sum(len(state.starting) for state in fleet.groups)
        usual_s = self._times.quantile(self._options.down_quantile, now_s) or 0.0
        seen = {"slo_s": slo_s, "slowest_s": worst_s, "usual_s": usual_s, "starting_nodes": float(starting)}
        if slo_s and self._exceeds(worst_s):
            self._quiet_since_s = now_s
            if starting:
                return wish(fleet, had, seen=seen, why="too slow; a node starts already")
            return wish(fleet, had + 1, seen=seen, why=f"{worst_s:.2f} s against {slo_s:g} s: one node more")
        if not self._options.down or not slo_s or had <= 1:
            lonely = self._options.down and had == 1 and self._idle(fleet, now_s) and self._quiet(now_s)
            return wish(fleet, 0 if lonely else had, seen=seen, why="nothing is too slow")
        if starting or usual_s * had / (had - 1) > self._options.down_share * slo_s or not self._known(fleet, now_s):
            self._quiet_since_s = now_s
        if self._quiet(now_s):
            self._quiet_since_s = now_s
            return wish(fleet, had - 1, seen=seen, why="n - 1 nodes would be quick enough, and have been for long")
        return wish(fleet, had, seen=seen, why="nothing is too slow")

    def _judged(self, seconds: float, now_s: float) -> None:
        self._worst_s = max(self._worst_s, seconds)
        self._times.add(seconds, now_s)

    def _exceeds(self, seconds: float) -> bool:
        return seconds > self._slo_s

    def _waits(self, fleet: FleetState) -> float:
        """What is known of requests that nobody has judged yet."""
        return fleet.oldest_held_s

    def _quiet(self, now_s: float) -> bool:
        assert self._quiet_since_s is not None
        return now_s - self._quiet_since_s >= self._options.down_after_s

    def _known(self, fleet: FleetState, now_s: float) -> bool:
        """Whether something was judged of late, or there was nothing to judge."""
        return self._times.count(now_s) > 0 or self._idle(fleet, now_s)

    def _idle(self, fleet: FleetState, now_s: float) -> bool:
        came_s = self._came_s
        return not fleet.held and (came_s is None or now_s - came_s >= self._options.down_after_s)


class Preemptive(_Provisioning):
    """A node more when a request is placed whose best forecast end-to-end time is the SLO or more (the time it has
    waited at the gateway included): one node, and no other while one starts. Block has its backups running, so that
    one is there at once.

    Ours, unless `down` is false: a node leaves when for `down_after_s` the forecasts were so short that n / (n - 1)
    times them is below `down_share` of the SLO.
    """

    name: ClassVar[str] = "preemptive"
    source: ClassVar[str] = "Block (arXiv 2508.03611) section 6, preemptive provisioning; scaling down is Astrolabe's"

    def placed(self, request: RequestPlaced, now_s: float) -> None:
        if request.e2e_s is not None:
            self._judged(request.waited_s + request.e2e_s, now_s)

    def _exceeds(self, seconds: float) -> bool:
        return seconds >= self._slo_s


class Reactive(_Provisioning):
    """A node more when an answer is whole whose measured end-to-end time is above the SLO: one node, and no other while
    one starts. Scaling down as `preemptive` has it, by measured times.
    """

    name: ClassVar[str] = "reactive"
    source: ClassVar[str] = "Block (arXiv 2508.03611) section 6, reactive provisioning; scaling down is Astrolabe's"

    def done(self, request: RequestDone, now_s: float) -> None:
        self._judged(request.e2e_s, now_s)

    def _waits(self, fleet: FleetState) -> float:
        return 0.0

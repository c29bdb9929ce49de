"""So many requests per second and node: SkyServe's autoscaler. Pure."""

from __future__ import annotations

import math
import random
from typing import Annotated, ClassVar

import msgspec

from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.envelope import TrafficEnvelope
from gateway.core.scale.events import RequestCame, RequestDone
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import Wish
from gateway.core.scale.rules.apportion import provisioned, wish
from gateway.core.scale.rules.delayed import Delayed
from gateway.core.scale.rules.paced import Paced
from gateway.core.scale.throughput import MeanSizes, profile_of, profiled_requests_per_s

PLANNED_USE = 0.8
"""Of what a node's pace says that it can do, where no target is given."""

Positive = Annotated[float, msgspec.Meta(gt=0)]


class QpsOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `qps`, named as SkyServe's replica policy and constants."""

    target_qps_per_replica: Positive | None = None
    """SkyServe wants it given; None, ours: 80 % of what a node's pace says for requests of the mean size."""
    qps_window_size_seconds: Positive = 60.0
    upscale_delay_seconds: Annotated[float, msgspec.Meta(ge=0)] = 300.0
    downscale_delay_seconds: Annotated[float, msgspec.Meta(ge=0)] = 1200.0
    decision_interval_seconds: Positive = 20.0


class Qps(Paced):
    """target = ceil(requests of the last 60 s / 60 / target QPS per replica), decided every 20 s; up when that was
    asked for without a break for 300 s, down for 1,200 s."""

    name: ClassVar[str] = "qps"
    source: ClassVar[str] = "SkyServe (SkyPilot 0.14.1) RequestRateAutoscaler"
    options_type: ClassVar[type[msgspec.Struct]] = QpsOptions

    def __init__(self, config: ScaleConfig, options: QpsOptions, rng: random.Random) -> None:
        super().__init__(options.decision_interval_seconds)
        self._options = options
        self._objective = config.objective
        self._envelope = TrafficEnvelope(look_back_s=options.qps_window_size_seconds, stretch_s=1.0)
        self._sizes = MeanSizes()
        self._delayed = Delayed(up_s=options.upscale_delay_seconds, down_s=options.downscale_delay_seconds)

    def came(self, request: RequestCame, now_s: float) -> None:
        self._sizes.came(request)
        self._envelope.add(1.0, now_s)

    def done(self, request: RequestDone, now_s: float) -> None:
        self._sizes.done(request)

    def decide(self, fleet: FleetState, now_s: float) -> Wish | None:
        rate = self._envelope.rate(self._options.qps_window_size_seconds, now_s)
        target = self._options.target_qps_per_replica or self._profiled(fleet)
        if target is None and rate:
            return None
        had = provisioned(fleet)
        asked = math.ceil(rate / target - 1e-9) if target else 0
        seen = {"requests_per_s": rate, "target_requests_per_s": target or 0.0, "asked_nodes": float(asked)}
        nodes = self._delayed.settle(had, asked, now_s)
        return wish(fleet, nodes, seen=seen, why=f"{rate:.2f} requests/s ask for {asked} nodes")

    def _profiled(self, fleet: FleetState) -> float | None:
        profile, sizes = profile_of(fleet), self._sizes
        if profile is None or not sizes.answers:
            return None
        return PLANNED_USE * profiled_requests_per_s(
            *profile, prompt_tokens=sizes.prompt, output_tokens=sizes.output, objective=self._objective
        )

"""llm-d's SLO-aware loop: the tail of the latencies against the SLO. Pure."""

from __future__ import annotations

import math
import random
from typing import Annotated, ClassVar

import msgspec

from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.events import RequestCame, RequestDone, RequestPlaced
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import Wish
from gateway.core.scale.rules.apportion import provisioned, serving, wish
from gateway.core.scale.rules.behaviour import Behaviour, BoundedByBehaviour
from gateway.core.scale.rules.paced import Paced
from gateway.core.scale.windows import SlidingHistogram, WindowMean

Positive = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]

BEHAVIOUR = Behaviour(
    up_stabilization_s=30.0, up_percent=100.0, up_pods=4, up_period_s=60.0,
    down_stabilization_s=180.0, down_percent=0.0, down_pods=1, down_period_s=120.0,
)  # fmt: skip
"""Of their ScaledObject: up by the larger of 100 % and 4 pods in 60 s after 30 s, down by 1 in 120 s after 180 s."""


class LlmdSloOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `llmd_slo`."""

    scale_up_at: Positive = 0.55
    """Saturation, the share of the SLO that the tail takes up, above which nodes are added."""
    scale_down_at: Positive = 0.40
    """Below which they leave."""
    clamp: Positive = 2.0
    """A saturation above it says no more than that it is high."""
    quantile: Share = 0.9
    histogram_s: Positive = 60.0
    """What the quantile is taken over."""
    smoothing_s: Positive = 45.0
    """What the saturation is averaged over."""
    interval_s: Positive = 15.0
    """Of the recording rules, and between two decisions."""
    predicted: bool = True
    """Forecasts where there are any, and measured times where not; false: measured times alone."""
    behavior: Behaviour = BEHAVIOUR

    def __post_init__(self) -> None:
        if not self.scale_down_at < self.scale_up_at:
            raise ValueError("scale_down_at is below scale_up_at: between the two nothing changes")


class LlmdSlo(Paced):
    """s = 45 s mean of min(max(P90 TTFT / SLO, P90 TPOT / SLO), 2.0), each P90 over 1 minute, of predictions where
    there are any. With n provisioned, r ready and c = r / n: s > 0.55: n + ceil(n (s c / 0.55 - 1)); s < 0.40:
    n - floor(n (1 - s / 0.40)); else n. Then the HPA's behaviour: up by max(100 %, 4) in 60 s after 30 s, down by 1 in
    120 s after 180 s. A pool without traffic reads 0; one whose requests have neither been placed nor answered of late
    reads nothing.
    """

    name: ClassVar[str] = "llmd_slo"
    source: ClassVar[str] = "llm-d docs/architecture/autoscaling/slo-aware.md @3d01685 (2026-09)"
    options_type: ClassVar[type[msgspec.Struct]] = LlmdSloOptions

    def __init__(self, config: ScaleConfig, options: LlmdSloOptions, rng: random.Random) -> None:
        super().__init__(options.interval_s)
        self._options = options
        self._slo_s = {"ttft": config.objective.ttft_s, "tpot": config.objective.tpot_s}
        if self._slo_s == {"ttft": None, "tpot": None}:
            self._slo_s = {"e2e": config.objective.e2e_s}
        self._predicted = {name: SlidingHistogram(window_s=options.histogram_s) for name in self._slo_s}
        self._measured = {name: SlidingHistogram(window_s=options.histogram_s) for name in self._slo_s}
        self._mean = WindowMean(options.smoothing_s)
        self._bounded = BoundedByBehaviour(options.behavior)
        self._came_s: float | None = None
        self._began_s: float | None = None

    def came(self, request: RequestCame, now_s: float) -> None:
        self._came_s = now_s

    def placed(self, request: RequestPlaced, now_s: float) -> None:
        if not self._options.predicted:
            return
        ttft_s = None if request.ttft_s is None else request.waited_s + request.ttft_s
        e2e_s = None if request.e2e_s is None else request.waited_s + request.e2e_s
        _add(self._predicted, {"ttft": ttft_s, "tpot": request.tpot_s, "e2e": e2e_s}, now_s)

    def done(self, request: RequestDone, now_s: float) -> None:
        _add(self._measured, {"ttft": request.ttft_s, "tpot": request.tpot_s, "e2e": request.e2e_s}, now_s)

    def decide(self, fleet: FleetState, now_s: float) -> Wish | None:
        if self._began_s is None:
            self._began_s = now_s
        told, had, ready = self._options, provisioned(fleet), len(serving(fleet))
        raw = self._saturation(now_s)
        if raw is None:
            return None
        s = self._mean.read(min(raw, told.clamp), now_s)
        if s > told.scale_up_at:
            credit = ready / had if 0 < ready < had else 1.0
            asked = had + math.ceil(had * (s * credit / told.scale_up_at - 1.0) - 1e-9)
        elif s < told.scale_down_at:
            asked = had - math.floor(had * (1.0 - s / told.scale_down_at) + 1e-9)
        else:
            asked = had
        nodes = self._bounded.settle(had, asked, now_s)
        seen = {"saturation": s, "saturation_now": raw, "asked_nodes": float(asked), "ready_nodes": float(ready)}
        return wish(fleet, nodes, seen=seen, why=f"P90 at {s:.2f} of the SLO: {asked} asked for, {nodes} allowed")

    def _saturation(self, now_s: float) -> float | None:
        """What the tail takes up of the SLO; None: not known."""
        shares = []
        for name, slo_s in self._slo_s.items():
            tail_s = self._predicted[name].quantile(self._options.quantile, now_s)
            if tail_s is None:
                tail_s = self._measured[name].quantile(self._options.quantile, now_s)
            if tail_s is not None and slo_s is not None:
                shares.append(tail_s / slo_s)
        if shares:
            return max(shares)
        # Nothing has come: that is data, once it has been watched for as long as the histograms reach back.
        assert self._began_s is not None
        silent_s = now_s - (self._began_s if self._came_s is None else self._came_s)
        return 0.0 if silent_s >= self._options.histogram_s else None


def _add(histograms: dict[str, SlidingHistogram], times: dict[str, float | None], now_s: float) -> None:
    for name, histogram in histograms.items():
        seconds = times[name]
        if seconds is not None:
            histogram.add(seconds, now_s)

"""So many requests per node: Ray Serve's autoscaler and Knative's (KServe, AIBrix KPA). Pure."""

from __future__ import annotations

import math
import random
from typing import Annotated, ClassVar, Literal

import msgspec

from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import Deaf, Wish
from gateway.core.scale.rules.apportion import provisioned, serving, wish
from gateway.core.scale.rules.delayed import Delayed
from gateway.core.scale.windows import WindowMax, WindowMean

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class ConcurrencyOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `concurrency`. `ray_serve` reads the first block of options, the others the second."""

    preset: Literal["ray_serve", "kserve", "aibrix_kpa"] = "ray_serve"
    """Whose law and defaults."""

    target_ongoing_requests: Positive = 2.0
    """Per replica; Ray Serve's keys and defaults."""
    upscale_delay_s: NotNegative = 30.0
    downscale_delay_s: NotNegative = 600.0
    look_back_period_s: Positive = 30.0
    """Over which ongoing requests are averaged."""
    upscaling_factor: Positive = 1.0
    downscaling_factor: Positive = 1.0

    target: Positive | None = None
    """Requests per pod. KServe: 70 (Knative's 100 at 70 %); AIBrix has no default, 10 is ours."""
    stable_window_s: Positive | None = None
    """KServe 60, AIBrix 180."""
    panic_window_s: Positive | None = None
    """KServe 6, AIBrix 60."""
    panic_threshold: Positive = 2.0
    """Times the ready pods that the panic window asks for."""
    max_scale_up_rate: Positive | None = None
    """Times the ready pods in one step: KServe 1000, AIBrix 2."""
    max_scale_down_rate: Positive = 2.0
    scale_down_delay_s: NotNegative | None = None
    """KServe 0, AIBrix 300."""


_KPA = {
    "kserve": {"target": 70.0, "stable_window_s": 60.0, "panic_window_s": 6.0, "max_scale_up_rate": 1000.0,
               "scale_down_delay_s": 0.0},
    "aibrix_kpa": {"target": 10.0, "stable_window_s": 180.0, "panic_window_s": 60.0, "max_scale_up_rate": 2.0,
                   "scale_down_delay_s": 300.0},
}  # fmt: skip


class Concurrency(Deaf):
    """`ray_serve`: desired = ceil(running replicas x (1 + factor x (ongoing / (target x running) - 1))), with factor 1
    ceil(ongoing / target); ongoing is the mean over the look-back of what replicas and the queue have. A change must
    have been asked for without a break for the delay.

    `kserve`, `aibrix_kpa` (Knative's pod autoscaler): desired = ceil(mean concurrency / target), within ready / down
    rate and ready x up rate, over the stable window. When the panic window asks for `panic_threshold` times the ready
    pods or more, panic: the larger of both windows and never fewer, until a stable window has passed without.
    """

    name: ClassVar[str] = "concurrency"
    source: ClassVar[str] = "Ray Serve 2.60 AutoscalingConfig; Knative KPA as KServe has it; AIBrix e3e10f9 KPA"
    options_type: ClassVar[type[msgspec.Struct]] = ConcurrencyOptions

    def __init__(self, config: ScaleConfig, options: ConcurrencyOptions, rng: random.Random) -> None:
        self._options = options
        self._law = _RayServe(options) if options.preset == "ray_serve" else _Knative(options)

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        nodes = serving(fleet)
        ongoing = float(fleet.held + sum(node.outstanding for node in nodes))
        had = provisioned(fleet)
        seen = {"ongoing_requests": ongoing}
        asked = self._law.asked(ongoing, had, len(nodes), now_s, seen)
        # Of a node that says nothing of itself only our own requests are known: it may have those of others.
        if asked < had and any(node.view.load is None for node in nodes):
            return wish(fleet, had, seen=seen, why="some nodes say nothing of themselves: none leaves")
        return wish(fleet, asked, seen=seen, why=f"{seen['mean_requests']:.1f} ongoing requests: {asked} nodes")


class _RayServe:
    def __init__(self, options: ConcurrencyOptions) -> None:
        self._options = options
        self._mean = WindowMean(options.look_back_period_s)
        self._delayed = Delayed(up_s=options.upscale_delay_s, down_s=options.downscale_delay_s)

    def asked(self, ongoing: float, had: int, running: int, now_s: float, seen: dict[str, float]) -> int:
        told = self._options
        mean = seen["mean_requests"] = self._mean.read(ongoing, now_s)
        if not running:
            desired = math.ceil(mean / told.target_ongoing_requests)
        else:
            error = mean / (told.target_ongoing_requests * running) - 1.0
            factor = told.upscaling_factor if error > 0 else told.downscaling_factor
            desired = max(0, math.ceil(running * (1.0 + factor * error) - 1e-9))
        return self._delayed.settle(had, desired, now_s)


class _Knative:
    def __init__(self, options: ConcurrencyOptions) -> None:
        told = _KPA[options.preset]
        self._target = options.target or told["target"]
        self._up_rate = options.max_scale_up_rate or told["max_scale_up_rate"]
        self._down_rate = options.max_scale_down_rate
        self._threshold = options.panic_threshold
        self._stable = WindowMean(options.stable_window_s or told["stable_window_s"])
        self._panic = WindowMean(options.panic_window_s or told["panic_window_s"])
        delay_s = told["scale_down_delay_s"] if options.scale_down_delay_s is None else options.scale_down_delay_s
        self._most = WindowMax(delay_s)
        self._panic_s: float | None = None
        self._most_in_panic = 0

    def asked(self, ongoing: float, had: int, running: int, now_s: float, seen: dict[str, float]) -> int:
        stable, panic = self._stable.read(ongoing, now_s), self._panic.read(ongoing, now_s)
        seen["mean_requests"], seen["panic_mean_requests"] = stable, panic
        most, least = max(1, math.ceil(self._up_rate * running)), math.floor(running / self._down_rate)
        by_panic = math.ceil(panic / self._target)
        desired = min(max(math.ceil(stable / self._target), least), most)
        if by_panic / max(1, running) >= self._threshold:
            self._panic_s = now_s
        elif self._panic_s is not None and now_s - self._panic_s >= self._stable.window_s:
            self._panic_s, self._most_in_panic = None, 0
        if self._panic_s is not None:
            self._most_in_panic = max(self._most_in_panic, desired, min(max(by_panic, least), most))
            desired = self._most_in_panic
        seen["in_panic"] = float(self._panic_s is not None)
        return round(self._most.read(desired, now_s))

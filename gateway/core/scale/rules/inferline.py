"""InferLine's tuner (Crankshaw et al., SoCC '20), as published and as the Vidur autoscaling lab has it. Pure."""

from __future__ import annotations

import math
import random
from typing import Annotated, ClassVar, Literal

import msgspec

from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.envelope import TrafficEnvelope, doubling_windows_s
from gateway.core.scale.events import RequestCame, RequestDone
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import Wish
from gateway.core.scale.rules.apportion import provisioned, wish
from gateway.core.scale.rules.paced import Paced
from gateway.core.scale.throughput import MeanSizes, MeasuredThroughput, profile_of, profiled_requests_per_s

LAB_STRETCH_S = 1.0
PAPER_STRETCH_S = 0.1

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class InferlineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `inferline`. The first block has the lab's keys (what takes how long to start and stop is the world's there,
    `scale_up_delay` 6-10 s and `scale_down_delay` 0-8 s, and `ScaleGroup.cold_start_s` here)."""

    preset: Literal["lab", "paper"] = "lab"
    """Whose parameters: `lab` reads the first block of options, `paper` the second."""

    tune_interval: Positive = 5.0
    """Seconds between two decisions."""
    look_back_time_scale_up: Positive = 80.0
    look_back_time_scale_down: Positive = 80.0
    min_window_size_scale_up: Positive = 20.0
    min_window_size_scale_down: Positive = 20.0
    stabilization_delay: NotNegative = 10.0
    """Seconds without scaling up after which it may scale down."""
    initial_replica_token_throughput: Positive = 1.0
    """Tokens per second before the first batch."""
    throughput_alpha: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5

    service_time_s: Positive | None = None
    """The shortest window; None: the mean of what requests take, as measured."""
    longest_window_s: Positive = 60.0
    down_after_s: NotNegative = 15.0
    """Since the last change; 3 times what a replica of theirs took to start."""
    down_look_back_s: Positive = 30.0
    down_window_s: Positive = 5.0
    planned_ratio: Positive = 0.8
    """ρ, what the planner made of a node's throughput. Their planner finds it per pipeline; this default is ours."""
    planned_sigmas: NotNegative = 3.0
    """The planned envelope is that of Poisson arrivals at the rate that the fleet is planned for, so many standard
    deviations above it. Theirs is that of a sample trace; this is ours."""
    requests_per_s: Positive | None = None
    """μ, of one node; None: as its pace says for requests of the mean size, and as measured where it has none."""


class Inferline(Paced):
    """`lab`: every `tune_interval` target = ceil(max token rate / replica throughput), the maximum over all windows of
    at least `min_window_size` within the look-back, tokens = prompt + decode; the throughput is an exponential mean of
    a batch's tokens / (completed - scheduled). Up at once; down once `stabilization_delay` has passed since the last
    time up. Nodes that start count once as there, those that drain not at all (of the public solutions one counts them
    twice, and one's envelope costs more with each request).

    `paper`: windows from the service time doubling to 60 s; rᵢ is the most queries in any window ΔTᵢ by ΔTᵢ. Where any
    exceeds the planned envelope, k = ceil(r_max / (μ ρ)) with the largest of those that do, at once. Down when 15 s
    have passed since the last change: k = ceil(λ / (μ ρ)), λ the largest rate in 5 s windows of the last 30 s.

    Nothing is wanted before the first answer is whole, and not less before the look-back has been watched.
    """

    name: ClassVar[str] = "inferline"
    source: ClassVar[str] = "InferLine (SoCC '20) section 5; Vidur autoscaling lab, Georgia Tech CS 8803, 2025"
    options_type: ClassVar[type[msgspec.Struct]] = InferlineOptions

    def __init__(self, config: ScaleConfig, options: InferlineOptions, rng: random.Random) -> None:
        super().__init__(options.tune_interval if options.preset == "lab" else 0.0)
        self._options = options
        self._objective = config.objective
        lab = options.preset == "lab"
        self._look_back_s = (
            max(options.look_back_time_scale_up, options.look_back_time_scale_down)
            if lab
            else max(options.longest_window_s, options.down_look_back_s)
        )
        self._envelope = TrafficEnvelope(
            look_back_s=self._look_back_s, stretch_s=LAB_STRETCH_S if lab else PAPER_STRETCH_S
        )
        self._throughput = MeasuredThroughput(
            alpha=options.throughput_alpha, initial=options.initial_replica_token_throughput
        )
        self._sizes = MeanSizes()
        self._began_s: float | None = None
        self._up_s = self._changed_s = -math.inf

    def came(self, request: RequestCame, now_s: float) -> None:
        self._sizes.came(request)
        lab = self._options.preset == "lab"
        self._envelope.add(request.prompt_tokens + request.expected_tokens if lab else 1.0, now_s)

    def done(self, request: RequestDone, now_s: float) -> None:
        self._sizes.done(request)
        self._throughput.done(request, now_s)

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        if self._began_s is None:
            self._began_s = now_s
        self._throughput.keep_only(fleet)
        return super().tick(fleet, now_s)

    def decide(self, fleet: FleetState, now_s: float) -> Wish | None:
        return self._lab(fleet, now_s) if self._options.preset == "lab" else self._paper(fleet, now_s)

    def _watched(self, now_s: float) -> bool:
        return self._began_s is not None and now_s - self._began_s >= self._look_back_s

    def _lab(self, fleet: FleetState, now_s: float) -> Wish | None:
        told, envelope = self._options, self._envelope
        throughput = self._throughput.tokens_per_s
        up_rate = envelope.max_rate_of_longer(
            told.min_window_size_scale_up, now_s, look_back_s=told.look_back_time_scale_up
        )
        down_rate = envelope.max_rate_of_longer(
            told.min_window_size_scale_down, now_s, look_back_s=told.look_back_time_scale_down
        )
        if not self._throughput.samples and (up_rate or down_rate or not self._watched(now_s)):
            return None
        had = provisioned(fleet)
        up, down = math.ceil(up_rate / throughput), math.ceil(down_rate / throughput)
        seen = {"max_rate_tokens_per_s": up_rate, "node_tokens_per_s": throughput}
        if up > had:
            self._up_s = now_s
            return wish(fleet, up, seen=seen, why=f"ceil({up_rate:.0f} / {throughput:.0f} tokens/s) = {up} nodes")
        if down < had and now_s - self._up_s >= told.stabilization_delay and self._watched(now_s):
            return wish(fleet, down, seen=seen, why=f"ceil({down_rate:.0f} / {throughput:.0f} tokens/s) = {down} nodes")
        return wish(fleet, had, seen=seen, why="as many as the token rate needs, or not yet time for fewer")

    def _paper(self, fleet: FleetState, now_s: float) -> Wish | None:
        told, envelope = self._options, self._envelope
        had = provisioned(fleet)
        service_s = told.service_time_s or self._sizes.took_s
        node_rate = told.requests_per_s or self._profiled(fleet)
        if not service_s or not node_rate:
            # Who has never seen a request cannot know these, but that none came over the whole look-back is known.
            idle = self._watched(now_s) and not envelope.max_rate(self._look_back_s, now_s)
            return wish(fleet, 0, seen={"requests_per_s": 0.0}, why="nothing comes") if idle else None
        planned = node_rate * told.planned_ratio
        windows_s = doubling_windows_s(min(service_s, told.longest_window_s), told.longest_window_s)
        rates = envelope.max_rates(windows_s, now_s)
        expected = had * planned
        exceeding = [
            rate
            for window_s, rate in zip(windows_s, rates, strict=True)
            if rate > expected + told.planned_sigmas * math.sqrt(expected / max(window_s, PAPER_STRETCH_S))
        ]
        seen = {"node_requests_per_s": node_rate, "service_time_s": service_s, "requests_per_s": rates[-1]}
        if exceeding:
            fastest = max(exceeding)
            up = max(had, math.ceil(fastest / planned))
            if up > had:
                self._changed_s = now_s
            seen["exceeding_requests_per_s"] = fastest
            return wish(fleet, up, seen=seen, why=f"{fastest:.2f} requests/s exceed the plan: {up} nodes")
        if now_s - self._changed_s >= told.down_after_s and self._watched(now_s):
            rate = envelope.max_rate(told.down_window_s, now_s, look_back_s=told.down_look_back_s)
            down = math.ceil(rate / planned)
            if down < had:
                self._changed_s = now_s
                return wish(fleet, down, seen=seen, why=f"{rate:.2f} requests/s at most of late: {down} nodes")
        return wish(fleet, had, seen=seen, why="the traffic is within the planned envelope")

    def _profiled(self, fleet: FleetState) -> float | None:
        sizes, profile = self._sizes, profile_of(fleet)
        if not sizes.answers:
            return None
        if profile is not None:
            return profiled_requests_per_s(
                *profile, prompt_tokens=sizes.prompt, output_tokens=sizes.output, objective=self._objective
            )
        measured = self._throughput.tokens_per_s
        return measured / (sizes.prompt + sizes.output) if self._throughput.samples else None

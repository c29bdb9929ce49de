"""One number that moves along the front of latency against cost: square-root staffing by token rate. Pure."""

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
from gateway.core.scale.rules.paced import Paced
from gateway.core.scale.throughput import MeanSizes, MeasuredThroughput, profile_of, profiled_requests_per_s
from gateway.core.scale.windows import WindowMax

STRETCH_S = 1.0
MEASURED_ALPHA = 0.05

Positive = Annotated[float, msgspec.Meta(gt=0)]


class ServiceLevelOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `service_level`."""

    service_level: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """Higher: quicker and dearer. 0 has nodes for the mean rate and none for what varies; fractions are levels too."""
    nodes_per_level: Positive = 0.25
    """What a level adds, in square roots of the nodes that the mean rate needs."""
    tune_interval: Positive = 5.0
    """Seconds between two decisions."""
    windows_s: tuple[Positive, ...] = (5.0, 10.0, 20.0, 40.0, 80.0)
    """Over which the rate is measured, ascending, all of them until now."""
    sure: Annotated[float, msgspec.Meta(ge=0)] = 2.5
    """Standard deviations of its own noise by which a shorter window must differ from a longer to be believed."""
    hold_s: Positive = 60.0
    """Nodes stay as long as they have been needed within it."""
    drain_s: Positive = 20.0
    """What waits is to be served within it, beside what comes."""
    tokens_per_s: Positive | None = None
    """Of one node; None: as its pace says for requests of the mean size, and as measured where it has none."""

    def __post_init__(self) -> None:
        if not self.windows_s or list(self.windows_s) != sorted(set(self.windows_s)):
            raise ValueError("windows_s are seconds, at least one, ascending")


class ServiceLevel(Paced):
    """n = ceil(R + β √R + backlog), β = `nodes_per_level` times `service_level`.

    R, the nodes that would be busy all the time, is token rate / a node's throughput. n = R + β √R is the square-root
    staffing rule (Halfin and Whitt 1981): with the same β the share of requests that wait stays the same at every rate,
    so one level is one point of the front whatever the traffic does, and a higher β never has fewer nodes. The rate is
    that over the longest of several windows until now that the shorter ones do not contradict: a step is seen in
    seconds, and noise is not taken for one. Down by the largest n of the last `hold_s`.
    """

    name: ClassVar[str] = "service_level"
    source: ClassVar[str] = "Astrolabe, for the Vidur autoscaling lab's custom autoscaler; square-root staffing"
    options_type: ClassVar[type[msgspec.Struct]] = ServiceLevelOptions

    def __init__(self, config: ScaleConfig, options: ServiceLevelOptions, rng: random.Random) -> None:
        super().__init__(options.tune_interval)
        self._options = options
        self._objective = config.objective
        self._beta = options.nodes_per_level * options.service_level
        self._look_back_s = max(options.windows_s)
        self._tokens = TrafficEnvelope(look_back_s=self._look_back_s, stretch_s=STRETCH_S)
        self._squares = TrafficEnvelope(look_back_s=self._look_back_s, stretch_s=STRETCH_S)
        self._throughput = MeasuredThroughput(alpha=MEASURED_ALPHA, initial=0.0)
        self._sizes = MeanSizes()
        self._most = WindowMax(options.hold_s)
        self._began_s: float | None = None

    def came(self, request: RequestCame, now_s: float) -> None:
        self._sizes.came(request)
        tokens = request.prompt_tokens + request.expected_tokens
        self._tokens.add(tokens, now_s)
        self._squares.add(tokens * tokens, now_s)

    def done(self, request: RequestDone, now_s: float) -> None:
        self._sizes.done(request)
        self._throughput.done(request, now_s)

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        if self._began_s is None:
            self._began_s = now_s
        self._throughput.keep_only(fleet)
        return super().tick(fleet, now_s)

    def decide(self, fleet: FleetState, now_s: float) -> Wish | None:
        assert self._began_s is not None
        rate = self.rate(now_s)
        throughput = self._node_tokens_per_s(fleet)
        waiting = self._waiting_tokens(fleet)
        watched_s = now_s - self._began_s
        if throughput is None:
            if rate or waiting or watched_s < self._look_back_s:
                return None
            throughput = math.inf
        offered = rate / throughput
        backlog = waiting / throughput / self._options.drain_s
        asked = math.ceil(offered + self._beta * math.sqrt(offered) + backlog - 1e-9)
        needed = round(self._most.read(asked, now_s))
        if watched_s < self._options.hold_s:
            needed = max(needed, provisioned(fleet))
        seen = {
            "rate_tokens_per_s": rate,
            "node_tokens_per_s": 0.0 if math.isinf(throughput) else throughput,
            "offered_nodes": offered,
            "backlog_nodes": backlog,
        }
        why = f"{offered:.2f} nodes of work + {self._beta:g} of their square root"
        return wish(fleet, needed, seen=seen, why=why)

    def rate(self, now_s: float) -> float:
        """Tokens per second over the longest window that the shorter ones do not contradict."""
        rate, noise = 0.0, math.inf
        for window_s in self._options.windows_s:
            longer = self._tokens.rate(window_s, now_s)
            if abs(longer - rate) > self._options.sure * noise:
                break
            rate, noise = longer, math.sqrt(self._squares.rate(window_s, now_s) / window_s)
        return rate

    def _node_tokens_per_s(self, fleet: FleetState) -> float | None:
        if self._options.tokens_per_s is not None:
            return self._options.tokens_per_s
        sizes, profile = self._sizes, profile_of(fleet)
        if profile is not None and sizes.answers:
            output = sizes.output
            requests = profiled_requests_per_s(
                *profile, prompt_tokens=sizes.prompt, output_tokens=output, objective=self._objective
            )
            return requests * (sizes.prompt + output)
        measured = self._throughput.tokens_per_s
        return measured if self._throughput.samples else None

    def _waiting_tokens(self, fleet: FleetState) -> float:
        loads = [node.view.load for node in fleet.serving]
        waiting = sum(load.waiting for load in loads if load is not None)
        mean = self._sizes.prompt + self._sizes.output
        return fleet.held_prompt_tokens + fleet.held_expected_tokens + waiting * mean

"""Dynamo's planner, its loop by load: one node at a time by what every worker's step would take. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import msgspec

from gateway.core.nodes.pace import Pace
from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.events import RequestCame
from gateway.core.scale.fleet import FleetState, SeenNode
from gateway.core.scale.rule import Wish
from gateway.core.scale.rules.apportion import provisioned, serving, wish
from gateway.core.scale.rules.paced import Paced
from gateway.core.scale.throughput import MeanSizes, profile_of
from simcore.types import NodeLoad

UTILISATION = {"throughput": (1.0, 0.6), "latency": (0.4, 0.1)}
"""KV wanted and in use, by the cache: above the first on any worker one more, below the second on all one fewer."""

Positive = Annotated[float, msgspec.Meta(gt=0)]


class DynamoOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `dynamo`."""

    optimization_target: Literal["throughput", "latency", "sla"] = "throughput"
    """`throughput` and `latency`: the easy mode, by the use of the KV cache; `sla`: by estimates of TTFT and ITL."""
    ttft: Positive | None = None
    """Milliseconds (theirs: 500); None: the objective's."""
    itl: Positive | None = None
    """Milliseconds (theirs: 50); None: the objective's."""
    load_scaling_down_sensitivity: Annotated[float, msgspec.Meta(gt=0, le=100)] = 80.0
    """Per cent of the SLA below which the estimates for N - 1 workers must be."""
    load_adjustment_interval: Positive = 5.0
    """Seconds between two decisions."""
    min_endpoint: Annotated[int, msgspec.Meta(ge=0)] = 1


class Dynamo(Paced):
    """Easy mode: use = (KV in use + KV that waiting prompts need) / KV cache of a worker; any above 100 %: +1; all
    below 60 %: -1 (`latency`: 40 and 10 %).

    `sla`: TTFT of a worker = what its waiting prompts and one of the mean size take, ITL = its next step; +1 when one
    of them is above the SLA on all workers, -1 when on all of them, at N / (N - 1) times the load, the KV fits, the ITL
    is below 80 % of its SLA, and what queues is below 80 % of what the prompt itself leaves of the TTFT. Their
    regression over forward-pass metrics is here the nodes' own pace.

    While a worker starts it only looks on; starting is given a limit by the scaler. The loop by throughput (ARIMA over
    180 s), a lower bound to this one and off by default, is not here.
    """

    name: ClassVar[str] = "dynamo"
    source: ClassVar[str] = "Dynamo planner 1.6.1 core/load_scaling.py, aggregated mode"
    options_type: ClassVar[type[msgspec.Struct]] = DynamoOptions

    def __init__(self, config: ScaleConfig, options: DynamoOptions, rng: random.Random) -> None:
        super().__init__(options.load_adjustment_interval)
        self._options = options
        objective = config.objective
        self._ttft_s = options.ttft / 1e3 if options.ttft else objective.ttft_s or 0.5
        self._itl_s = options.itl / 1e3 if options.itl else objective.tpot_s or 0.05
        self._sizes = MeanSizes()

    def came(self, request: RequestCame, now_s: float) -> None:
        self._sizes.came(request)

    def decide(self, fleet: FleetState, now_s: float) -> Wish | None:
        nodes, had = serving(fleet), provisioned(fleet)
        known = [(node, node.view.load) for node in nodes if node.view.load is not None]
        if len(known) < len(nodes) or not known:
            return None
        if any(state.starting for state in fleet.groups):
            return wish(fleet, had, seen={"starting_nodes": 1.0}, why="a node starts: looks on")
        if self._options.optimization_target == "sla":
            profile = profile_of(fleet)
            if profile is None:
                return None
            by, seen = self._by_estimates(known, profile[0])
        else:
            by, seen = self._by_use([load for _, load in known])
        if by < 0:
            by = max(by, min(0, self._options.min_endpoint - had))
        whys = {1: "more than the workers can do", 0: "neither more nor fewer", -1: "one fewer would do"}
        return wish(fleet, had + by, seen=seen, why=whys[by])

    def _by_use(self, loads: Sequence[NodeLoad]) -> tuple[int, dict[str, float]]:
        up_at, down_at = UTILISATION[self._options.optimization_target]
        uses = [
            (load.total_blocks - load.free_blocks + load.waiting_prompt_blocks) / load.total_blocks for load in loads
        ]
        by = 1 if max(uses) > up_at else -1 if max(uses) < down_at else 0
        return by, {"highest_kv_use": max(uses)}

    def _by_estimates(self, known: Sequence[tuple[SeenNode, NodeLoad]], pace: Pace) -> tuple[int, dict[str, float]]:
        ttfts_s, itls_s = [], []
        spare = len(known) > 1
        share = self._options.load_scaling_down_sensitivity / 100.0
        more = len(known) / (len(known) - 1) if spare else 1.0
        for node, load in known:
            ttfts_s.append(self._ttft(node, load, pace, 1.0)[0])
            itls_s.append(_itl(node, load, pace, 1.0))
            ttft_s, own_s = self._ttft(node, load, pace, more)
            wanted = more * (load.total_blocks - load.free_blocks + load.waiting_prompt_blocks)
            fits = wanted < load.total_blocks and _itl(node, load, pace, more) < self._itl_s * share
            left_s = (self._ttft_s - own_s) * share
            spare = spare and fits and left_s > 0 and ttft_s - own_s < left_s
        late = min(ttfts_s) > self._ttft_s or min(itls_s) > self._itl_s
        seen = {"highest_ttft_s": max(ttfts_s), "highest_itl_s": max(itls_s)}
        return (1 if late else -1 if spare else 0), seen

    def _ttft(self, node: SeenNode, load: NodeLoad, pace: Pace, more: float) -> tuple[float, float]:
        """(Seconds to the first token of a prompt of the mean size, those of them that it takes by itself.)"""
        prompt = self._sizes.prompt
        step_s = _itl(node, load, pace, more)
        per_token_s = pace.prefill_s_per_token + step_s / node.view.config.max_num_batched_tokens
        own_s = prompt * (per_token_s + pace.prefill_s_per_token2 * prompt / 2.0) + step_s
        return own_s + more * load.prefill_tokens * per_token_s, own_s


def _itl(node: SeenNode, load: NodeLoad, pace: Pace, more: float) -> float:
    """Seconds of a step that decodes what runs there, times `more`."""
    running = min(len(pace.step_s) - 1, round(more * load.running))
    in_use = more * (load.total_blocks - load.free_blocks) * node.view.config.tokens_per_block
    return pace.step_s[running] + pace.kv_s_per_token * in_use

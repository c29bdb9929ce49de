"""llm-d's token-aware autoscaling: seconds of prompts that wait, and KV caches that fill. Pure."""

from __future__ import annotations

import math
import random
from typing import Annotated, ClassVar

import msgspec

from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import Wish
from gateway.core.scale.rules.apportion import provisioned, serving, wish
from gateway.core.scale.rules.behaviour import Behaviour, BoundedByBehaviour
from gateway.core.scale.rules.paced import Paced
from gateway.core.scale.throughput import profile_of

PEAK_PREFILL_TOKENS_PER_S = 15928.0
"""As published: Qwen3-32B, tensor parallel 2, H100."""

Positive = Annotated[float, msgspec.Meta(gt=0)]


class LlmdTokensOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `llmd_tokens`."""

    peakPrefillThroughput: Positive | None = None
    """V_P, prompt tokens per second of one replica. None: as their calibration would find it by the nodes' pace, a
    prompt of a whole step on an idle node; without a pace their 15,928."""
    prefill_threshold_s: Positive = 1.5
    """Seconds of backlog per replica."""
    kv_threshold: Positive = 0.8
    """Of a KV cache."""
    tolerance: Annotated[float, msgspec.Meta(ge=0)] = 0.1
    """Nothing changes while a metric is so near its target (Kubernetes' default)."""
    interval_s: Positive = 15.0
    """HPA sync."""
    behavior: Behaviour = Behaviour()
    """Kubernetes' defaults: up by max(100 %, 4) in 15 s, down to the most of the last 300 s."""


class LlmdTokens(Paced):
    """desired = max(ceil(backlog / 1.5), ceil(sum of KV use / 0.8)), backlog in seconds = prompt tokens not computed
    yet, at the nodes and at the gateway, / V_P."""

    name: ClassVar[str] = "llmd_tokens"
    source: ClassVar[str] = "llm-d guides/workload-autoscaling/keda-epp-token-aware @560d420 (experimental)"
    options_type: ClassVar[type[msgspec.Struct]] = LlmdTokensOptions

    def __init__(self, config: ScaleConfig, options: LlmdTokensOptions, rng: random.Random) -> None:
        super().__init__(options.interval_s)
        self._options = options
        self._bounded = BoundedByBehaviour(options.behavior)

    def decide(self, fleet: FleetState, now_s: float) -> Wish | None:
        told, nodes, had = self._options, serving(fleet), provisioned(fleet)
        loads = [node.view.load for node in nodes if node.view.load is not None]
        if not loads and (nodes or not fleet.held):
            return None
        speed = told.peakPrefillThroughput or _calibrated(fleet)
        backlog_s = (fleet.held_prompt_tokens + sum(load.prefill_tokens for load in loads)) / speed
        kv = sum(1.0 - load.free_blocks / load.total_blocks for load in loads)
        asked = max(self._asked(backlog_s, told.prefill_threshold_s, had), self._asked(kv, told.kv_threshold, had))
        if len(loads) < len(nodes):
            asked = max(asked, had)
        settled = self._bounded.settle(had, asked, now_s)
        seen = {
            "backlog_s": backlog_s,
            "kv_in_use": kv,
            "peak_prefill_tokens_per_s": speed,
            "asked_nodes": float(asked),
        }
        why = f"{backlog_s:.2f} s of prompts, {kv:.2f} KV caches: {asked} asked for, {settled} allowed"
        return wish(fleet, settled, seen=seen, why=why)

    def _asked(self, metric: float, target: float, had: int) -> int:
        if had and abs(metric / (target * had) - 1.0) <= self._options.tolerance:
            return had
        return math.ceil(metric / target - 1e-9)


def _calibrated(fleet: FleetState) -> float:
    profile = profile_of(fleet)
    if profile is None:
        return PEAK_PREFILL_TOKENS_PER_S
    pace, engine = profile
    tokens = min(engine.max_num_batched_tokens, engine.max_model_len_tokens)
    seconds = pace.step_s[1] + tokens * (pace.prefill_s_per_token + pace.prefill_s_per_token2 * tokens / 2.0)
    return tokens / seconds

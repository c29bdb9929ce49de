"""When a node looks ahead at what it has, with nobody asking, and what it has seen. Pure.

Who moves requests wants to know where a preemption is ahead and how long those that wait will wait. Both are in the
future that each forecast is compared with, but a node may not be asked for one for a long time. So it looks for itself:
at most every `EVERY_S`, for at most `SHARE` of a processor's time, and only where there may be something to see.
"""

from __future__ import annotations

import math

import msgspec

from simcore.types import EngineConfig, NodeLoad, NodeOutlook

EVERY_S = 0.25
SHARE = 0.02
"""Of a processor's time."""
LASTS_S = 1.0
"""After so long what was seen is told no more."""


class Lookout:
    """One node's. Times must not run backwards."""

    def __init__(self, config: EngineConfig) -> None:
        self.looks = 0
        """How often it has looked."""
        self._tokens_per_block = config.tokens_per_block
        self._seen = NodeOutlook()
        self._seen_s = -math.inf
        self._due_s = -math.inf

    def is_due(self, load: NodeLoad, now_s: float) -> bool:
        """Whether to look now: somebody waits, or what is expected to come of those that run does not fit beside them.
        (It is expected with nobody's blocks given back, so that it says too often rather than too seldom.)"""
        if now_s < self._due_s:
            return False
        waits = load.waiting > load.reserved
        return waits or load.unprocessed_tokens > load.free_blocks * self._tokens_per_block

    def saw(self, outlook: NodeOutlook | None, now_s: float, took_s: float = 0.0) -> None:
        """What it saw as of `now_s` (None: the state cannot be simulated), for `took_s` processor seconds."""
        self.looks += 1
        self._seen, self._seen_s = outlook or NodeOutlook(), now_s
        self._due_s = now_s + max(EVERY_S, took_s / SHARE)

    def told(self, load: NodeLoad, now_s: float) -> NodeLoad:
        """The load with what was seen, which comes nearer as time goes on."""
        seen, age_s = self._seen, now_s - self._seen_s
        if age_s > LASTS_S or (seen.preemption_ahead_s < 0.0 and not seen.head_waits_s):
            return load
        ahead_s, waits_s = seen.preemption_ahead_s, seen.head_waits_s
        return msgspec.structs.replace(
            load,
            preemption_ahead_s=max(0.0, ahead_s - age_s) if ahead_s >= 0.0 else ahead_s,
            head_waits_s=max(0.0, waits_s - age_s) if load.waiting else 0.0,
        )

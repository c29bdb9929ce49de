"""A scaling rule of one's own in one file: so many nodes that what waits is begun within a time.

astrolabe bench simulate --scaler forecast,bench/examples/queue_drain.py --max 8 --rate-steps 2x300,8x300,3x300
"""

from __future__ import annotations

import math
import random

import msgspec

from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.events import RequestDone
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import Deaf, Wish


class QueueDrainOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be said with --scaler-option."""

    within_s: float = 10.0


class QueueDrain(Deaf):
    """One class with these members; `Deaf` is for what it need not hear of."""

    name = "queue_drain"
    """Under this name it appears in tables and in `explain`."""
    source = "an example"
    options_type = QueueDrainOptions

    def __init__(self, config: ScaleConfig, options: QueueDrainOptions, rng: random.Random) -> None:
        self.within_s = options.within_s
        self.mean_s = 1.0

    def done(self, request: RequestDone, now_s: float) -> None:
        """An answer is whole."""
        self.mean_s += 0.05 * (request.e2e_s - request.waited_s - self.mean_s)

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        """What is wanted now; None: there is nothing to go by, all stays as it is."""
        loads = [node.view.load for node in fleet.serving]
        if any(load is None for load in loads):
            return None
        waiting = fleet.held + sum(load.waiting for load in loads if load is not None)
        running = sum(load.running for load in loads if load is not None)
        busy = running / max(1, len(loads)) or 1.0
        nodes = math.ceil((running + waiting * self.mean_s / self.within_s) / busy)
        seen = {"waiting_requests": float(waiting), "running_requests": float(running), "answer_s": self.mean_s}
        wanted = {state.group.name: nodes for state in fleet.groups}
        return Wish(wanted=wanted, seen=seen, why=f"{waiting} wait for {running} that run")

"""How fast a number of nodes may follow what is asked for: Kubernetes' HorizontalPodAutoscaler `behavior`. Pure."""

from __future__ import annotations

import math
from collections import deque
from typing import Annotated

import msgspec

from gateway.core.scale.windows import WindowMax, WindowMin

NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Pods = Annotated[int, msgspec.Meta(ge=0)]


class Behaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one autoscaler; the defaults are Kubernetes' own (autoscaling/v2)."""

    up_stabilization_s: NotNegative = 0.0
    """Up to the least that was asked for within so long."""
    up_percent: NotNegative = 100.0
    up_pods: Pods = 4
    up_period_s: NotNegative = 15.0
    """Within this at most so many per cent or so many nodes more, whichever is more."""
    down_stabilization_s: NotNegative = 300.0
    """Down to the most that was asked for within so long."""
    down_percent: NotNegative = 100.0
    down_pods: Pods = 0
    down_period_s: NotNegative = 15.0
    """Within this at most so many per cent or so many nodes fewer, whichever is more."""


class BoundedByBehaviour:
    """Bounds what is asked for, tick by tick."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._least = WindowMin(behaviour.up_stabilization_s)
        self._most = WindowMax(behaviour.down_stabilization_s)
        self._changes: deque[tuple[float, int]] = deque()
        self._began = False

    def settle(self, nodes: int, asked: int, now_s: float) -> int:
        """From so many nodes, with so many asked for: how many there may be."""
        told = self._behaviour
        if not self._began:
            # What there is when it begins counts as asked for.
            self._began = True
            if told.up_stabilization_s:
                self._least.read(nodes, now_s)
            if told.down_stabilization_s:
                self._most.read(nodes, now_s)
        low, high = self._least.read(asked, now_s), self._most.read(asked, now_s)
        settled = round(min(max(nodes, low), high)) if low <= high else nodes
        while self._changes and self._changes[0][0] <= now_s - max(told.up_period_s, told.down_period_s):
            self._changes.popleft()
        if settled > nodes:
            began = nodes - sum(by for at_s, by in self._changes if by > 0 and at_s > now_s - told.up_period_s)
            most = max(began + told.up_pods, math.ceil(began * (1.0 + told.up_percent / 100.0)))
            settled = max(nodes, min(settled, most))
        elif settled < nodes:
            began = nodes - sum(by for at_s, by in self._changes if by < 0 and at_s > now_s - told.down_period_s)
            least = min(began - told.down_pods, math.floor(began * (1.0 - told.down_percent / 100.0)))
            settled = min(nodes, max(settled, least))
        if settled != nodes:
            self._changes.append((now_s, settled - nodes))
        return settled

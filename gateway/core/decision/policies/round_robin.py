"""Each node in its turn."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class RoundRobin:
    """The node whose last turn is longest ago.

    Block takes `int(request_id) mod n`, which stumbles when nodes come and go. Remembering turns gives the same cycle
    over a fixed set and stays fair over a changing one. Nodes that never had a turn go first, in random order, so that
    several gateways do not walk in step. A turn is taken when nodes are priced.
    """

    name: ClassVar[str] = "round_robin"
    cost_unit: ClassVar[str] = "turns"
    needs_forecasts: ClassVar[bool] = False

    def __init__(self, rng: random.Random) -> None:
        """`rng` draws the order of newcomers."""
        self._rng = rng
        self._turn = 0
        self._last_turn: dict[str, int] = {}

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        """Turns until each node has its own; the first turn is taken."""
        last_turn = self._last_turn
        newcomers = [node for node in nodes if node.node_id not in last_turn]
        if newcomers:
            # They line up before everyone, each with a place of its own: turns below all that were given.
            self._rng.shuffle(newcomers)
            first = min(last_turn.values(), default=0) - len(newcomers)
            for place, node in enumerate(newcomers):
                last_turn[node.node_id] = first + place
        order = sorted(range(len(nodes)), key=lambda i: last_turn[nodes[i].node_id])
        self._turn += 1
        last_turn[nodes[order[0]].node_id] = self._turn
        turns = [0.0] * len(nodes)
        for place, i in enumerate(order):
            turns[i] = float(place)
        return turns

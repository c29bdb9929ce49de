"""What each side of a placement weighs: the request, those at the node, and those who will come. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.core.events import RequestShape
from gateway.core.nodes.view import NodeView
from gateway.core.priority import PriorityConfig

ARRIVALS_OVER = 1000
"""Placements over which the mean weight of those who come is taken."""


class Weights(NamedTuple):
    """What a second counts for, against one of a request of class 0."""

    own: float = 1.0
    there: float = 1.0
    """Of those at the node, in the mean."""
    later: float = 1.0
    """Of those who come, in the mean."""


EQUAL = Weights()


class ClassWeights:
    """Weighs the requests of one policy by their classes; remembers what came of late."""

    def __init__(self, config: PriorityConfig) -> None:
        self._config = config
        self._later = 1.0

    def placed(self, request: RequestShape) -> None:
        """One more has come."""
        self._later += (self._config.weight_of(request.priority) - self._later) / ARRIVALS_OVER

    def weigh(self, request: RequestShape, nodes: Sequence[NodeView]) -> list[Weights] | None:
        """The weights at each node; None where every one of them is 1."""
        config, later = self._config, self._later
        if config.weight == 1.0:
            return None
        if not request.priority and later == 1.0 and not any(node.classes for node in nodes):
            return None
        own, found = config.weight_of(request.priority), list[Weights]()
        for node in nodes:
            here = node.in_flight if node.load is None else node.load.running + node.load.waiting
            found.append(Weights(own, config.weight_there(node.classes, here) if node.classes else 1.0, later))
        return found

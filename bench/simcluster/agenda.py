"""When each node of a cluster has something to do, and something to tell: asked at every event, of all nodes. Pure."""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bench.simcluster.node import ClusterNode

FEW = 30
"""Nodes of fewer are looked at one by one: that is sooner done than a comparison of columns begins."""


class Agenda:
    """Columns over nodes, which write their own rows. Moments in seconds of the run; inf: nothing is planned."""

    def __init__(self, size: int = 1) -> None:
        self.next_s, self.note_s = array("d", [math.inf] * size), array("d", [math.inf] * size)
        # The same memory: one value is written faster to an array, all are compared faster by numpy.
        self._next_s, self._note_s = np.frombuffer(self.next_s), np.frombuffer(self.note_s)
        self._nodes: list[ClusterNode] = []

    @classmethod
    def of(cls, nodes: Collection[ClusterNode]) -> Agenda:
        """The nodes write into this one from now on."""
        agenda = cls(len(nodes))
        agenda._nodes.extend(nodes)
        for row, node in enumerate(nodes):
            node.enter(agenda, row)
        return agenda

    def busy_before(self, at_s: float) -> list[ClusterNode]:
        """Those that have something to do before that, in the order of the cluster."""
        if len(self._nodes) < FEW:
            return [node for node in self._nodes if node.next_s < at_s]
        return [self._nodes[row] for row in (self._next_s < at_s).nonzero()[0].tolist()]

    def noted_by(self, at_s: float) -> list[ClusterNode]:
        """Those of which a newer state is known by then."""
        if len(self._nodes) < FEW:
            return [node for node in self._nodes if node.note_s <= at_s]
        return [self._nodes[row] for row in (self._note_s <= at_s).nonzero()[0].tolist()]

"""A heap of timed events in one declared order. Pure.

The order is (time, rank, sequence): simultaneous events go by rank, and events of one rank in the order in which they
were scheduled. So a run depends on its input alone.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import math
from collections.abc import Iterator
from typing import Any


class Rank(enum.IntEnum):
    """Who goes first when times are equal.

    What nodes have told comes before what follows from it: an answer that arrives with its timeout is in time, and an
    arrival sees everything that came with it. A node takes aborts, dispatches and asks in that order, as the frames of
    a session do.
    """

    WORLD = 0
    """Nodes join and break, operators act."""
    NODE_TOLD = 1
    """Load notes, tokens and ends reach the router."""
    FORECAST = 2
    TIMER = 3
    CLIENT = 4
    """Arrivals."""
    ABORT = 5
    """These and what follows reach a node."""
    DISPATCH = 6
    ASK = 7


class EventHeap:
    """Holds (time, rank, sequence, what). `what` is never compared."""

    def __init__(self, beside: EventHeap | None = None) -> None:
        """`beside`: a heap with which it shares the sequence, so that their firsts can be compared."""
        self._heap: list[tuple[float, int, int, Any]] = []
        self._sequence: Iterator[int] = itertools.count(1) if beside is None else beside._sequence

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, at_s: float, rank: int, what: Any) -> None:
        heapq.heappush(self._heap, (at_s, rank, next(self._sequence), what))

    def pop(self) -> tuple[float, int, int, Any]:
        return heapq.heappop(self._heap)

    def of_rank(self, rank: Rank) -> list[tuple[float, int, int, Any]]:
        """All that are due of one rank, in no order."""
        return [entry for entry in self._heap if entry[1] == rank]

    @property
    def first(self) -> tuple[float, int, int, Any] | tuple[float]:
        """The next event; the end of time if there is none."""
        return self._heap[0] if self._heap else (math.inf,)

    @property
    def next_s(self) -> float:
        """When the next event is due; inf if there is none."""
        return self._heap[0][0] if self._heap else math.inf

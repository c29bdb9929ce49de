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

    What nodes report comes before what follows from it: an answer that arrives with its timeout is in time, and an
    arrival sees everything that came with it. A node takes aborts, dispatches and asks in that order, as the frames of
    a session do.
    """

    WORLD = 0
    """Nodes join and break, operators act."""
    NODE_REPORT = 1
    """Load notes, tokens and ends reach the router."""
    FORECAST = 2
    TIMER = 3
    CLIENT = 4
    """Arrivals."""
    ABORT = 5
    """These and what follows reach a node."""
    DISPATCH = 6
    ASK = 7


Entry = tuple[float, int, int, Any]

END_OF_TIME: Entry = (math.inf, len(Rank), 0, None)


class EventHeap:
    """Holds (time, rank, sequence, what). `what` is never compared."""

    def __init__(self, beside: EventHeap | None = None) -> None:
        """`beside`: a heap with which it shares the sequence, so that their firsts can be compared."""
        self.entries: list[Entry] = [END_OF_TIME]
        """A heap of `heapq`, for whoever takes the first, which is the next event; the last of all to come, and never
        taken, is the end of time."""
        self._sequence: Iterator[int] = itertools.count(1) if beside is None else beside._sequence

    def __len__(self) -> int:
        return len(self.entries) - 1

    def push(self, at_s: float, rank: int, what: Any) -> None:
        heapq.heappush(self.entries, (at_s, rank, next(self._sequence), what))

    def of_rank(self, rank: Rank) -> list[Entry]:
        """All that are due of one rank, in no order."""
        return [entry for entry in self.entries if entry[1] == rank]

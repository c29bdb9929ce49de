"""One worker's part of the page: what it alone knows. A page is made of the parts of all (`picture.py`). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.ui.tail import Line
from gateway.ui.timeline import Sample


class NodePart(msgspec.Struct, frozen=True, gc=False):
    """What workers have to do with a node. Counts."""

    in_flight: int = 0
    """Requests there."""
    out: int = 0
    """Requests on their way from there to other nodes."""
    into: int = 0
    """Requests on their way to it."""
    away: int = 0
    """Workers that have no session with it: of one 0 or 1."""
    alarm: str = ""
    """What an operator should look at, for people."""

    def __add__(self, other: NodePart) -> NodePart:
        """Of several workers; of their alarms the first."""
        return NodePart(
            self.in_flight + other.in_flight,
            self.out + other.out,
            self.into + other.into,
            self.away + other.away,
            self.alarm or other.alarm,
        )


NOTHING = NodePart()


class PagePart(msgspec.Struct, frozen=True, kw_only=True):
    """What is so now, and what is new since the part before; in the first one, all that is kept."""

    nodes: Mapping[str, NodePart] = {}
    """By address; a node that is not here has `NOTHING`."""
    under_way: int = 0
    """Requests."""
    held: int = 0
    """Requests that no node can take yet."""
    wait_s: float = 0.0
    """How long one that joins these would wait."""
    moves: int = 0
    """Under way."""
    samples: tuple[Sample, ...] = ()
    """New ones of the timeline, oldest first."""
    lines: tuple[Line, ...] = ()
    """New ones of the log, oldest first."""
    skipped_lines: int = 0
    """New ones that were left out before these."""
    scaling: dict[str, Any] | None = None
    """As the page gets it; None where nothing is scaled. Another worker's is here only while that one leads."""

    @property
    def leads(self) -> bool:
        """Whether this worker decides on the fleet's size."""
        return self.scaling is not None and bool(self.scaling["leads"])

"""What every source of nodes does: tell which there are, and again whenever that may have changed.

The contract, held by `tests/conformance/test_node_sources.py`: a list is whole; an empty one says that there are none;
what is not known is a NodesUnknown, never an empty list; after one, `lists` begins anew.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from gateway.config import NodeEntry


class NodesUnknown(Exception):
    """Which nodes there are is not known now. The message is for people."""


class NodeSource(Protocol):
    """Looks for nodes while its lists are iterated over."""

    where: str
    """What is asked, for people; two sources that ask the same have the same."""

    def lists(self) -> AsyncGenerator[Sequence[NodeEntry], None]:
        """All nodes, now and whenever they may have changed, to no end. Raises NodesUnknown."""

"""What every connector does: start a node of a group, stop one, say which there are.

The contract, held by `tests/conformance/test_connectors.py`: to start what starts or runs, or to stop what is not
there, changes nothing and is no error; a node is in `list_nodes` from the moment at which its start may have begun
until nothing of it is left; a call may be cancelled at any time, and called again.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import msgspec


class ConnectorNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node that is there, whatever state it is in."""

    node_id: str
    group: str
    address: str = ""
    """host:port of its predictor; empty while that is not known."""
    detail: str = ""
    """What is wrong with it; empty: it starts or serves."""
    asked_as: str = ""
    """The name by which its start was asked for, where that is another than its own."""


class ConnectorError(Exception):
    """What was asked could not be done, or it is not known whether it was. The message is for people."""


class Connector(Protocol):
    """Starts nodes by names that the scaler gives them, and stops them by those or by their own. All methods raise
    ConnectorError."""

    name: ClassVar[str]
    executes: ClassVar[bool]
    """Whether it starts and stops anything."""

    async def start(self, node_id: str, group: str) -> None:
        """Returns once the start has begun for good; the node need not be ready."""

    async def stop(self, node_id: str, group: str) -> None:
        """Returns once nothing of the node is left, or its end cannot fail any more."""

    async def list_nodes(self) -> list[ConnectorNode]:
        """All nodes that there are."""

    async def close(self, *, ends: bool) -> None:
        """Lets go of everything. `ends`: the gateway stops for good, and what cannot live without it is to end."""

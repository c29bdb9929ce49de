"""Starts nothing: what is wanted stands on the page for Prometheus, and another autoscaler (KEDA, an HPA) does it.

Which nodes there are it knows from the gateway, which finds them by their names or addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from gateway.scale.connectors.base import ConnectorError, ConnectorNode


class AdviseConnector:
    """Lists what the gateway sees."""

    name: ClassVar[str] = "advise"
    executes: ClassVar[bool] = False

    def __init__(self, seen: Callable[[], Sequence[ConnectorNode]]) -> None:
        self._seen = seen

    async def start(self, node_id: str, group: str) -> None:
        raise ConnectorError("the connector 'advise' starts nothing")

    async def stop(self, node_id: str, group: str) -> None:
        raise ConnectorError("the connector 'advise' stops nothing")

    async def list_nodes(self) -> list[ConnectorNode]:
        return list(self._seen())

    async def close(self, *, ends: bool) -> None:
        """Nothing is held."""

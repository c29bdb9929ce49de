"""Nodes as pods of StatefulSets: the API server's scale subresource says how many, pods say where and how they are.

A StatefulSet numbers its pods and takes the last one away first, so that a node that was asked to leave is the one that
goes. https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from gateway.scale.connectors.base import ConnectorError, ConnectorNode
from gateway.scale.connectors.kubernetes_api import KubernetesApi, wrong_with

if TYPE_CHECKING:
    from gateway.scale.config import ScalingConfig


class StatefulSetConnector:
    """One StatefulSet a group, of the group's name; node `name-3` is its pod of that name."""

    name: ClassVar[str] = "kubernetes"
    executes: ClassVar[bool] = True

    def __init__(self, config: ScalingConfig) -> None:
        self._api = KubernetesApi(config.kubernetes, port=config.kubernetes.port)
        self._groups = [group.name for group in config.group]

    async def start(self, node_id: str, group: str) -> None:
        wanted = _ordinal(node_id) + 1
        scale = await self._api.get(self._path(group))
        if _replicas(scale) < wanted:
            await self._set_replicas(group, scale, wanted)

    async def stop(self, node_id: str, group: str) -> None:
        ordinal = _ordinal(node_id)
        scale = await self._api.get(self._path(group))
        replicas = _replicas(scale)
        if replicas <= ordinal:
            return
        if replicas > ordinal + 1:
            raise ConnectorError(f"{node_id} is not the last of {replicas}: a StatefulSet takes away the last one only")
        await self._set_replicas(group, scale, ordinal)

    async def list_nodes(self) -> list[ConnectorNode]:
        told = await asyncio.gather(*(self._nodes(group) for group in self._groups))
        return [node for nodes in told for node in nodes]

    async def close(self, *, ends: bool) -> None:
        """What runs goes on."""
        await self._api.close()

    async def _nodes(self, group: str) -> list[ConnectorNode]:
        """Those that are wanted, whether or not their pods are there, and those that still end."""
        scale = await self._api.get(self._path(group))
        pods = await self._api.pods(str(scale.get("status", {}).get("selector", "")))
        wanted = [f"{group}-{ordinal}" for ordinal in range(_replicas(scale))]
        own = [name for name in pods if name.rpartition("-")[0] == group and name.rpartition("-")[2].isdecimal()]
        names = sorted({*wanted, *own}, key=_ordinal)
        return [self._node(name, group, pods.get(name), leaves=name not in wanted) for name in names]

    def _node(self, name: str, group: str, pod: dict[str, Any] | None, *, leaves: bool) -> ConnectorNode:
        if pod is None:
            return ConnectorNode(node_id=name, group=group)
        # One that is deleted although it is wanted comes back: a rolling update.
        detail = "its pod is being stopped" if leaves else wrong_with(pod)
        return ConnectorNode(node_id=name, group=group, address=self._api.address_of(pod), detail=detail)

    def _path(self, group: str) -> str:
        return f"{self._api.workload('statefulsets', group)}/scale"

    async def _set_replicas(self, group: str, scale: dict[str, Any], replicas: int) -> None:
        await self._api.patch(self._path(group), {"spec": {"replicas": replicas}}, read=scale)


def _ordinal(node_id: str) -> int:
    return int(node_id.rpartition("-")[2])


def _replicas(scale: dict[str, Any]) -> int:
    return int(scale.get("spec", {}).get("replicas", 0))

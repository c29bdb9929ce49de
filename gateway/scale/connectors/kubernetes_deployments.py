"""Nodes as pods of Deployments, whose names Kubernetes makes up and of which it chooses itself which one goes.

A node is asked for by a name (`a30-0`) and is then called as its pod. Which pod was asked for by which name stands in
an annotation of the Deployment, changed in one write with the number of its replicas: to ask twice is to ask once,
whoever asks, and a gateway that is new knows what the one before has asked for.

The pod that is to go is marked as the cheapest to delete before there is one replica less. Kubernetes goes by that mark
among pods that are ready, and takes others first: so nothing is stopped while another pod is not ready.
https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#pod-deletion-cost
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from gateway.scale.connectors.base import ConnectorError, ConnectorNode
from gateway.scale.connectors.kubernetes_api import KubernetesApi, wrong_with

if TYPE_CHECKING:
    from gateway.scale.config import ScalingConfig

ASKED = "astrolabe/asked-for"
"""Annotation of a Deployment: names that were asked for and their pods (JSON; an empty text: none is there yet)."""
COST = "controller.kubernetes.io/pod-deletion-cost"
CHEAPEST = "-2147483648"


class DeploymentConnector:
    """One Deployment a group, of the group's name."""

    name: ClassVar[str] = "kubernetes"
    executes: ClassVar[bool] = True

    def __init__(self, config: ScalingConfig) -> None:
        self._api = KubernetesApi(config.kubernetes, port=config.kubernetes.port)
        self._groups = [group.name for group in config.group]

    async def start(self, node_id: str, group: str) -> None:
        deployment, pods = await self._read(group)
        asked = _bound(group, deployment, pods)
        if node_id not in asked and node_id not in asked.values():
            await self._write(group, deployment, {**asked, node_id: ""})

    async def stop(self, node_id: str, group: str) -> None:
        deployment, pods = await self._read(group)
        asked = _bound(group, deployment, pods)
        name = next((name for name, pod in asked.items() if node_id in (name, pod)), None)
        if name is None:
            return
        pod = pods.get(asked[name])
        if pod is not None:
            unready = [other for other in asked.values() if other in pods and not _is_ready(pods[other])]
            if _is_ready(pod) and unready:
                raise ConnectorError(
                    f"{node_id} stays until {', '.join(sorted(unready))} is ready: Kubernetes would take that first"
                )
            change = {"metadata": {"annotations": {COST: CHEAPEST}}}
            await self._api.patch(self._api.pod(asked[name]), change, read=pod)
        await self._write(group, deployment, {other: pod for other, pod in asked.items() if other != name})

    async def list_nodes(self) -> list[ConnectorNode]:
        told = await asyncio.gather(*(self._nodes(group) for group in self._groups))
        return [node for nodes in told for node in nodes]

    async def close(self, *, ends: bool) -> None:
        """What runs goes on."""
        await self._api.close()

    async def _nodes(self, group: str) -> list[ConnectorNode]:
        """Those that are wanted, whether or not their pods are there, and those that still end."""
        deployment, pods = await self._read(group)
        asked = _bound(group, deployment, pods)
        if asked != _asked(deployment):
            await self._write(group, deployment, asked)
        nodes = []
        for name, pod_name in asked.items():
            if not pod_name:
                nodes.append(ConnectorNode(node_id=name, group=group))
                continue
            pod = pods[pod_name]
            nodes.append(
                ConnectorNode(
                    node_id=pod_name,
                    group=group,
                    address=self._api.address_of(pod),
                    detail=wrong_with(pod),
                    asked_as=name,
                )
            )
        ends = [name for name in pods if name not in asked.values()]
        for name in sorted(ends):
            address = self._api.address_of(pods[name])
            nodes.append(ConnectorNode(node_id=name, group=group, address=address, detail="its pod is being stopped"))
        return nodes

    async def _read(self, group: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        deployment = await self._api.get(self._api.workload("deployments", group))
        labels = deployment.get("spec", {}).get("selector", {}).get("matchLabels", {})
        if not labels:
            raise ConnectorError(f"Deployment {group!r} selects its pods by no matchLabels; give it some")
        return deployment, await self._api.pods(",".join(f"{key}={value}" for key, value in sorted(labels.items())))

    async def _write(self, group: str, deployment: dict[str, Any], asked: Mapping[str, str]) -> None:
        change = {
            "metadata": {"annotations": {ASKED: json.dumps(asked, sort_keys=True)}},
            "spec": {"replicas": len(asked)},
        }
        await self._api.patch(self._api.workload("deployments", group), change, read=deployment)


def _asked(deployment: dict[str, Any]) -> dict[str, str]:
    """As it is written there; nothing where nobody has written it, or it was changed by hand into what it cannot be."""
    try:
        said = json.loads(deployment.get("metadata", {}).get("annotations", {}).get(ASKED, "{}"))
    except ValueError:
        return {}
    return {str(name): str(pod) for name, pod in said.items()} if isinstance(said, dict) else {}


def _bound(group: str, deployment: dict[str, Any], pods: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Names asked for and their pods, as it is now: a pod that is gone has left its name to the next one, pods that
    nobody asked for get names, and there are as many names as replicas."""
    staying = [name for name, pod in pods.items() if "deletionTimestamp" not in pod["metadata"]]
    asked = {name: pod if pod in staying else "" for name, pod in _asked(deployment).items()}
    replicas = int(deployment.get("spec", {}).get("replicas", 0))
    # Somebody else wants fewer: those go that are not there yet.
    waiting = [name for name, pod in asked.items() if not pod]
    for name in waiting[: max(0, len(asked) - replicas)]:
        del asked[name]
    free = (name for i in itertools.count() if (name := f"{group}-{i}") not in asked)
    while len(asked) < replicas:
        asked[next(free)] = ""
    unnamed = sorted(set(staying) - set(asked.values()), key=lambda name: (_created(pods[name]), name))
    for name in [name for name, pod in asked.items() if not pod]:
        if unnamed:
            asked[name] = unnamed.pop(0)
    return asked


def _created(pod: dict[str, Any]) -> str:
    return str(pod["metadata"].get("creationTimestamp", ""))


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)

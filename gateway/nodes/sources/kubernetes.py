"""The EndpointSlices of a Kubernetes Service: listed once, then watched.

https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/ and, for watching,
https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from gateway.config import KubernetesNodesConfig, NodeEntry
from gateway.nodes.sources.base import NodesUnknown
from gateway.scale.connectors.base import ConnectorError
from gateway.scale.connectors.kubernetes_api import KubernetesApi, ResourceGone
from protos.runtime.addresses import HostPort

AGAIN_S = 1.0
"""Before a watch that has ended is begun again: a server that ends each at once is not asked without a pause."""


class EndpointSliceSource:
    """One Service. What is not ready is not there: a pod that stops is taken out while it still answers."""

    def __init__(self, config: KubernetesNodesConfig) -> None:
        named = ":".join(filter(None, (config.service, config.port)))
        self.where = f"kubernetes {config.server}/{config.namespace}/{named}"
        self._config = config

    async def lists(self) -> AsyncGenerator[Sequence[NodeEntry], None]:
        api = KubernetesApi(self._config, table="discovery.kubernetes")
        try:
            while True:
                async with aclosing(self._from_a_list_on(api)) as lists:
                    async for nodes in lists:
                        yield nodes
                await asyncio.sleep(AGAIN_S)
        except ConnectorError as bad:
            raise NodesUnknown(str(bad)) from None
        finally:
            await api.close()

    async def _from_a_list_on(self, api: KubernetesApi) -> AsyncGenerator[Sequence[NodeEntry], None]:
        """Until the server has forgotten what came after the list. Raises ConnectorError."""
        path = api.endpoint_slices()
        selector = {"labelSelector": f"kubernetes.io/service-name={self._config.service}"}
        said = await api.get(path, params=selector)
        slices = {one["metadata"]["name"]: one for one in said.get("items", ())}
        version = said.get("metadata", {}).get("resourceVersion", "")
        yield nodes_of(slices.values(), self._config.port)
        try:
            while True:
                async with aclosing(api.watch(path, params={**selector, "resourceVersion": version})) as events:
                    async for kind, one in events:
                        metadata = one.get("metadata", {})
                        version = metadata.get("resourceVersion", version)
                        if kind == "BOOKMARK":
                            continue
                        if kind == "DELETED":
                            slices.pop(metadata["name"], None)
                        else:
                            slices[metadata["name"]] = one
                        yield nodes_of(slices.values(), self._config.port)
                await asyncio.sleep(AGAIN_S)
        except ResourceGone:
            return


def nodes_of(slices: Iterable[dict[str, Any]], port: str) -> list[NodeEntry]:
    """The ready endpoints in them. `port`: the name of theirs; empty: the first. A pod with addresses of both versions
    is in two slices and one node."""
    found: dict[str, HostPort] = {}
    for one in sorted(slices, key=lambda one: (one.get("addressType", ""), one["metadata"]["name"])):
        ports = [entry for entry in one.get("ports") or () if port in ("", entry.get("name"))]
        if not ports or not ports[0].get("port") or one.get("addressType") == "FQDN":
            continue
        for endpoint in one.get("endpoints") or ():
            # Not said means ready.
            if (endpoint.get("conditions") or {}).get("ready") is False:
                continue
            for address in endpoint.get("addresses", ())[:1]:
                pod = (endpoint.get("targetRef") or {}).get("uid", "")
                found.setdefault(pod or address, HostPort(address, int(ports[0]["port"])))
    return [NodeEntry(address=str(address)) for address in dict.fromkeys(sorted(found.values()))]

"""Calls of Kubernetes' API server. https://kubernetes.io/docs/reference/using-api/"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from gateway.scale.connectors.base import ConnectorError
from protos.runtime.addresses import HostPort

if TYPE_CHECKING:
    from gateway.scale.config import KubernetesConnectorConfig

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
BROKEN = (
    "CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError",
    "CreateContainerError", "RunContainerError",
)  # fmt: skip
"""Reasons why a container waits that do not pass by themselves."""
MERGE = {"content-type": "application/merge-patch+json"}


class KubernetesApi:
    """One API server and one namespace. All calls raise ConnectorError."""

    def __init__(self, config: KubernetesConnectorConfig) -> None:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        in_cluster = f"https://{HostPort(host, int(port))}" if host else ""
        self._server = (config.server or in_cluster).rstrip("/")
        self._namespace = config.namespace
        self._token_file = Path(config.token_file)
        self._ca_file = config.ca_file
        self._port = config.port
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def workload(self, kind: str, name: str) -> str:
        """Path of a StatefulSet or Deployment; `kind` in the plural."""
        return f"/apis/apps/v1/namespaces/{self._where()}/{kind}/{name}"

    def pod(self, name: str) -> str:
        """Path of one."""
        return f"/api/v1/namespaces/{self._where()}/pods/{name}"

    async def pods(self, selector: str) -> dict[str, dict[str, Any]]:
        """By name."""
        path = f"/api/v1/namespaces/{self._where()}/pods"
        said = await self.get(path, params={"labelSelector": selector})
        return {pod["metadata"]["name"]: pod for pod in said.get("items", ())}

    def address_of(self, pod: dict[str, Any]) -> str:
        """Of its predictor; empty while it has none."""
        ip = pod.get("status", {}).get("podIP")
        return str(HostPort(ip, self._port)) if ip else ""

    async def get(self, path: str, **how: Any) -> dict[str, Any]:
        return await self._call("GET", path, **how)

    async def patch(self, path: str, change: dict[str, Any], *, read: dict[str, Any]) -> dict[str, Any]:
        """Only on the version that was read: if somebody has changed it since, the server refuses, and it is tried
        again."""
        metadata = {**change.get("metadata", {}), "resourceVersion": read.get("metadata", {}).get("resourceVersion")}
        return await self._call("PATCH", path, json={**change, "metadata": metadata}, headers=MERGE)

    def _where(self) -> str:
        if not self._namespace:
            try:
                self._namespace = NAMESPACE_FILE.read_text().strip()
            except OSError:
                raise ConnectorError(
                    "the namespace is not known outside of a cluster; set namespace in [scaling.kubernetes]"
                ) from None
        return self._namespace

    async def _call(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        if not self._server:
            raise ConnectorError("no API server is known outside of a cluster; set server in [scaling.kubernetes]")
        try:
            headers = {**how.pop("headers", {}), **self._authorization()}
            session = self._session = self._session or self._open()
            async with session.request(method, self._server + path, headers=headers, **how) as answer:
                said = await answer.json(content_type=None)
        except (aiohttp.ClientError, OSError, ValueError) as bad:
            raise ConnectorError(f"{method} {path}: {bad or type(bad).__name__}") from None
        if answer.status >= 300 or not isinstance(said, dict):
            reason = said.get("message", "") if isinstance(said, dict) else ""
            raise ConnectorError(f"{method} {path}: {answer.status} {reason or answer.reason}")
        return said

    def _authorization(self) -> dict[str, str]:
        """Raises OSError. Tokens of service accounts are replaced while one runs."""
        return {"authorization": f"Bearer {self._token_file.read_text().strip()}"}

    def _open(self) -> aiohttp.ClientSession:
        """Raises OSError: no authority in the file."""
        secure = self._server.startswith("https://")
        trusted = ssl.create_default_context(cafile=self._ca_file) if secure else True
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted))


def wrong_with(pod: dict[str, Any]) -> str:
    """What is wrong with a pod; empty: it starts or runs."""
    status = pod.get("status", {})
    if status.get("phase") == "Failed":
        return f"its pod has failed ({status.get('reason', 'no reason')})"
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") in BROKEN:
            return f"{waiting['reason']}: {waiting.get('message', '')}".strip(": ")[:300]
    return ""

"""Calls of Kubernetes' API server. https://kubernetes.io/docs/reference/using-api/"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from gateway.scale.connectors.base import ConnectorError
from protos.runtime.addresses import HostPort

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
BROKEN = (
    "CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError",
    "CreateContainerError", "RunContainerError",
)  # fmt: skip
"""Reasons why a container waits that do not pass by themselves."""
WATCH_S = 240
"""After so long the server ends a watch, which is then begun again."""
SILENCE_S = WATCH_S + 60.0
"""A watch that has said nothing for so long, not even that it ends, is lost."""
GONE = 410
MERGE = {"content-type": "application/merge-patch+json"}


class ResourceGone(ConnectorError):
    """What came after that version has been forgotten: it must be listed anew."""


class KubernetesAccess(Protocol):
    """How to reach an API server, as configurations have it."""

    @property
    def server(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def token_file(self) -> str: ...
    @property
    def ca_file(self) -> str: ...


class KubernetesApi:
    """One API server and one namespace. All calls raise ConnectorError."""

    def __init__(self, config: KubernetesAccess, *, port: int = 0, table: str = "scaling.kubernetes") -> None:
        """`port`: that of pods' predictors. `table`: where the configuration says all that."""
        host, at = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        in_cluster = f"https://{HostPort(host, int(at))}" if host else ""
        self._server = (config.server or in_cluster).rstrip("/")
        self._namespace = config.namespace
        self._token_file = Path(config.token_file)
        self._ca_file = config.ca_file
        self._port = port
        self._table = table
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

    def endpoint_slices(self) -> str:
        """Path of all."""
        return f"/apis/discovery.k8s.io/v1/namespaces/{self._where()}/endpointslices"

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

    async def watch(self, path: str, *, params: dict[str, str]) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """What changes from a version on: (ADDED, MODIFIED, DELETED or BOOKMARK; the object). Ends after a while, in
        good order. Raises ResourceGone too."""
        asked = {**params, "watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_S)}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=SILENCE_S)
        try:
            session = self._session = self._session or self._open()
            async with session.get(
                self._server + path, params=asked, headers=self._authorization(), timeout=timeout
            ) as answer:
                if answer.status == GONE:
                    raise ResourceGone(f"watch {path}: {answer.status}")
                if answer.status >= 300:
                    raise ConnectorError(f"watch {path}: {answer.status} {answer.reason}")
                rest = b""
                async for data in answer.content.iter_any():
                    *lines, rest = (rest + data).split(b"\n")
                    for line in filter(None, lines):
                        yield _event(path, json.loads(line))
        except (aiohttp.ClientError, OSError, ValueError) as bad:
            raise ConnectorError(f"watch {path}: {bad or type(bad).__name__}") from None

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
                    f"the namespace is not known outside of a cluster; set namespace in [{self._table}]"
                ) from None
        return self._namespace

    async def _call(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        if not self._server:
            raise ConnectorError(f"no API server is known outside of a cluster; set server in [{self._table}]")
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


def _event(path: str, said: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """One event of a watch. Raises ConnectorError for one that says that it failed."""
    kind, one = said.get("type", ""), said.get("object", {})
    if kind == "ERROR":
        detail = f"watch {path}: {one.get('code')} {one.get('message', '')}"
        raise ResourceGone(detail) if one.get("code") == GONE else ConnectorError(detail)
    return kind, one


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

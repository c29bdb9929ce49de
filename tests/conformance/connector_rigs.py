"""What each connector is tested against: real processes, a program, hosts whose systemctl keeps its units in a folder,
and the part of Kubernetes' API that is used, served over TLS as its reference describes it.

Neither systemd nor an API server of Kubernetes runs where these tests do: what stands in for them is here.
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trustme
from aiohttp import web

from gateway.scale.config import ScalingConfig
from gateway.scale.connectors.base import Connector
from gateway.scale.connectors.registry import make_connector

GROUP = {"name": "g", "profile": "a30/llama-2-7b", "min": 0, "max": 3}


class Rig(Protocol):
    """One world for one connector."""

    can_hang: bool

    def make(self) -> Connector:
        """A connector as a gateway that starts now has it."""

    def break_down(self, how: str) -> None:
        """`hangs`: no call is answered; `fails`: each fails; empty: all is well again."""

    def running(self) -> list[str]:
        """Nodes that cost something, by the world's own account."""


def scaling(connector: str, **tables: Any) -> ScalingConfig:
    """A configuration that the gateway would accept."""
    values = {"rule": "static", "connector": connector, "group": [GROUP], **tables}
    return msgspec.convert(values, ScalingConfig)


class LocalRig:
    can_hang = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "nodes"

    def make(self) -> Connector:
        config = scaling("local", local={"folder": str(self._folder), "options": {"tokenizer": "bytes"}})
        return make_connector(config, list)

    def break_down(self, how: str) -> None:
        if how:
            self._folder.mkdir(exist_ok=True)
            self._folder.rename(self._folder.with_name("aside"))
            self._folder.write_text("no folder any more")
        else:
            self._folder.unlink()
            self._folder.with_name("aside").rename(self._folder)

    def running(self) -> list[str]:
        """As the processes' own command lines say."""
        found = []
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = line.read_bytes().split(b"\0")
                if b"predictor" in words and str(self._folder).encode() in line.read_bytes():
                    found.append(words[words.index(b"--node-id") + 1].decode())
        return sorted(found)


PROGRAM = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
order = json.load(sys.stdin)
how = (folder / "how").read_text()
if how == "hangs":
    time.sleep(60)
if how == "fails":
    sys.exit("the cloud says no")
if order["do"] == "list":
    nodes = [{"node": p.name, "group": p.read_text(), "address": ""} for p in sorted((folder / "up").iterdir())]
    print(json.dumps({"nodes": nodes}))
elif order["do"] == "start":
    assert order["options"]["profile"] == "a30/llama-2-7b", order
    (folder / "up" / order["node"]).write_text(order["group"])
else:
    (folder / "up" / order["node"]).unlink(missing_ok=True)
"""

SYSTEMCTL = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
verb, *rest = sys.argv[2:]
units = [word for word in rest if not word.startswith("--")]
how = (folder / "how").read_text()
if how == "hangs":
    time.sleep(60)
if how == "fails":
    sys.exit("Failed to connect to bus")
up = folder / "up"
for unit in units:
    file = up / unit
    if verb == "start":
        file.write_text("active")
    elif verb == "stop":
        file.unlink(missing_ok=True)
    elif verb == "reset-failed" and not file.exists():
        sys.exit(f"Failed to reset failed state of unit {unit}.service: Unit {unit}.service not loaded.")
    elif verb == "show":
        state = file.read_text() if file.exists() else "inactive"
        sub, result = {"failed": ("failed", "exit-code")}.get(state, ("running", "success"))
        print(f"Result={result}\\nId={unit}.service\\nActiveState={state}\\nSubState={sub}\\nNRestarts=0\\n")
"""


class _FolderRig:
    """A program that keeps what is up in a folder."""

    can_hang = True
    program = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "program.py"
        self.script.write_text(self.program)
        (folder / "up").mkdir()
        self.break_down("")

    def break_down(self, how: str) -> None:
        (self.folder / "how").write_text(how)

    def running(self) -> list[str]:
        return sorted(path.name.rpartition("@")[2] for path in (self.folder / "up").iterdir())


class CommandRig(_FolderRig):
    program = PROGRAM

    def make(self) -> Connector:
        run = [sys.executable, str(self.script), str(self.folder)]
        return make_connector(scaling("command", command={"run": run}), list)


class SystemdRig(_FolderRig):
    """`ssh` is a shell that takes the host and one line, as ssh does."""

    program = SYSTEMCTL

    def make(self) -> Connector:
        ssh = self.folder / "ssh"
        ssh.write_text('#!/bin/sh\necho "$1" >> "$0.hosts"\nexec /bin/sh -c "$2"\n')
        ssh.chmod(0o755)
        return self.over([str(ssh)], ["10.0.0.1:8100", "ops@10.0.0.2:8100", "10.0.0.2:8101"])

    def over(self, ssh: list[str], places: list[str]) -> Connector:
        systemd = {
            "hosts": {"g": places},
            "ssh": ssh,
            "systemctl": [sys.executable, str(self.script), str(self.folder)],
        }
        return make_connector(scaling("systemd", systemd=systemd), list)


class SshRig(SystemdRig):
    """The same over a real ssh to a real sshd on this machine: ASTROLABE_TEST_SSH is the command without the host."""

    words = os.environ.get("ASTROLABE_TEST_SSH", "").split()

    def make(self) -> Connector:
        return self.over(self.words, [f"127.0.0.1:{port}" for port in (8100, 8101, 8102)])


class KubernetesRig:
    """One StatefulSet of three at most. https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/stateful-set-v1/"""

    can_hang = True
    token = "a-token"

    def __init__(self, folder: Path) -> None:
        self.kind = "statefulset"
        self.replicas = 0
        self.version = 7
        self.pods: dict[str, dict[str, Any]] = {}
        self.interfere: Callable[[], None] | None = None
        """Happens between a read and the next write."""
        self._folder = folder
        self._how = ""
        self._authority = trustme.CA()
        self._server = ""
        (folder / "token").write_text(f"{self.token}\n")
        self._authority.cert_pem.write_to_path(folder / "ca.crt")

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        app = web.Application(middlewares=[self._checked])
        self.routes(app)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._authority.issue_cert("127.0.0.1").configure_cert(secure)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=secure)
        await site.start()
        self._server = f"https://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()

    def routes(self, app: web.Application) -> None:
        base = "/apis/apps/v1/namespaces/llm/statefulsets/g/scale"
        app.router.add_get(base, self._get_scale)
        app.router.add_patch(base, self._patch_scale)
        app.router.add_get("/api/v1/namespaces/llm/pods", self._get_pods)

    def make(self) -> Connector:
        own = {
            "kind": self.kind,
            "server": self._server,
            "namespace": "llm",
            "token_file": str(self._folder / "token"),
            "ca_file": str(self._folder / "ca.crt"),
        }
        return make_connector(scaling("kubernetes", kubernetes=own), list)

    def break_down(self, how: str) -> None:
        self._how = how

    def running(self) -> list[str]:
        return [f"g-{ordinal}" for ordinal in range(self.replicas)]

    @web.middleware
    async def _checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        import asyncio

        if self._how == "hangs":
            await asyncio.sleep(60)
        if self._how == "fails":
            return _status(503, "the server is currently unable to handle the request")
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        answer: web.StreamResponse = await handler(request)
        return answer

    def _scale(self) -> dict[str, Any]:
        return {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": {"name": "g", "namespace": "llm", "resourceVersion": str(self.version)},
            "spec": {"replicas": self.replicas} if self.replicas else {},
            "status": {"replicas": self.replicas, "selector": "app=g"},
        }

    async def _get_scale(self, request: web.Request) -> web.Response:
        answer = web.json_response(self._scale())
        if self.interfere is not None:
            self.interfere()
        return answer

    async def _patch_scale(self, request: web.Request) -> web.Response:
        if request.content_type != "application/merge-patch+json":
            return _status(415, f"the body of the request was in an unknown format: {request.content_type}")
        patch: Mapping[str, Any] = json.loads(await request.text())
        if patch.get("metadata", {}).get("resourceVersion") not in (None, str(self.version)):
            return _status(409, 'Operation cannot be fulfilled on statefulsets.apps "g": the object has been modified')
        self.replicas = patch["spec"]["replicas"]
        self.version += 1
        return web.json_response(self._scale())

    async def _get_pods(self, request: web.Request) -> web.Response:
        assert request.query["labelSelector"] == "app=g"
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "items": list(self.pods.values())})


class DeploymentRig(KubernetesRig):
    """One Deployment. With `controls` there are pods, made and deleted as its controller does.
    https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/deployment-v1/"""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.kind = "deployment"
        self.controls = False
        self.annotations: dict[str, str] = {}
        self._made = 0

    def routes(self, app: web.Application) -> None:
        base = "/apis/apps/v1/namespaces/llm/deployments/g"
        app.router.add_get(base, self._get_deployment)
        app.router.add_patch(base, self._patch_deployment)
        app.router.add_get("/api/v1/namespaces/llm/pods", self._get_pods)
        app.router.add_patch("/api/v1/namespaces/llm/pods/{name}", self._patch_pod)

    def ready(self, name: str, is_ready: bool = True) -> None:
        conditions = [{"type": "Ready", "status": str(is_ready)}]
        self.pods[name]["status"] = {"phase": "Running", "podIP": "10.1.0.4", "conditions": conditions}

    def alive(self) -> list[str]:
        """Pods that are not being deleted."""
        return [name for name, pod in self.pods.items() if "deletionTimestamp" not in pod["metadata"]]

    def control(self) -> None:
        """As many pods as replicas: of too many those go that are not ready, then the cheapest, then the youngest."""
        alive = self.alive()
        for _ in range(self.replicas - len(alive)):
            self._made += 1
            name = f"g-7c9d4-{'zyxwvutsrq'[self._made - 1]}{self._made}"
            metadata = {"name": name, "creationTimestamp": f"2026-01-01T00:00:{self._made:02}Z", "resourceVersion": "1"}
            self.pods[name] = {"metadata": metadata, "status": {"phase": "Pending"}}

        def order(name: str) -> tuple[bool, int, int]:
            pod = self.pods[name]
            conditions = pod["status"].get("conditions", [{}])
            cost = int(pod["metadata"].get("annotations", {}).get("controller.kubernetes.io/pod-deletion-cost", 0))
            return conditions[0].get("status") == "True", cost, -alive.index(name)

        for name in sorted(alive, key=order)[: max(0, len(alive) - self.replicas)]:
            self.pods[name]["metadata"]["deletionTimestamp"] = "now"

    def _deployment(self) -> dict[str, Any]:
        return {
            "kind": "Deployment",
            "apiVersion": "apps/v1",
            "metadata": {
                "name": "g",
                "namespace": "llm",
                "resourceVersion": str(self.version),
                "annotations": self.annotations,
            },
            "spec": {"replicas": self.replicas, "selector": {"matchLabels": {"app": "g"}}},
        }

    async def _get_deployment(self, request: web.Request) -> web.Response:
        answer = web.json_response(self._deployment())
        if self.interfere is not None:
            self.interfere()
        return answer

    async def _patch_deployment(self, request: web.Request) -> web.Response:
        if request.content_type != "application/merge-patch+json":
            return _status(415, f"the body of the request was in an unknown format: {request.content_type}")
        patch: Mapping[str, Any] = json.loads(await request.text())
        if patch["metadata"].get("resourceVersion") != str(self.version):
            return _status(409, 'Operation cannot be fulfilled on deployments.apps "g": the object has been modified')
        self.annotations |= patch["metadata"].get("annotations", {})
        self.replicas = patch.get("spec", {}).get("replicas", self.replicas)
        self.version += 1
        if self.controls:
            self.control()
        return web.json_response(self._deployment())

    async def _patch_pod(self, request: web.Request) -> web.Response:
        pod = self.pods.get(request.match_info["name"])
        if pod is None:
            return _status(404, "pods not found")
        patch: Mapping[str, Any] = json.loads(await request.text())
        if patch["metadata"].get("resourceVersion") != pod["metadata"].get("resourceVersion"):
            return _status(409, "Operation cannot be fulfilled on pods: the object has been modified")
        pod["metadata"].setdefault("annotations", {}).update(patch["metadata"].get("annotations", {}))
        return web.json_response(pod)


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "status": "Failure", "message": message, "code": code}, status=code)

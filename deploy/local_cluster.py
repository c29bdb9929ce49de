"""A cluster of real processes on this machine: emulated nodes (one predictor each) and a gateway in front.

Used by `astrolabe up`, the demo, live comparisons and the end-to-end tests. A child dies with its parent (Linux), and
each child's log goes to a file of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import msgspec

from deploy.cli import PARENT_PID_VARIABLE
from deploy.gateway_channel import blocking_channel
from deploy.node_keeper import how_ended
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub

POLL_S = 0.02
START_S = 240.0
"""What all processes together get to serve, on a busy machine."""
NODES_UP_S = 20.0
"""What a gateway gets to find nodes that serve already."""
STOP_S = 5.0
"""What a child gets to end by itself; a gateway that ends nodes of its own gets `GATEWAY_STOP_S`."""
GATEWAY_STOP_S = 20.0
LAST_LINES = 12


class ClusterError(Exception):
    """A process did not start or has died. `log` holds the last lines it wrote."""

    def __init__(self, summary: str, log: str = "") -> None:
        super().__init__(summary + (f"\n{log}" if log else ""))
        self.summary = summary
        self.log = log


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to start. Option names are those of `astrolabe predictor` and `astrolabe gateway`, with _ for -."""

    nodes: int = 4
    """0: the gateway starts its own."""
    gateway_port: int = 8200
    """Of the gRPC service; HTTP has the next one. 0 takes free ones."""
    first_node_port: int = 8100
    """Nodes listen on this one and the following; 0 takes free ones."""
    predictor: Mapping[str, Any] = {}
    """Options of every node; None is left out."""
    per_node: tuple[Mapping[str, Any], ...] = ()
    """Further options of node 0, 1, ..., on top of `predictor`; `node_id` too, else node-0, node-1, ..."""
    gateway: Mapping[str, Any] = {}


class Child:
    """One process with its log and, once it serves, its address."""

    def __init__(self, name: str, command: str, options: Mapping[str, Any], folder: Path) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self.address = ""
        self.http_address = ""
        """Of a gateway's HTTP front."""
        self.options = dict(options)
        self._command = command
        self._ready_path = folder / f"{name}.ready"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    def start(self) -> None:
        """Starts it (again). After the first time on the address it had."""
        self._ready_path.unlink(missing_ok=True)
        options = {**self.options, "ready_file": self._ready_path}
        if self.address:
            options["listen"] = self.address
        if self.http_address:
            options["http_listen"] = self.http_address
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "deploy.cli", self._command, *_arguments(options)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches the parent only, which stops its children in order.
                start_new_session=True,
                env={**os.environ, PARENT_PID_VARIABLE: str(os.getpid())},
            )

    def wait_ready(self, deadline_s: float, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Until it serves; `deadline_s` on the monotonic clock. Raises ClusterError, also when cancelled."""
        while not self.is_ready():
            if cancelled():
                raise ClusterError(f"stopped before {self.name} was ready")
            if time.monotonic() > deadline_s:
                raise ClusterError(f"{self.name} does not serve in time", self.last_words())
            time.sleep(POLL_S)

    def is_ready(self) -> bool:
        """Raises ClusterError when it has died."""
        self.check()
        try:
            ready = json.loads(self._ready_path.read_bytes())
        except (OSError, ValueError):
            return False
        self.address, self.http_address = ready["address"], ready.get("http", "")
        return True

    def check(self) -> None:
        """Raises ClusterError when it has died."""
        if (code := self.exit_code()) is not None:
            raise ClusterError(f"{self.name} {how_ended(code)}; its log: {self.log_path}", self.last_words())

    def exit_code(self) -> int | None:
        """None while it runs, and before it was started; below zero: minus the signal that killed it."""
        return None if self._process is None else self._process.poll()

    def last_words(self) -> str:
        """The end of its log."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()[-LAST_LINES:]
        except OSError:
            lines = []
        return "\n".join(f"  {line}" for line in lines or ["(its log is empty)"])

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash: no chance to say goodbye."""
        self.signal(signal.SIGKILL)
        self.wait(STOP_S)

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code; None when it still runs."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None


class LocalCluster:
    """Start with `start`, end with `stop`, or use as a context manager. Logs and ready files go to `folder`."""

    def __init__(self, spec: ClusterSpec, folder: Path) -> None:
        self.spec = spec
        self._stopped = False
        options = [self._node_options(index) for index in range(spec.nodes)]
        self.nodes = [Child(own["node_id"], "predictor", own, folder) for own in options]
        self.gateway = Child("gateway", "gateway", {}, folder)

    @property
    def address(self) -> str:
        """host:port of the gateway's gRPC service."""
        return self.gateway.address

    @property
    def url(self) -> str:
        """Of the gateway's HTTP front."""
        return f"http://{self.gateway.http_address}"

    def start(
        self,
        *,
        timeout_s: float = START_S,
        on_ready: Callable[[Child], None] = lambda child: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Until every process serves and the gateway sees every node up. Stops all again when it fails or is
        cancelled. Raises ClusterError."""
        deadline_s = time.monotonic() + timeout_s
        try:
            for node in self.nodes:
                node.start()
            waiting = list(self.nodes)
            while waiting:
                for node in [n for n in waiting if n.is_ready()]:
                    waiting.remove(node)
                    on_ready(node)
                if cancelled():
                    raise ClusterError("stopped before all nodes were ready")
                if waiting and time.monotonic() > deadline_s:
                    raise ClusterError(f"{waiting[0].name} does not serve in time", waiting[0].last_words())
                time.sleep(POLL_S)
            self.gateway.options = self._gateway_options()
            self.gateway.start()
            self.gateway.wait_ready(deadline_s, cancelled)
            if self.nodes:
                self.wait_nodes_up(min(deadline_s, time.monotonic() + NODES_UP_S), cancelled)
            on_ready(self.gateway)
        except BaseException:
            self.stop()
            raise

    def wait_nodes_up(self, deadline_s: float, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Until the gateway sees all nodes up. Raises ClusterError, also when cancelled."""
        with self.stub() as stub:
            while not cancelled():
                self.check()
                try:
                    nodes = stub.ListNodes(pb.ListNodesRequest(), timeout=1.0).nodes
                    missing = ", ".join(_state(n) for n in nodes if n.status != "up")
                    state = f"the gateway does not see all nodes up: {missing or 'it has none'}"
                except grpc.RpcError as error:
                    nodes, state = [], f"the gateway cannot be asked: {error.details()}"
                if nodes and all(n.status == "up" for n in nodes):
                    return
                if time.monotonic() > deadline_s:
                    raise ClusterError(state, self.gateway.last_words())
                time.sleep(POLL_S)
        raise ClusterError("stopped before the gateway saw all nodes up")

    @contextlib.contextmanager
    def stub(self) -> Iterator[Any]:
        """A blocking `Dispatch` client of the gateway."""
        with blocking_channel(self.address) as channel:
            yield DispatchStub(channel)

    def check(self) -> None:
        """Raises ClusterError when a process has died that `stop` has not ended."""
        for child in [] if self._stopped else self.children():
            child.check()

    def children(self) -> list[Child]:
        return [*self.nodes, self.gateway]

    def stop(self) -> list[str]:
        """Ends all, the gateway first; the names of those that had to be killed."""
        self._stopped = True
        killed = []
        for group in ([self.gateway], self.nodes):
            for child in group:
                child.signal(signal.SIGTERM)
            ends_nodes = group == [self.gateway] and not self.nodes
            deadline_s = time.monotonic() + (GATEWAY_STOP_S if ends_nodes else STOP_S)
            for child in group:
                if child.wait(max(0.0, deadline_s - time.monotonic())) is None:
                    child.kill()
                    killed.append(child.name)
        return killed

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _node_options(self, index: int) -> dict[str, Any]:
        port = self.spec.first_node_port + index if self.spec.first_node_port else 0
        own = self.spec.per_node[index] if index < len(self.spec.per_node) else {}
        return {"node_id": f"node-{index}", "listen": f"127.0.0.1:{port}", **self.spec.predictor, **own}

    def _gateway_options(self) -> dict[str, Any]:
        return {
            "listen": f"127.0.0.1:{self.spec.gateway_port}",
            "http_listen": f"127.0.0.1:{self.spec.gateway_port and self.spec.gateway_port + 1}",
            "node": [n.address for n in self.nodes],
            "drain_grace_s": 2.0,
            **self.spec.gateway,
        }


def _state(node: pb.NodeInfo) -> str:
    return f"{node.node_id or node.address} is {node.status}{': ' if node.detail else ''}{node.detail}"


def _arguments(options: Mapping[str, Any]) -> Sequence[str]:
    """Command-line arguments: a list repeats its option, True is the option alone, None and False are left out."""
    arguments: list[str] = []
    for key, value in options.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if one is not None and one is not False:
                arguments += [f"--{key.replace('_', '-')}", *([] if one is True else [str(one)])]
    return arguments

"""Nodes as processes on this machine: `astrolabe predictor` with the emulated engine of the group's profile.

What is known of a node lies in the folder, so that a gateway that was killed and started again finds all of them.
`NAME.lock` is held (flock) by the process as long as it lives, from before it is started: whoever finds the lock free
knows that nothing runs. `NAME.pid` is written as it starts, `NAME.ready` (its address) by the process itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gateway.scale.connectors.base import ConnectorError, ConnectorNode

if TYPE_CHECKING:
    from gateway.scale.config import ScalingConfig

STOP_S = 8.0
"""What a process gets to end by itself."""
POLL_S = 0.05
TRIES = 3
_SET_OFF = '"$@" & echo $! > "$0"'
"""A shell starts the node, writes down its process id and ends: the node is nobody's child, whoever is killed or
started anew here."""


class LocalConnector:
    """One folder, one process a node. Several gateways may share the folder."""

    name: ClassVar[str] = "local"
    executes: ClassVar[bool] = True

    def __init__(self, config: ScalingConfig) -> None:
        self._folder = Path(config.local.folder)
        self._groups = {group.name: {**group.predictor_options(), **config.local.options} for group in config.group}

    async def start(self, node_id: str, group: str) -> None:
        try:
            await asyncio.to_thread(self._start, node_id, group)
        except (OSError, subprocess.CalledProcessError) as bad:
            raise ConnectorError(f"{node_id} cannot be started in {self._folder}: {bad}") from None

    async def stop(self, node_id: str, group: str) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + STOP_S
        asked = False
        while self._runs(node_id):
            pid = self._pid(node_id)
            is_late = loop.time() > end_s
            if pid is not None and (is_late or not asked):
                asked = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if is_late else signal.SIGTERM)
            await asyncio.sleep(POLL_S)
        self._forget(node_id)

    async def list_nodes(self) -> list[ConnectorNode]:
        return await asyncio.to_thread(self._list)

    async def close(self, *, ends: bool) -> None:
        if ends:
            nodes = await self.list_nodes()
            await asyncio.gather(*(self.stop(node.node_id, node.group) for node in nodes))

    # --- the folder ---------------------------------------------------------------------------------------------------

    def _path(self, node_id: str, suffix: str) -> Path:
        return self._folder / f"{node_id}.{suffix}"

    def _start(self, node_id: str, group: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for _ in range(TRIES):
            if self._start_if_free(node_id, group):
                return
            # Somebody who only looks has the lock for a moment.
            time.sleep(POLL_S)

    def _start_if_free(self, node_id: str, group: str) -> bool:
        """Whether the node has been started: nobody had the lock."""
        with self._locked(node_id) as lock:
            if lock is None:
                return False
            for suffix in ("pid", "ready"):
                self._path(node_id, suffix).unlink(missing_ok=True)
            self._path(node_id, "group").write_text(group)
            options = {
                "node_id": node_id,
                "listen": "127.0.0.1:0",
                "ready_file": self._path(node_id, "ready"),
                **self._groups[group],
            }
            command = [sys.executable, "-m", "deploy.cli", "predictor", *_arguments(options)]
            with self._path(node_id, "log").open("ab") as log:
                subprocess.run(
                    ["/bin/sh", "-c", _SET_OFF, str(self._path(node_id, "pid")), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # A signal to the gateway's group is not meant for it; the lock stays with it.
                    start_new_session=True,
                    pass_fds=(lock,),
                    check=True,
                )
            return True

    @contextlib.contextmanager
    def _locked(self, node_id: str) -> Iterator[int | None]:
        """The lock's descriptor, for as long as the block; None when a process has it."""
        path = self._path(node_id, "lock")
        while True:
            lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield None
                    return
                # Whoever had it before may have taken the file away with it.
                if path.exists() and os.fstat(lock).st_ino == path.stat().st_ino:
                    yield lock
                    return
            finally:
                os.close(lock)

    def _runs(self, node_id: str) -> bool:
        if not self._path(node_id, "lock").exists():
            return False
        with self._locked(node_id) as lock:
            return lock is None

    def _pid(self, node_id: str) -> int | None:
        """None in the moment before it is written down."""
        try:
            return int(self._path(node_id, "pid").read_text())
        except (OSError, ValueError):
            return None

    def _list(self) -> list[ConnectorNode]:
        found = []
        for path in sorted(self._folder.glob("*.lock")):
            node_id = path.name.removesuffix(".lock")
            group = _text(self._path(node_id, "group"))
            if not group:
                continue
            if self._runs(node_id):
                address = _address(self._path(node_id, "ready"))
                found.append(ConnectorNode(node_id=node_id, group=group, address=address))
            else:
                self._forget(node_id)
        return found

    def _forget(self, node_id: str) -> None:
        """Of one that does not run; its log stays, it tells why."""
        if not self._path(node_id, "lock").exists():
            return
        with self._locked(node_id) as lock:
            if lock is not None:
                for suffix in ("ready", "pid", "group", "lock"):
                    self._path(node_id, suffix).unlink(missing_ok=True)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _address(path: Path) -> str:
    """Where the node listens; empty until it does."""
    try:
        return str(json.loads(path.read_bytes())["address"])
    except (OSError, ValueError):
        return ""


def _arguments(options: Mapping[str, Any]) -> list[str]:
    """Command-line arguments: True is the option alone, None and False are left out."""
    arguments: list[str] = []
    for key, value in options.items():
        if value is not None and value is not False:
            arguments += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
    return arguments

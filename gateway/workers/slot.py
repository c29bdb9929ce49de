"""A worker process's slot among its siblings, which the supervisor hands over through the environment."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import msgspec

VARIABLE = "ASTROLABE_WORKER"


class WorkerSlot(msgspec.Struct, frozen=True, kw_only=True):
    """One of `count` workers behind the same ports."""

    index: int
    count: int
    folder: str
    """Private to the workers: sockets, shared accounts, metrics files."""
    listen: str
    """The ports as they were taken, where the configuration may say 0."""
    http_listen: str
    is_restart: bool = False
    """A worker stood here before; its siblings know what operators have said since the start."""

    @property
    def path(self) -> Path:
        return Path(self.folder)

    def socket_of(self, index: int) -> str:
        """gRPC address of a worker's private listener."""
        return f"unix:{self.path / f'worker-{index}.sock'}"

    @property
    def ready_file(self) -> Path:
        return self.path / f"worker-{self.index}.ready"

    def mark(self, _logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A processor of structlog: lines say which worker wrote them."""
        line["worker"] = self.index
        return line

    def environment(self) -> dict[str, str]:
        return {VARIABLE: msgspec.json.encode(self).decode(), "PROMETHEUS_MULTIPROC_DIR": str(self.path / "metrics")}


def own_slot() -> WorkerSlot | None:
    """This process's slot; None when it is no worker."""
    encoded = os.environ.get(VARIABLE)
    return msgspec.json.decode(encoded, type=WorkerSlot) if encoded else None

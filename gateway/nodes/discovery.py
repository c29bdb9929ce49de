"""Which nodes there are: those of the configuration, and those that a connector has started.

Entries `dns:HOST:PORT` stand for every address that HOST resolves to, asked again and again.

A name that cannot be resolved for a while keeps its last answer: an outage of the name service must not take away nodes
that work.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import structlog

from gateway.config import DNS_PREFIX, NodeEntry
from protos.runtime.addresses import parse_address

log = structlog.get_logger("gateway")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to addresses `host:port`; raises OSError."""


class Discovery:
    """Keeps the node table at what the configuration names and the name service says."""

    def __init__(
        self, *, interval_s: float, on_change: Callable[[Sequence[NodeEntry]], None], resolve: Resolve | None = None
    ) -> None:
        """`on_change` gets all entries, resolved ones included, whenever they are not what they were."""
        self._interval_s = interval_s
        self._on_change = on_change
        self._resolve = resolve or resolve_by_dns
        self._entries: tuple[NodeEntry, ...] = ()
        self._started: tuple[NodeEntry, ...] = ()
        self._known: dict[str, tuple[str, ...]] = {}
        self._failing: set[str] = set()
        self._announced: list[NodeEntry] | None = None
        self._task: asyncio.Task[None] | None = None

    def set_entries(self, entries: Sequence[NodeEntry]) -> None:
        """The configuration's entries from now on. Addresses are announced at once, names when they are resolved."""
        self._entries = tuple(entries)
        self._stop_resolving()
        self._announce()
        if any(entry.is_name for entry in entries):
            self._task = asyncio.get_running_loop().create_task(self._resolve_repeatedly())

    def set_started(self, entries: Sequence[NodeEntry]) -> None:
        """The nodes that run beside those of the configuration, whole, by address."""
        self._started = tuple(entries)
        self._announce()

    async def close(self) -> None:
        """Asks no more."""
        task = self._task
        self._stop_resolving()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    async def resolve_all(self) -> None:
        """Resolves every name once."""
        for entry in self._entries:
            if not entry.is_name:
                continue
            name = entry.address
            host, port = parse_address(name.removeprefix(DNS_PREFIX))
            try:
                self._known[name] = tuple(sorted(set(await self._resolve(host, port))))
            except OSError as error:
                if name not in self._failing:
                    kept = len(self._known.get(name, ()))
                    log.warning("name not resolved, its last answer holds", name=host, kept=kept, detail=str(error))
                self._failing.add(name)
            else:
                self._failing.discard(name)
        self._announce()

    async def _resolve_repeatedly(self) -> None:
        while True:
            await self.resolve_all()
            await asyncio.sleep(self._interval_s)

    def _stop_resolving(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _announce(self) -> None:
        by_address: dict[str, NodeEntry] = {e.address: e for e in self._entries if not e.is_name}
        for entry in self._started:
            by_address.setdefault(entry.address, entry)
        for entry in self._entries:
            for address in self._known.get(entry.address, ()) if entry.is_name else ():
                by_address.setdefault(address, msgspec.structs.replace(entry, address=address))
        entries = list(by_address.values())
        if entries != self._announced:
            self._announced = entries
            self._on_change(entries)


async def resolve_by_dns(host: str, port: int) -> Sequence[str]:
    """Addresses of a host by the system's resolver."""
    answers: list[tuple[Any, ...]] = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [
        f"[{address[0]}]:{port}" if family == socket.AF_INET6 else f"{address[0]}:{port}"
        for family, _, _, _, address in answers
    ]

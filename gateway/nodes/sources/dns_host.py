"""`dns:HOST:PORT` among the nodes: all addresses of a host, by the system's resolver, asked again and again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

import msgspec

from gateway.config import DNS_PREFIX, NodeEntry
from gateway.nodes.sources.base import NodesUnknown
from protos.runtime.addresses import parse_address

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to addresses `host:port`; raises OSError."""


class DnsHostSource:
    """That resolver tells no times to live, so the pause between two questions is ours."""

    def __init__(self, entry: NodeEntry, *, interval_s: float, resolve: Resolve | None = None) -> None:
        self.where = entry.address
        self._entry = entry
        self._interval_s = interval_s
        self._resolve = resolve or resolve_by_dns

    async def lists(self) -> AsyncGenerator[Sequence[NodeEntry], None]:
        host, port = parse_address(self._entry.address.removeprefix(DNS_PREFIX))
        while True:
            try:
                addresses = await self._resolve(host, port)
            except OSError as error:
                raise NodesUnknown(str(error)) from None
            yield [msgspec.structs.replace(self._entry, address=address) for address in sorted(set(addresses))]
            await asyncio.sleep(self._interval_s)


async def resolve_by_dns(host: str, port: int) -> Sequence[str]:
    """Addresses of a host by the system's resolver."""
    answers: list[tuple[Any, ...]] = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [
        f"[{address[0]}]:{port}" if family == socket.AF_INET6 else f"{address[0]}:{port}"
        for family, _, _, _, address in answers
    ]

"""DNS SRV records (RFC 2782): each names a host and a port, and tells for how long that holds.

Priorities and weights say nothing here: who gets a request is decided by what nodes are predicted to do with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver

from gateway.config import NodeEntry
from gateway.nodes.sources.base import NodesUnknown
from protos.runtime.addresses import HostPort

LEAST_S, MOST_S = 1.0, 3600.0
"""Bounds of the time between two questions, whatever records say of their lives."""
LIFETIME_S = 5.0
"""For one question, tries at all servers included."""


class DnsSrvSource:
    """One name. Answers that do not fit into a datagram are asked for over TCP."""

    def __init__(self, name: str, *, server: HostPort | None = None) -> None:
        """`server`: the one to ask; None: those of the system. Raises ValueError for what is no name."""
        self.where = f"dns_srv {name}" + (f" at {server}" if server is not None else "")
        self._name = srv_name(name)
        self._server = server

    async def lists(self) -> AsyncGenerator[Sequence[NodeEntry], None]:
        while True:
            try:
                addresses, ttl_s = await self._look_up()
            except (dns.exception.DNSException, OSError) as bad:
                raise NodesUnknown(f"{type(bad).__name__}: {bad}") from None
            yield [NodeEntry(address=str(address)) for address in addresses]
            await asyncio.sleep(min(max(ttl_s, LEAST_S), MOST_S))

    async def _look_up(self) -> tuple[list[HostPort], float]:
        """Addresses and for how long they hold, in seconds. Raises DNSException."""
        resolver = self._resolver()
        answer = await resolver.resolve(self._name, "SRV", raise_on_no_answer=False, search=False)
        records = [] if answer.rrset is None else list(answer.rrset)
        ttl_s = float(LEAST_S if answer.rrset is None else answer.rrset.ttl)
        found: list[HostPort] = []
        # A lone root says that the service is decidedly not available.
        for record in sorted((r for r in records if r.target != dns.name.root), key=lambda r: (r.target, r.port)):
            hosts, host_ttl_s = await _hosts(resolver, record.target)
            ttl_s = min(ttl_s, host_ttl_s)
            found += [HostPort(host, record.port) for host in hosts]
        return list(dict.fromkeys(found)), ttl_s

    def _resolver(self) -> dns.asyncresolver.Resolver:
        """Made anew each time: the system's servers may have changed. Raises DNSException."""
        resolver = dns.asyncresolver.Resolver(configure=self._server is None)
        if self._server is not None:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(self._server.host, self._server.port)]
        resolver.lifetime = LIFETIME_S
        return resolver


def srv_name(name: str) -> dns.name.Name:
    """Absolute. Raises ValueError."""
    try:
        return dns.name.from_text(name)
    except dns.exception.DNSException as bad:
        raise ValueError(f"{name!r} is no DNS name ({bad}); write for example _astrolabe._tcp.example.org") from None


async def _hosts(resolver: dns.asyncresolver.Resolver, target: dns.name.Name) -> tuple[list[str], float]:
    """Addresses of a host, of the fourth version if it has any: a node that has both is one node. Raises
    DNSException."""
    for kind in ("A", "AAAA"):
        answer = await resolver.resolve(target, kind, raise_on_no_answer=False, search=False)
        if answer.rrset is not None:
            return sorted(record.address for record in answer.rrset), float(answer.rrset.ttl)
    raise OSError(f"{target} has no address")

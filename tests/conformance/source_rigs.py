"""Worlds in which sources of nodes can be tried: a DNS server that speaks UDP and TCP, files, and the part of
Kubernetes' API that is used, served over TLS as its reference describes it.

No API server runs where these tests do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import trustme
from aiohttp import web

from gateway.config import DiscoveryConfig, KubernetesNodesConfig, NodeEntry
from gateway.nodes.sources.base import NodeSource
from gateway.nodes.sources.dns_host import DnsHostSource
from gateway.nodes.sources.registry import make_sources


class SourceRig(Protocol):
    """One world. Hosts are addresses of the fourth version."""

    def serving(self) -> contextlib.AbstractAsyncContextManager[None]:
        """While it does the world is there."""

    def make(self) -> NodeSource:
        """A source in it, of nodes at port 8100."""

    def set(self, hosts: Sequence[str]) -> None:
        """These are the nodes now."""

    def fail(self) -> None:
        """It cannot be said which there are, until `set`."""


class HostRig:
    """A resolver that says what it is told."""

    def __init__(self, folder: Path) -> None:
        self.hosts: list[str] | None = []

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        yield

    def make(self) -> NodeSource:
        return DnsHostSource(NodeEntry(address="dns:gpu:8100"), interval_s=0.02, resolve=self._resolve)

    def set(self, hosts: Sequence[str]) -> None:
        self.hosts = list(hosts)

    def fail(self) -> None:
        self.hosts = None

    async def _resolve(self, host: str, port: int) -> Sequence[str]:
        if self.hosts is None:
            raise OSError("Temporary failure in name resolution")
        return [f"{one}:{port}" for one in self.hosts]


class DnsRig:
    """A name server on loopback. Answers that are too long for a datagram are cut, and whole over TCP."""

    name = "_astrolabe._tcp.example.org."
    longest_bytes = 512

    def __init__(self, folder: Path) -> None:
        self.hosts: list[str] | None = []
        self.ttl_s = 0
        self.over: list[str] = []
        """How questions for SRV records came, in order."""
        self._port = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._on_stream, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        rig = self

        class Datagrams(asyncio.DatagramProtocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport: Any = transport

            def datagram_received(self, data: bytes, addr: Any) -> None:
                if (reply := rig.answer(data, "udp")) is not None:
                    self.transport.sendto(reply, addr)

        transport, _ = await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", self._port))
        try:
            yield
        finally:
            transport.close()
            server.close()
            await server.wait_closed()

    def make(self) -> NodeSource:
        (source,) = make_sources(DiscoveryConfig(dns_srv=(self.name,), dns_server=f"127.0.0.1:{self._port}"))
        return source

    def set(self, hosts: Sequence[str]) -> None:
        self.hosts = list(hosts)

    def fail(self) -> None:
        self.hosts = None

    def answer(self, data: bytes, over: str) -> bytes | None:
        asked = dns.message.from_wire(data)
        reply = dns.message.make_response(asked)
        question = asked.question[0]
        kind, name = question.rdtype, question.name.to_text()
        if kind == dns.rdatatype.SRV:
            self.over.append(over)
        if self.hosts is None:
            reply.set_rcode(dns.rcode.SERVFAIL)
        elif kind == dns.rdatatype.SRV and name == self.name and self.hosts:
            records = [f"0 0 8100 n{host.replace('.', '-')}.example.org." for host in self.hosts]
            reply.answer.append(dns.rrset.from_text(name, self.ttl_s, "IN", "SRV", *records))
        elif kind == dns.rdatatype.A and name.startswith("n"):
            host = name.partition(".")[0][1:].replace("-", ".")
            reply.answer.append(dns.rrset.from_text(name, self.ttl_s, "IN", "A", host))
        whole = reply.to_wire()
        if over == "udp" and len(whole) > self.longest_bytes:
            short = dns.message.make_response(asked)
            short.flags |= dns.flags.TC
            return short.to_wire()
        return whole

    async def _on_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                reply = self.answer(await reader.readexactly(size), "tcp")
                if reply is not None:
                    writer.write(len(reply).to_bytes(2, "big") + reply)
        writer.close()


class FileRig:
    """A file that is replaced as a whole, or is gone."""

    suffix = ".txt"

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"nodes{self.suffix}"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        yield

    def make(self) -> NodeSource:
        (source,) = make_sources(DiscoveryConfig(files=(str(self.path),)))
        return source

    def set(self, hosts: Sequence[str]) -> None:
        draft = self.path.with_name("draft")
        draft.write_text(self.text([f"{host}:8100" for host in hosts]))
        os.replace(draft, self.path)

    def fail(self) -> None:
        self.path.unlink(missing_ok=True)

    def text(self, addresses: Sequence[str]) -> str:
        return "# nodes\n" + "".join(f"{address}  # one\n" for address in addresses)


class JsonFileRig(FileRig):
    """As Prometheus has it; broken off in the middle rather than gone."""

    suffix = ".json"

    def fail(self) -> None:
        self.path.write_text('[{"targets": ["10.0')

    def text(self, addresses: Sequence[str]) -> str:
        return json.dumps([{"targets": [address], "labels": {"job": "astrolabe"}} for address in addresses])


class TomlFileRig(FileRig):
    """Written empty rather than gone."""

    suffix = ".toml"

    def fail(self) -> None:
        self.path.write_text("")

    def text(self, addresses: Sequence[str]) -> str:
        return f"nodes = {json.dumps(list(addresses))}\n"


class EndpointSliceRig:
    """A Service's slices, listed and watched.
    https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoint-slice-v1/"""

    token = "a-token"

    def __init__(self, folder: Path) -> None:
        self.hosts: list[str] = []
        self.version = 7
        self.lists = 0
        self.watches = 0
        self.is_failing = False
        self.forgets = False
        """The next watch hears that its version is too old."""
        self._changed = asyncio.Event()
        self._folder = folder
        self._server = ""
        self._authority = trustme.CA()
        (folder / "token").write_text(f"{self.token}\n")
        self._authority.cert_pem.write_to_path(folder / "ca.crt")

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        app = web.Application(middlewares=[self._checked])
        app.router.add_get("/apis/discovery.k8s.io/v1/namespaces/llm/endpointslices", self._get)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._authority.issue_cert("127.0.0.1").configure_cert(secure)
        taken = socket.create_server(("127.0.0.1", 0))
        self._server = f"https://127.0.0.1:{taken.getsockname()[1]}"
        await web.SockSite(runner, taken, ssl_context=secure).start()
        try:
            yield
        finally:
            self.fail()
            await runner.cleanup()

    def make(self) -> NodeSource:
        config = KubernetesNodesConfig(
            service="engines",
            port="predictor",
            server=self._server,
            namespace="llm",
            token_file=str(self._folder / "token"),
            ca_file=str(self._folder / "ca.crt"),
        )
        (source,) = make_sources(DiscoveryConfig(kubernetes=config))
        return source

    def set(self, hosts: Sequence[str]) -> None:
        self.is_failing = False
        self.hosts = list(hosts)
        self._change()

    def fail(self) -> None:
        self.is_failing = True
        self._change()

    def _change(self) -> None:
        self.version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    @web.middleware
    async def _checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.is_failing:
            return web.json_response({"kind": "Status", "message": "etcd is down"}, status=503)
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return web.json_response({"kind": "Status", "message": "Unauthorized"}, status=401)
        assert request.query["labelSelector"] == "kubernetes.io/service-name=engines"
        answer: web.StreamResponse = await handler(request)
        return answer

    def _slice(self) -> dict[str, Any]:
        ready = [self._endpoint(host, None) for host in self.hosts]
        return {
            "metadata": {"name": "engines-abc", "resourceVersion": str(self.version)},
            "addressType": "IPv4",
            "ports": [{"name": "engine", "port": 8000}, {"name": "predictor", "port": 8100}],
            "endpoints": [*ready, self._endpoint("10.9.9.9", False)],
        }

    def _endpoint(self, host: str, ready: bool | None) -> dict[str, Any]:
        conditions = {} if ready is None else {"ready": ready}
        return {"addresses": [host], "conditions": conditions, "targetRef": {"kind": "Pod", "uid": f"uid-{host}"}}

    async def _get(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            self.lists += 1
            metadata = {"resourceVersion": str(self.version)}
            return web.json_response({"kind": "EndpointSliceList", "metadata": metadata, "items": [self._slice()]})
        self.watches += 1
        response = web.StreamResponse()
        await response.prepare(request)
        if self.forgets:
            self.forgets = False
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await self._say(response, "ERROR", gone)
            return response
        seen = int(request.query["resourceVersion"])
        while not self.is_failing:
            if seen != self.version:
                seen = self.version
                await self._say(response, "MODIFIED", self._slice())
            else:
                await self._say(response, "BOOKMARK", {"metadata": {"resourceVersion": str(seen)}})
            await self._changed.wait()
        return response

    async def _say(self, response: web.StreamResponse, kind: str, one: dict[str, Any]) -> None:
        await response.write(json.dumps({"type": kind, "object": one}).encode() + b"\n")

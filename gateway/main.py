"""The gateway process: builds the parts, serves until told to stop, reloads on SIGHUP."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import orjson
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine_adapters.tokenizer import Tokenizer, TokenizerError, default_tokenizer, load_tokenizer
from gateway import logs
from gateway.client_stream import ClientStream
from gateway.config import GatewayConfig
from gateway.core.events import AnyEvent, PolicySet
from gateway.core.router import Router
from gateway.grpc_api import DispatchApi
from gateway.lengths import LengthDesk, load_lengths
from gateway.node_table import NodeTable
from gateway.pump import Pump
from gateway.recorder import FileRecorder
from length_model.artifact import ArtifactError
from length_model.online import OnlineLengths
from protos.process import ConfigError, log_json_lines, parse_address
from protos.v1.astrolabe_dispatch_pb2_grpc import add_DispatchServicer_to_server
from simcore.types import Outcome

log = structlog.get_logger("gateway")

SERVICE = "astrolabe.v1.Dispatch"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
RELOADABLE = ("nodes", "policy")
SERVER_OPTIONS = [
    # Two gateways must not share a port by accident.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    # Clients may probe a silent connection every second.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
]
CLOSE_GRACE_S = 0.5
"""What calls get to write their last status once their requests have ended."""


class PortBusy(ConfigError):
    """The address cannot be bound."""


class Gateway:
    """All parts of one gateway, wired. `start`, then `stop`."""

    def __init__(self, config: GatewayConfig) -> None:
        loop = asyncio.get_running_loop()
        self.config = config
        self.bound = parse_address(config.listen, any_port=True)
        self._recorder = FileRecorder(Path(config.record), config.router()) if config.record else None
        self._idle = asyncio.Event()
        self.pump = Pump(
            Router(config.router()),
            clock=time.monotonic,
            call_at=_timers(loop),
            finished=self._finished,
            defect=_log_defect,
            recorder=self._recorder,
            max_buffered_tokens=config.max_buffered_tokens,
        )
        self.nodes = NodeTable(
            config,
            pump=self.pump,
            gateway_id=config.gateway_id or f"{socket.gethostname()}:{os.getpid()}",
            changed=self._nodes_changed,
        )
        tokenizer = _tokenizer(config.tokenizer)
        self.lengths = LengthDesk(
            _lengths(config.lengths), deadline_s=config.lengths_deadline_ms / 1000, decode=tokenizer.decode
        )
        self.api = DispatchApi(pump=self.pump, nodes=self.nodes, tokenizer=tokenizer, lengths=self.lengths)
        self._health: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Binds and serves. Raises PortBusy."""
        host, port = self.bound
        _check_free(host, port)
        add_DispatchServicer_to_server(self.api, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            raise PortBusy(_busy(address)) from None
        self.bound = self.bound._replace(port=port)
        await self._set_health()
        await self._server.start()
        self.nodes.set_entries(self.config.entries())
        if host not in LOOPBACK:
            log.warning("listening beyond this machine without authentication", host=host)
        log.info("gateway is listening", address=self.address, policy=self.config.policy, nodes=len(self.config.nodes))
        if self.config.ready_file:
            _write_ready(Path(self.config.ready_file), self.address)

    @property
    def address(self) -> str:
        host, port = self.bound
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def stop(self) -> None:
        """Refuses new requests, lets running ones finish within the grace, ends the rest, leaves the nodes."""
        self._stopping = True
        await self._set_health()
        self.api.close()
        log.info("gateway is stopping", running=len(self.pump.streams), grace_s=self.config.drain_grace_s)
        try:
            async with asyncio.timeout(self.config.drain_grace_s):
                while self.pump.streams:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            for stream in list(self.pump.streams.values()):
                self.pump.expel(stream, Outcome.NO_NODE, "the gateway has shut down; send the request to another one")
        await self._server.stop(CLOSE_GRACE_S)
        await self.nodes.close()
        await self.lengths.close()
        if self._recorder is not None:
            self._recorder.close()
        log.info("gateway has stopped")

    def reload(self, config: GatewayConfig) -> None:
        """Takes over nodes and policy; says what would need a restart."""
        waiting = [
            key
            for key in GatewayConfig.__struct_fields__
            if key not in RELOADABLE and getattr(config, key) != getattr(self.config, key)
        ]
        if config.policy != self.config.policy:
            self.pump.post(PolicySet(policy=config.policy))
        self.nodes.set_entries(config.entries())
        self.config = config
        log.info("configuration reloaded", policy=config.policy, nodes=len(config.nodes), needs_restart=waiting)

    def _finished(self, stream: ClientStream) -> None:
        logs.request_finished(stream)
        self.lengths.ended(stream)
        self.nodes.request_ended()
        if not self.pump.streams:
            self._idle.set()

    def _nodes_changed(self) -> None:
        task = asyncio.get_running_loop().create_task(self._set_health())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _set_health(self) -> None:
        up = self.nodes.any_up and not self._stopping
        status = health_pb2.HealthCheckResponse.SERVING if up else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)


async def serve(config: GatewayConfig, reread: Callable[[], GatewayConfig] | None = None) -> None:
    """Serves until SIGTERM or SIGINT; SIGHUP takes over what `reread` returns. Raises ConfigError at start."""
    log_json_lines(config.log_level)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    gateway = Gateway(config)

    def reload() -> None:
        try:
            if reread is not None:
                gateway.reload(reread())
        except ConfigError as bad:
            log.error("configuration not reloaded, the old one holds", detail=str(bad))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    await gateway.start()
    # What start-up made stays; without it a full collection would stop all streams for milliseconds.
    gc.collect()
    gc.freeze()
    await stop.wait()
    # Whoever asks a second time does not want to wait.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, os._exit, 130)
    await gateway.stop()


def _tokenizer(name: str) -> Tokenizer:
    """Raises ConfigError."""
    try:
        return load_tokenizer(default_tokenizer() if name == "auto" else name)
    except TokenizerError as bad:
        raise ConfigError(f"key 'tokenizer': {bad}") from None


def _lengths(name: str) -> OnlineLengths | None:
    """Raises ConfigError."""
    try:
        return load_lengths(name)
    except ArtifactError as bad:
        raise ConfigError(f"key 'lengths': {bad}") from None


def _timers(loop: asyncio.AbstractEventLoop) -> Callable[[float, Callable[[], None]], object]:
    def call_at(when_s: float, callback: Callable[[], None]) -> object:
        # Rounded up to the loop's resolution of 1 ms, or a timer would find itself early and spin.
        return loop.call_later(max(0.0, math.ceil((when_s - time.monotonic()) * 1000) / 1000), callback)

    return call_at


def _log_defect(event: AnyEvent, defect: Exception) -> None:
    log.error("defect in the router", event_type=type(event).__name__, exc_info=defect)


def _check_free(host: str, port: int) -> None:
    """Says "busy" before gRPC does, which would add lines of its own to standard error."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            address = f"{host}:{port}"
            raise PortBusy(f"cannot listen on {address}: {error.strerror}; {_BUSY_HINT}") from None


_BUSY_HINT = "stop the process that has the port or choose another one with --listen"


def _busy(address: str) -> str:
    return f"cannot listen on {address}; {_BUSY_HINT}"


def _write_ready(path: Path, address: str) -> None:
    """Appears whole or not at all."""
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_bytes(orjson.dumps({"address": address, "pid": os.getpid(), "service": SERVICE}) + b"\n")
    draft.replace(path)

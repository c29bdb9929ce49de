"""The predictor process: each of its nodes binds, warms up, starts its engine and serves until told to stop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine_adapters.base import EngineClient, EngineError, EngineOptions
from engine_adapters.emulated_api.http_server import EmulatedHttpServer
from engine_adapters.forwarding import Forwarder
from engine_adapters.registry import client_and_probe
from predictor.config import PredictorConfig
from predictor.engine_address import engine_address
from predictor.metrics import MetricsServer, families
from predictor.node import NodeRuntime
from predictor.service import EngineApi, Gate, PredictApi
from predictor.spans import NodeSpans
from protos.runtime.addresses import HostPort, is_loopback, parse_address, parse_kv_source
from protos.runtime.channels import keepalive, server_options
from protos.runtime.config import ConfigError
from protos.runtime.kernels import kernels_usable
from protos.runtime.log import log_json_lines
from protos.runtime.own_process import certificate_ends
from protos.runtime.ready_file import check_ready_file, write_ready_file
from protos.runtime.signals import live_through
from protos.runtime.tls import ServerTls
from protos.v1.astrolabe_engine_pb2_grpc import add_EngineServicer_to_server
from protos.v1.astrolabe_predict_pb2_grpc import add_PredictServicer_to_server
from simcore.compiled.layout import is_plain
from simcore.types import EngineConfig

log = structlog.get_logger("predictor")

SERVICES = ("astrolabe.v1.Predict", "astrolabe.v1.Engine")
SERVER_OPTIONS = [
    # A gateway that vanished without a word must not hold the engine: probe it, and let it probe us as it likes.
    *server_options(max_message_bytes=64 * 1024 * 1024, min_ping_interval_s=0.0),
    *keepalive(every_s=5.0, patience_s=5.0),
]
CLOSE_GRACE_S = 0.5
"""What unary calls get to write their last status."""
RESTART_S = 5.0
"""From a failed start of one of several nodes to the next; the engine has had `wait_s` by then."""


class Predictor:
    """All parts of one node, wired. `bind`, `start`, then `stop`. Raises ConfigError for files that do not serve."""

    def __init__(self, config: PredictorConfig) -> None:
        self.config = config
        self.address = parse_address(config.listen, any_port=True)
        self.node: NodeRuntime | None = None
        self._gate = Gate()
        self._tls = ServerTls(config.tls) if config.tls.cert else None
        self._metrics: MetricsServer | None = None
        self._certificates: dict[str, float] = {}
        """Those in use, with their ends; for that page only."""
        self._engine_http: EmulatedHttpServer | None = None
        self._spans: NodeSpans | None = None
        self._health: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server = grpc.aio.server(options=SERVER_OPTIONS)

    async def bind(self) -> None:
        """Takes the address and answers health checks with NOT_SERVING. Raises ConfigError."""
        _check_free(self.address)
        add_PredictServicer_to_server(PredictApi(self._gate), self._server)
        add_EngineServicer_to_server(EngineApi(self._gate), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(str(self.address))
            else:
                port = self._server.add_secure_port(str(self.address), self._tls.grpc_credentials())
        except RuntimeError:
            raise ConfigError(f"cannot listen on {self.address}; {_BUSY_HINT}") from None
        self.address = self.address._replace(port=port)
        await self._set_health(serving=False)
        await self._server.start()

    async def start(self) -> None:
        """Starts the engine and returns when the node serves. Raises ConfigError, EngineError."""
        began_s = time.monotonic()
        await kernels_usable("warm_node")
        warm_s = time.monotonic() - began_s
        config = self.config
        node_id = config.node_id or str(self.address)
        try:
            client, probe = client_and_probe(
                config.engine.dialect,
                EngineOptions(
                    node_id=node_id,
                    config=config.engine_config(),
                    step_time=config.engine_step_time(),
                    time_scale=config.emulated.time_scale,
                    tokenizer=config.tokenizer_name,
                    warm_tokenizer=config.emulated.warm_tokenizer,
                    url=config.engine.url,
                    tls=config.engine.tls,
                    key=config.engine.key(os.environ),
                    trace=config.engine.trace,
                    model=config.model,
                    wait_s=config.engine.wait_s,
                ),
            )
        except EngineError as bad:
            raise ConfigError(str(bad)) from None
        try:
            served = self._serve_emulated(client)
        except ConfigError:
            await client.close()
            raise
        self._spans = NodeSpans(config.otlp_endpoint, node_id=node_id) if config.otlp_endpoint else None
        self.node = NodeRuntime(
            node_id,
            client,
            probe,
            profile=config.step_time(),
            profile_ahead=config.step_time(async_scheduling=True),
            ask_engine=not config.emulated.profile,
            calibrate=config.calibrate,
            reservation_ttl_s=config.reservation_ttl_s,
            scenarios=config.scenarios,
            models_every_s=config.engine.models_every_s,
            own_chats=config.engine.own_chats,
            engine_address=engine_address(config, self.address, served),
            kv_source=config.engine.kv_source and parse_kv_source(config.engine.kv_source),
            spans=self._spans,
            prepare=_kernels_for,
        )
        await self.node.start()
        if self._engine_http is not None:
            await self._engine_http.start()
        self._gate.open(self.node)
        if config.metrics_listen:
            address, node = parse_address(config.metrics_listen, any_port=True), self.node
            tls, to_engine = config.tls, config.engine.tls
            self._certificates = certificate_ends(tls.cert, tls.client_ca, to_engine.cert, to_engine.ca)
            self._metrics = MetricsServer(
                address, lambda: families(node, gateways=len(self._gate.sessions), certificates=self._certificates)
            )
        await self._set_health(serving=True)
        if config.insecure and not is_loopback(self.address):
            log.warning("listening beyond this machine with insecure = true", address=str(self.address))
        log.info(
            "node is serving",
            node=node_id,
            address=str(self.address),
            metrics=str(self._metrics.address) if self._metrics is not None else "",
            engine=config.engine.dialect,
            engine_address=self.node.config.address,
            profile=self.node.profile,
            model=self.node.config.model,
            warm_up_s=round(warm_s, 3),
            start_s=round(time.monotonic() - began_s, 3),
        )
        if config.ready_file:
            write_ready_file(Path(config.ready_file), {"address": str(self.address), "node_id": node_id})

    def reload(self) -> None:
        """Takes the certificate files anew, for connections that come from then on."""
        try:
            if self._tls is not None:
                self._tls.reload()
                self._certificates |= certificate_ends(self.config.tls.cert, self.config.tls.client_ca)
        except ConfigError as bad:
            log.error("certificates not read again, the old ones hold", detail=str(bad))
            return
        log.info("certificates read again; all else needs a restart", tls=self._tls is not None)

    async def stop(self) -> None:
        """Takes no more calls, aborts what runs, tells everybody how it ended, lets go of the engine."""
        self._gate.close()
        await self._set_health(serving=False)
        if self._metrics is not None:
            await self._metrics.close()
        if self._engine_http is not None:
            await self._engine_http.close()
        if self.node is not None:
            await self.node.close()
        await asyncio.gather(*(s.finish() for s in self._gate.sessions))
        await self._server.stop(CLOSE_GRACE_S)
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)
        log.info("node has stopped")

    def _serve_emulated(self, client: EngineClient) -> HostPort | None:
        """Takes the address at which the emulated engine is served; None: it is not. Raises ConfigError."""
        if not self.config.emulated.http_listen or self.config.engine.dialect != "emulated":
            return None
        listen = parse_address(self.config.emulated.http_listen, any_port=True)
        self._engine_http = EmulatedHttpServer(cast(Forwarder, client), listen)
        try:
            self._engine_http.bind()
        except OSError as error:
            hint = "stop the process that has the port or choose another one with --engine-http-listen"
            raise ConfigError(f"cannot listen on {listen}: {error.strerror}; {hint}") from None
        return self._engine_http.address

    async def _set_health(self, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICES):
            await self._health.set(service, status)


async def serve(configs: Sequence[PredictorConfig]) -> None:
    """Serves a node for each until SIGTERM or SIGINT. Raises ConfigError; of a single node EngineError too."""
    _check_apart(configs)
    for config in configs:
        check_ready_file(config.ready_file)
    log_json_lines(configs[0].log_level)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    live_through()
    running: set[Predictor] = set()

    def reload() -> None:
        for predictor in running:
            predictor.reload()

    loop.add_signal_handler(signal.SIGHUP, reload)
    nodes = [
        asyncio.create_task(_keep_serving(config, running, is_alone=len(configs) == 1), name=f"node {config.node_id}")
        for config in configs
    ]
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        done, _ = await asyncio.wait((*nodes, stopping), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (*nodes, stopping):
            task.cancel()
        ends = await asyncio.gather(*nodes, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end


async def _keep_serving(config: PredictorConfig, running: set[Predictor], *, is_alone: bool) -> None:
    """Until it is cancelled. Where others share the process, a node that cannot start is no reason to end it."""
    if not is_alone:
        # All that is logged from here on, by whatever task or callback, says whose it is.
        structlog.contextvars.bind_contextvars(node=config.node_id or config.listen)
    while True:
        try:
            await _serve_one(config, running)
        except (ConfigError, EngineError) as error:
            if is_alone:
                raise
            log.error("node does not start", detail=str(error), again_in_s=RESTART_S)
        await asyncio.sleep(RESTART_S)


async def _serve_one(config: PredictorConfig, running: set[Predictor]) -> None:
    """Until it is cancelled. Raises ConfigError or EngineError at start."""
    predictor = Predictor(config)
    await predictor.bind()
    running.add(predictor)
    try:
        await predictor.start()
        # What start-up made stays: 140,000 objects. A full collection that looks through them stops forecasts and
        # streams for 70 ms.
        gc.collect()
        gc.freeze()
        await asyncio.Event().wait()
    finally:
        running.discard(predictor)
        await predictor.stop()


def _check_apart(configs: Sequence[PredictorConfig]) -> None:
    """Raises ConfigError where nodes of one process would take each other's name, address or file."""
    for key in ("node_id", "listen", "metrics_listen", "ready_file"):
        said = [value for config in configs if (value := getattr(config, key)) and not value.endswith(":0")]
        if twice := next((value for value in said if said.count(value) > 1), None):
            raise ConfigError(f"key {key!r}: two nodes of one process have {twice}; give each its own in its own file")


async def _kernels_for(config: EngineConfig) -> None:
    if not is_plain(config):
        await kernels_usable("warm_node_of_all_rules")


def _check_free(address: HostPort) -> None:
    """Says "busy" before gRPC does, which would add lines of its own to standard error."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {error.strerror}; {_BUSY_HINT}") from None


_BUSY_HINT = "stop the process that has the port or choose another one with --listen"

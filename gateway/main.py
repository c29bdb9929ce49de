"""The gateway process: builds the parts, serves until told to stop, reloads on SIGHUP."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import msgspec
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine_adapters.tokenizer import Tokenizer, TokenizerError, default_tokenizer, load_tokenizer
from gateway.config import GatewayConfig, LengthsConfig
from gateway.core.events import AnyEvent, PolicySet
from gateway.core.recording import ROUTERS
from gateway.core.router import Router
from gateway.core.router_config import RouterConfig
from gateway.core.scale.config import ScaleError
from gateway.ext_proc.server import HEALTH_SERVICES, ProcessorServer
from gateway.grpc_api import DispatchApi
from gateway.http.api import OpenAiApi
from gateway.http.connection import ConnectionLimits
from gateway.http.server import HttpServer
from gateway.intake.call_desk import CallDesk
from gateway.intake.callers import KeyRing
from gateway.intake.claims import OwnClaims
from gateway.intake.client_stream import ClientStream
from gateway.intake.lengths import LengthDesk, load_lengths
from gateway.intake.quotas import Quotas
from gateway.intake.submission import Intake
from gateway.listen import PortBusy, bound_socket, check_free, port_of
from gateway.nodes.discovery import Discovery
from gateway.nodes.registry import NodeRegistry
from gateway.nodes.sources.registry import make_sources
from gateway.observe import logs
from gateway.observe.metrics import Metrics
from gateway.observe.recorder import FileRecorder
from gateway.observe.spans import Spans
from gateway.operators import Operators
from gateway.policy_files import policy_name
from gateway.pump import Pump
from gateway.ready import SERVICE, write_ready
from gateway.ui.front import PageFront, switched_off
from gateway.ui.siblings import PartTeller, SiblingParts
from gateway.ui.tail import LogTail
from gateway.ui.view import FleetView
from gateway.workers.shared_claims import SharedClaims
from gateway.workers.shared_quotas import shared_quotas
from gateway.workers.siblings import Siblings
from gateway.workers.slot import WorkerSlot
from length_model.artifact import ArtifactError
from protos.runtime.addresses import is_loopback, parse_address
from protos.runtime.channels import keepalive, server_options
from protos.runtime.config import ConfigError, differing_keys
from protos.runtime.log import log_json_lines
from protos.runtime.own_process import certificate_ends
from protos.runtime.ready_file import check_ready_file
from protos.runtime.signals import live_through
from protos.runtime.tls import ServerTls
from protos.v1.astrolabe_dispatch_pb2_grpc import add_DispatchServicer_to_server
from protos.v1.astrolabe_workers_pb2_grpc import add_WorkersServicer_to_server
from simcore.types import Outcome

if TYPE_CHECKING:
    from gateway.scale.runtime import ScaleRuntime

log = structlog.get_logger("gateway")

OBSERVE_S = 1.0
"""How old a worker's part of the metrics may be: the page is made of all parts by whichever worker is asked."""
TRANSPORT_ROOM = 4
"""How many times the longest message gRPC itself lets in."""
CLOSE_GRACE_S = 0.5
"""What calls get to write their last status once their requests have ended."""


class Gateway:
    """All parts of one gateway process, wired. `start`, then `stop`. With a `slot` it is one of several workers.

    Raises ConfigError when a file of the configuration cannot be used.
    """

    def __init__(self, config: GatewayConfig, slot: WorkerSlot | None = None, tail: LogTail | None = None) -> None:
        """`tail`: the latest lines of the log, for the page."""
        loop = asyncio.get_running_loop()
        self.config = config
        self.bound = parse_address(slot.listen if slot else config.listen, any_port=True)
        http = slot.http_listen if slot else config.http_listen
        self.http_bound = parse_address(http, any_port=True) if http else None
        self._slot = slot
        suffix = f".w{slot.index}" if slot else ""
        router = _router_config(config, slot)
        self._recorder = FileRecorder(Path(config.record + suffix), router, ROUTERS) if config.record else None
        self._idle = asyncio.Event()
        self._certificates = _certificates(config)
        self.metrics = Metrics(lambda: self.pump.router.nodes(), time.monotonic, lambda: self._certificates)
        self.keys = KeyRing()
        self.keys.read(config.keys)
        self._tls = ServerTls(config.tls) if config.tls.cert else None
        gateway_id = (config.gateway_id or f"{socket.gethostname()}:{os.getpid()}") + suffix
        self.spans = (
            Spans(config.otlp_endpoint, gateway_id=gateway_id, explain=lambda name: self.pump.router.explain(name))
            if config.otlp_endpoint
            else None
        )
        self.pump = Pump(
            Router(router),
            clock=time.monotonic,
            call_at=_timers(loop),
            on_finish=self._finished,
            on_defect=_log_defect,
            recorder=self._recorder,
            tracing=self.spans,
            max_buffered_tokens=config.max_buffered_tokens,
        )
        self.nodes = NodeRegistry(config, pump=self.pump, gateway_id=gateway_id, on_change=self._nodes_changed)
        self.discovery = Discovery(interval_s=config.dns_interval_s, on_change=self.nodes.set_entries)
        tokenizer = _tokenizer(config.tokenizer)
        self.lengths = _length_desk(config.lengths, tokenizer)
        self.intake = Intake(
            pump=self.pump,
            nodes=self.nodes,
            tokenizer=tokenizer,
            lengths=self.lengths,
            quotas=shared_quotas(slot.path / "quotas", worker=slot.index, workers=slot.count) if slot else Quotas(),
            claims=SharedClaims(slot.path / "claims", slot.index) if slot else OwnClaims(),
            max_prompt_tokens=config.max_prompt_tokens,
            tokenizer_models=config.tokenizer_models,
            count_within_s=config.count_within_s,
            on_denial=lambda denial: self.metrics.denied(denial.value),
            on_begin=self.spans.begin if self.spans else lambda _stream: None,
        )
        self._siblings = Siblings(slot)
        self.scaling = self._scale_runtime(suffix)
        self.operators = Operators(
            pump=self.pump,
            nodes=self.nodes,
            intake=self.intake,
            siblings=self._siblings.stubs,
            scaling=self.scaling,
        )
        self._health: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._processor = (
            ProcessorServer(
                config,
                intake=self.intake,
                nodes=self.nodes,
                keys=self.keys,
                health=self._health,
                shared=slot is not None,
            )
            if config.ext_proc.listen
            else None
        )
        self._server = grpc.aio.server(options=_server_options(config, shared_port=slot is not None))
        self._private = grpc.aio.server() if slot else None
        self._desk = desk = CallDesk(self.intake, self.nodes)
        self.page = self._page_front(tail or LogTail()) if config.shows_ui else None
        front = OpenAiApi(
            intake=self.intake,
            nodes=self.nodes,
            keys=self.keys,
            metrics=self._metrics_page,
            desk=desk,
            max_body_bytes=config.max_body_bytes,
            ui=self.page.handle if self.page is not None else switched_off,
            is_leaving=lambda: self._stopping,
            stream_comment_s=config.stream_comment_s,
        )
        limits = ConnectionLimits(
            max_body_bytes=config.max_body_bytes, max_call_bytes=max(config.max_body_bytes, config.max_call_bytes)
        )
        self._http = HttpServer(front.handle, limits, front.takes_long)
        self._stopping = False
        self._observing: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Binds and serves. Raises PortBusy."""
        await self._start_grpc()
        if self.http_bound is not None:
            listener = bound_socket(self.http_bound, key="http_listen", shared=self._slot is not None)
            self.http_bound = self.http_bound._replace(port=port_of(listener))
            await self._http.start(listener, self._tls.context if self._tls else None)
            if self.page is not None:
                self.page.start()
        if self._processor is not None:
            await self._processor.start(self._tls)
        self.discovery.set_entries(self.config.entries(), make_sources(self.config.discovery))
        if self._slot is not None and self._private is not None:
            api = DispatchApi(
                intake=self.intake, operators=self.operators, keys=self.keys, desk=self._desk, of_siblings=True
            )
            add_DispatchServicer_to_server(api, self._private)
            if self.page is not None:
                add_WorkersServicer_to_server(PartTeller(self.page.feed.reader), self._private)
            self._private.add_insecure_port(self._slot.socket_of(self._slot.index))
            await self._private.start()
            if self._slot.is_restart:
                await self.operators.adopt()
            self._observe_again()
        if self.scaling is not None:
            await self.scaling.start()
        asked_at = self._processor.bound if self._processor is not None else None
        for address in (self.bound, self.http_bound, asked_at):
            if address is not None and not is_loopback(address) and self.config.insecure:
                log.warning("listening beyond this machine with insecure = true", address=str(address))
        log.info(
            "gateway is listening" if self._slot is None else "worker is listening",
            address=self.address,
            http=self.http_address,
            **({"ext_proc": self.ext_proc_address} if self._processor else {}),
            policy=self.config.router.policy,
            nodes=len(self.config.nodes),
            tls=self._tls is not None,
            keys=self.keys.asks_for_keys,
        )
        ready_file = str(self._slot.ready_file) if self._slot else self.config.ready_file
        if ready_file:
            write_ready(Path(ready_file), self.address, self.http_address, self.ext_proc_address)

    @property
    def address(self) -> str:
        """host:port of the gRPC service."""
        return str(self.bound)

    @property
    def http_address(self) -> str:
        """host:port of the HTTP front; empty without one."""
        return str(self.http_bound) if self.http_bound is not None else ""

    @property
    def ext_proc_address(self) -> str:
        """host:port of the service that proxies ask; empty without one."""
        return str(self._processor.bound) if self._processor is not None else ""

    async def stop(self) -> None:
        """Makes clients leave while it still serves, lets what runs finish within the grace, ends the rest, leaves the
        nodes."""
        self._stopping = True
        if self._observing is not None:
            self._observing.cancel()
        await self._set_health()
        self._http.retire()
        log.info("gateway is stopping", running=len(self.pump.streams), grace_s=self.config.drain_grace_s)
        await self._lame_duck()
        self.intake.closing.set()
        self._http.stop_accepting()
        # Stops listening and tells every connection to open no more calls (GOAWAY); those under way go on.
        grace_s = self.config.drain_grace_s + CLOSE_GRACE_S
        closed = [asyncio.create_task(self._server.stop(grace_s))]
        if self._processor is not None:
            closed.append(asyncio.create_task(self._processor.stop(grace_s)))
        try:
            async with asyncio.timeout(self.config.drain_grace_s):
                while self.pump.streams:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            for stream in list(self.pump.streams.values()):
                self.pump.expel(stream, Outcome.NO_NODE, "the gateway has shut down; send the request to another one")
        if self.page is not None:
            self.page.close()
        await self._server.stop(CLOSE_GRACE_S)
        if self._processor is not None:
            await self._processor.stop(CLOSE_GRACE_S)
        await asyncio.gather(*closed)
        await self._http.close(CLOSE_GRACE_S)
        if self._private is not None:
            await self._private.stop(None)
        await self._siblings.close()
        self.nodes.leave()
        if self.scaling is not None:
            await self.scaling.stop()
        # What has ended since the last look is not lost with the process: other workers' pages have it still.
        self._observe()
        await self.discovery.close()
        await self.nodes.close()
        await self.lengths.close()
        if self._recorder is not None:
            self._recorder.close()
        if self.spans is not None:
            await asyncio.to_thread(self.spans.close)
        log.info("gateway has stopped")

    async def _lame_duck(self) -> None:
        """Serves on, said to be leaving. To refuse at once would fail requests: a client that goes round two gateways
        meets the one that stops again with every other attempt, and a call that crosses a GOAWAY is lost."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self.config.lame_duck_s
        while (left_s := end_s - loop.time()) > 0:
            calls = self.intake.calls
            await asyncio.sleep(min(left_s, self.config.lame_duck_s / 5))
            if self.intake.calls == calls:
                return

    def reload(self, config: GatewayConfig) -> None:
        """Takes over nodes, policy, keys and certificates; says what would need a restart. Raises ConfigError."""
        router = msgspec.structs.replace(self.config.router, policy=config.router.policy)
        taken = msgspec.structs.replace(self.config, nodes=config.nodes, discovery=config.discovery, router=router)
        self.keys.read(self.config.keys)
        if self.page is not None:
            self.page.keys_changed()
        if self._tls is not None:
            self._tls.reload()
        self.nodes.reload_tls()
        self._certificates = _certificates(self.config)
        if config.router.policy != self.config.router.policy:
            self.pump.post(PolicySet(policy=policy_name(config.router.policy)))
        self.discovery.set_entries(config.entries(), make_sources(config.discovery))
        self.config = taken
        waiting = differing_keys(config, taken)
        log.info("configuration reloaded", policy=router.policy, nodes=len(config.nodes), needs_restart=waiting)

    async def _start_grpc(self) -> None:
        """Raises PortBusy."""
        if self._slot is None:
            check_free(self.bound, key="listen")
        api = DispatchApi(
            intake=self.intake,
            operators=self.operators,
            keys=self.keys,
            desk=self._desk,
            max_message_bytes=self.config.max_body_bytes,
            max_call_bytes=self.config.max_call_bytes,
        )
        add_DispatchServicer_to_server(api, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(self.address)
            else:
                port = self._server.add_secure_port(self.address, self._tls.grpc_credentials())
        except RuntimeError:
            raise PortBusy(self.bound, "", "listen") from None
        self.bound = self.bound._replace(port=port)
        await self._set_health()
        await self._server.start()

    def _scale_runtime(self, suffix: str) -> ScaleRuntime | None:
        """`suffix`: of this worker's files. Raises ConfigError."""
        if not self.config.scaling.is_on:
            return None
        # Loads what a gateway without scaling needs not.
        from gateway.scale.runtime import ScaleRuntime

        try:
            runtime = ScaleRuntime(
                self.config.scaling,
                pump=self.pump,
                nodes=self.nodes,
                discovery=self.discovery,
                on_change=self._nodes_changed,
                record=self.config.record and self.config.record + suffix,
            )
        except ScaleError as bad:
            raise ConfigError(str(bad)) from None
        self.metrics.follow_scaling(runtime)
        return runtime

    def _page_front(self, tail: LogTail) -> PageFront:
        config, slot = self.config, self._slot
        objective = config.scaling.objective if config.scaling.is_on else None
        view = FleetView(pump=self.pump, nodes=self.nodes, scaling=self.scaling, objective=objective)

        def about() -> dict[str, Any]:
            process = os.getppid() if slot else os.getpid()
            return {
                "gateway": config.gateway_id or f"{socket.gethostname()}:{process}",
                "worker": slot.index if slot else 0,
                "workers": slot.count if slot else 1,
                "log_level": config.log_level,
                "version": version("astrolabe"),
                "keys": self.keys.asks_for_keys,
            }

        return PageFront(
            view,
            tail,
            operators=self.operators,
            keys=self.keys,
            about=about,
            local_only=config.ui.enabled is None,
            siblings=SiblingParts(self._siblings.workers),
            worker=slot.index if slot else 0,
        )

    def _finished(self, stream: ClientStream) -> None:
        if stream.call is None or not stream.call.is_aside:
            logs.request_finished(stream)
            self.metrics.finished(stream)
            if self.page is not None:
                self.page.finished(stream)
            if self.spans is not None:
                self.spans.end(stream)
            self.lengths.ended(stream)
        self.nodes.request_ended()
        if not self.pump.streams:
            self._idle.set()

    def _metrics_page(self) -> tuple[str, bytes]:
        self._observe()
        return self.metrics.page()

    def _observe_again(self) -> None:
        self._observe()
        self._observing = asyncio.get_running_loop().call_later(OBSERVE_S, self._observe_again)

    def _observe(self) -> None:
        statuses = Counter(link.status for link in self.nodes.links.values())
        nodes = {status: statuses[status] for status in ("up", "connecting", "down")}
        self.metrics.observe(
            running=len(self.pump.streams), nodes=nodes, holding=self.pump.router.queue_status(self.pump.now_s())
        )
        router = self.pump.router
        self.metrics.moved(router.take_moves(), under_way=len(router.moving))

    def _nodes_changed(self) -> None:
        self.operators.nodes_changed()
        task = asyncio.get_running_loop().create_task(self._set_health())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _set_health(self) -> None:
        # One that can have a node started takes requests, which wait for it.
        up = (self.nodes.any_up or bool(self.nodes.expected)) and not self._stopping
        status = health_pb2.HealthCheckResponse.SERVING if up else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE, *(HEALTH_SERVICES if self._processor is not None else ())):
            await self._health.set(service, status)


async def serve(
    config: GatewayConfig, reread: Callable[[], GatewayConfig] | None = None, slot: WorkerSlot | None = None
) -> None:
    """Serves until SIGTERM or SIGINT; SIGHUP takes over what `reread` returns. Raises ConfigError at start."""
    check_ready_file(config.ready_file)
    tail = LogTail() if config.shows_ui else None
    log_json_lines(config.log_level, *([slot.mark] if slot is not None else []), *([tail] if tail is not None else []))
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    gateway = Gateway(config, slot, tail)

    def reload() -> None:
        try:
            if reread is not None:
                gateway.reload(reread())
        except ConfigError as bad:
            log.error("configuration not reloaded, the old one holds", detail=str(bad))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    live_through()
    await gateway.start()
    # What start-up made stays; without it a full collection would stop all streams for milliseconds.
    gc.collect()
    gc.freeze()
    await stop.wait()
    # Whoever asks a second time does not want to wait.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, os._exit, 130)
    await gateway.stop()


def _certificates(config: GatewayConfig) -> dict[str, float]:
    """Of both sides of the gateway, with their ends. Raises ConfigError."""
    return certificate_ends(config.tls.cert, config.tls.client_ca, config.node_tls.cert, config.node_tls.ca)


def _tokenizer(name: str) -> Tokenizer:
    """Raises ConfigError."""
    try:
        return load_tokenizer(default_tokenizer() if name == "auto" else name)
    except TokenizerError as bad:
        raise ConfigError(f"key 'tokenizer': {bad}") from None


def _length_desk(config: LengthsConfig, tokenizer: Tokenizer) -> LengthDesk:
    """Raises ConfigError."""
    try:
        model = load_lengths(config.model)
    except ArtifactError as bad:
        raise ConfigError(f"key 'model' in [lengths]: {bad}") from None
    return LengthDesk(model, deadline_s=config.deadline_s, decode=tokenizer.decode)


def _router_config(config: GatewayConfig, slot: WorkerSlot | None) -> RouterConfig:
    """With the policy's name where a file was named, and a seed of this worker's own.

    Workers with one seed would all choose the same node at the same moment.
    """
    router = config.router
    seed = router.seed + (slot.index if slot else 0)
    return msgspec.structs.replace(router, policy=policy_name(router.policy), seed=seed)


def _timers(loop: asyncio.AbstractEventLoop) -> Callable[[float, Callable[[], None]], object]:
    def call_at(when_s: float, callback: Callable[[], None]) -> object:
        # Rounded up to the loop's resolution of 1 ms, or a timer would find itself early and spin.
        return loop.call_later(max(0.0, math.ceil((when_s - time.monotonic()) * 1000) / 1000), callback)

    return call_at


def _log_defect(event: AnyEvent, defect: Exception) -> None:
    log.error("defect in the router", event_type=type(event).__name__, exc_info=defect)


def _server_options(config: GatewayConfig, *, shared_port: bool) -> list[tuple[str, int | str]]:
    return [
        *server_options(
            # Longer ones are refused by us, who can say what the limit is and where it stands.
            max_message_bytes=TRANSPORT_ROOM * config.max_body_bytes,
            min_ping_interval_s=config.min_ping_interval_s,
            shared_port=shared_port,
        ),
        *keepalive(every_s=10.0, patience_s=5.0),
    ]

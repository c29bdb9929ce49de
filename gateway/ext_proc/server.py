"""The listener that proxies ask, by Envoy's external processing, where to take each of their requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.config import GatewayConfig
from gateway.ext_proc.proxied_call import ProxiedCall
from gateway.intake.callers import KeyRing
from gateway.intake.submission import Intake
from gateway.listen import PortBusy, check_free
from gateway.nodes.registry import NodeRegistry
from protos.runtime.addresses import parse_address
from protos.runtime.channels import server_options
from protos.runtime.tls import ServerTls
from protos.v1 import envoy_external_processor_pb2 as pb
from protos.v1.envoy_external_processor_pb2_grpc import (
    ExternalProcessorServicer,
    add_ExternalProcessorServicer_to_server,
)

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
HEALTH_SERVICES = (SERVICE, "readiness")
"""Names by which proxies ask whether to come here; `liveness` is always there."""
LIVENESS = "liveness"
MESSAGE_ROOM_BYTES = 1024 * 1024
"""What a message may hold beside a body."""


class ProcessorApi(ExternalProcessorServicer):
    """One instance serves all requests of all proxies."""

    def __init__(self, *, intake: Intake, nodes: NodeRegistry, keys: KeyRing, max_body_bytes: int) -> None:
        self._intake = intake
        self._nodes = nodes
        self._keys = keys
        self._max_body_bytes = max_body_bytes

    # A coroutine that writes instead of the generator that the stubs expect: a generator's `finally` would not run when
    # the proxy leaves while an answer is being written.
    async def Process(self, request_iterator: AsyncIterator[pb.ProcessingRequest], context: Any) -> None:  # type: ignore[override]
        call = ProxiedCall(self._intake, self._nodes, self._keys, max_body_bytes=self._max_body_bytes)
        try:
            async for message in request_iterator:
                for reply in await call.hear(message):
                    await context.write(reply)
        finally:
            call.close()


class ProcessorServer:
    """`start`, then `stop`."""

    def __init__(
        self, config: GatewayConfig, *, intake: Intake, nodes: NodeRegistry, keys: KeyRing, health: Any, shared: bool
    ) -> None:
        """`health`: the servicer of all listeners of this gateway. `shared`: other workers have the same port."""
        self.bound = parse_address(config.ext_proc.listen, any_port=True)
        self._shared = shared
        self._health = health
        max_body_bytes = max(config.max_body_bytes, config.max_call_bytes)
        self._api = ProcessorApi(intake=intake, nodes=nodes, keys=keys, max_body_bytes=max_body_bytes)
        options = server_options(
            max_message_bytes=max_body_bytes + MESSAGE_ROOM_BYTES,
            min_ping_interval_s=config.min_ping_interval_s,
            shared_port=shared,
        )
        self._server = grpc.aio.server(options=options)

    async def start(self, tls: ServerTls | None) -> None:
        """Raises PortBusy."""
        if not self._shared:
            check_free(self.bound, key="ext_proc_listen")
        add_ExternalProcessorServicer_to_server(self._api, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            if tls is None:
                port = self._server.add_insecure_port(str(self.bound))
            else:
                port = self._server.add_secure_port(str(self.bound), tls.grpc_credentials())
        except RuntimeError:
            raise PortBusy(self.bound, "", "ext_proc_listen") from None
        self.bound = self.bound._replace(port=port)
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Takes no more requests; those under way get the grace."""
        await self._server.stop(grace_s)

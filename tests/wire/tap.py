"""A gRPC proxy that knows no messages: it passes every call on as bytes, and keeps what goes by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from tests.wire.recorded import Way

Keep = Callable[[str, Way, int, bytes], None]
"""Method, way, number of the call, bytes."""
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]


class Tap(grpc.GenericRpcHandler):  # type: ignore[misc, type-arg, unused-ignore]
    """Between a client and `target`. Calls of one message are streams of one: on the wire they are the same."""

    def __init__(self, target: str, keep: Keep, numbers: Callable[[], int]) -> None:
        self.address = ""
        self._target = target
        self._keep = keep
        self._numbers = numbers
        self._server = grpc.aio.server(options=UNLIMITED)
        self._channel: Any = None

    async def start(self) -> Tap:
        self._channel = grpc.aio.insecure_channel(self._target, options=UNLIMITED)
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def stop(self) -> None:
        await self._server.stop(0)
        if self._channel is not None:
            await self._channel.close()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method: str = details.method

        async def pass_on(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            assert self._channel is not None
            number = self._numbers()

            async def kept() -> AsyncIterator[bytes]:
                async for raw in requests:
                    self._keep(method, "request", number, raw)
                    yield raw

            passed = [(k, v) for k, v in context.invocation_metadata() if not k.startswith(("grpc-", "user-agent"))]
            call: Any = self._channel.stream_stream(method)(kept(), metadata=passed)
            try:
                await context.send_initial_metadata(await call.initial_metadata())
                async for raw in call:
                    self._keep(method, "response", number, raw)
                    yield raw
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
            except asyncio.CancelledError:
                # The client has left: there is nobody to tell.
                call.cancel()

        return grpc.stream_stream_rpc_method_handler(pass_on)

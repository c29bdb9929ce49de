"""The HTTP listener of an emulated engine: what vLLM's server is to a vLLM, for proxies that take calls there."""

from __future__ import annotations

import asyncio
import socket
import uuid

from aiohttp import web

from engine_adapters.base import EngineError
from engine_adapters.forwarding import BodyFeed, ForwardCall, Forwarder, ReplyData, ReplyEnd, ReplyHead
from engine_adapters.vllm.request_ids import own_request_id
from protos.runtime.addresses import HostPort
from protos.runtime.http_headers import HOP_BY_HOP

MAX_BODY_BYTES = 64 * 1024 * 1024
CLOSE_S = 0.5

Said = ReplyHead | ReplyData | ReplyEnd | EngineError


class EmulatedHttpServer:
    """`bind`, `start`, then `close`. A client that leaves is an abort, as with vLLM."""

    def __init__(self, engine: Forwarder, listen: HostPort) -> None:
        self._engine = engine
        self.address = listen
        self._socket: socket.socket | None = None
        self._runner: web.AppRunner | None = None

    def bind(self) -> None:
        """Takes the address; `address` has its port from then on. Raises OSError."""
        family = socket.AF_INET6 if ":" in self.address.host else socket.AF_INET
        self._socket = socket.create_server(self.address, family=family)
        self.address = self.address._replace(port=self._socket.getsockname()[1])

    async def start(self) -> None:
        assert self._socket is not None, "bound before it starts"
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=CLOSE_S)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    async def close(self) -> None:
        """Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        elif self._socket is not None:
            self._socket.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        body = BodyFeed(len(data))
        body.feed(data)
        lines = tuple((name.lower(), value) for name, value in request.headers.items())
        # As the trace of a vLLM names it.
        request_id = own_request_id(request.headers.get("x-request-id", "")) or uuid.uuid4().hex
        call = ForwardCall(
            request_id=request_id,
            method=request.method,
            target=request.raw_path,
            headers=tuple(line for line in lines if line[0] not in HOP_BY_HOP),
            body_bytes=len(data),
        )
        came: asyncio.Queue[Said] = asyncio.Queue()
        try:
            self._engine.forward(call, body, lambda _id, said: came.put_nowait(said))
        except EngineError as refused:
            raise web.HTTPServiceUnavailable(text=str(refused)) from None
        try:
            return await _reply(request, came)
        except BaseException:
            await self._engine.abort(request_id)
            raise


async def _reply(request: web.Request, came: asyncio.Queue[Said]) -> web.StreamResponse:
    response: web.StreamResponse | None = None
    while True:
        match await came.get():
            case ReplyHead(status=status, headers=headers):
                response = web.StreamResponse(status=status)
                for name, value in headers:
                    response.headers.add(name, value)
                await response.prepare(request)
            case ReplyData(data=data):
                assert response is not None, "the head comes first"
                await response.write(data)
            case ReplyEnd(aborted=aborted):
                if response is None or aborted:
                    raise ConnectionResetError("the call was broken off")
                await response.write_eof()
                return response
            case EngineError() as failed:
                if response is not None:
                    raise ConnectionResetError(str(failed))
                raise web.HTTPInternalServerError(text=str(failed))

"""The HTTP listener: accepts, sweeps out the slow, shuts down."""

from __future__ import annotations

import asyncio
import socket
import ssl

from gateway.http.connection import Connection, ConnectionLimits, Handler, TakesLong

SWEEP_S = 1.0
BACKLOG = 1024


class HttpServer:
    """One HTTP listener: `start`, then `close`. Every complete request goes to `handler`."""

    def __init__(
        self, handler: Handler, limits: ConnectionLimits, takes_long: TakesLong = lambda _url, _headers: False
    ) -> None:
        """`takes_long`: which requests may have a body of up to `max_call_bytes`; asked before it has come."""
        self._handler = handler
        self._takes_long = takes_long
        self._limits = limits
        self._connections: set[Connection] = set()
        self._retired = False
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Serves on a bound socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._connection,
            sock=listener,
            ssl=tls,
            backlog=BACKLOG,
        )
        self._sweep = loop.call_later(SWEEP_S, self._sweep_out)

    def retire(self) -> None:
        """Serves on, but every response from now on is its connection's last one."""
        self._retired = True
        for connection in self._connections:
            connection.keep_alive = False

    def stop_accepting(self) -> None:
        """No new connections; those that wait close, those with a response under way after it."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.shut_down()

    async def close(self, grace_s: float) -> None:
        """Breaks what is left after the grace."""
        self.stop_accepting()
        loop = asyncio.get_running_loop()
        end_s = loop.time() + grace_s
        while self._connections and loop.time() < end_s:  # noqa: ASYNC110 - at shutdown only
            await asyncio.sleep(0.01)
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._connections):
            connection.abort()

    def _connection(self) -> Connection:
        connection = Connection(self._handler, self._limits, self._connections, self._takes_long)
        connection.keep_alive = not self._retired
        return connection

    def _sweep_out(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(SWEEP_S, self._sweep_out)
        now_s = loop.time()
        for connection in list(self._connections):
            connection.expire(now_s)

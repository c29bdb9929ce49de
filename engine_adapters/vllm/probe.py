"""Reads an engine's trace from its socket. One connection per `watch`; a new connection begins with a new snapshot."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator

from engine_adapters.base import EngineError
from engine_adapters.vllm.address import TraceAddress
from engine_adapters.vllm.frames import (
    HEADER,
    SCHEMA,
    Attach,
    FrameError,
    Hello,
    Reader,
    frame,
    parse_header,
    parse_payload,
)
from simcore.trace import TraceItem

CONNECT_TIMEOUT_S = 5.0
READ_LIMIT_BYTES = 1 << 20


class TraceProbe:
    """Reads the trace of one engine (an EngineProbe).

    `exclusive` for a daemon: an engine takes one of those, and any number of onlookers.
    """

    def __init__(self, address: TraceAddress, *, exclusive: bool = True) -> None:
        self.address = address
        self.hello: Hello | None = None
        """Of the last connection."""
        self._exclusive = exclusive

    async def greet(self) -> Hello:
        """Connects as an onlooker just to learn what the engine is. Raises EngineError."""
        onlooker = TraceProbe(self.address, exclusive=False)
        watching = onlooker.watch()
        try:
            await anext(watching)
        finally:
            await watching.aclose()
        assert onlooker.hello is not None
        return onlooker.hello

    async def watch(self) -> AsyncGenerator[TraceItem, None]:
        """A snapshot, then deltas, those of the prefix cache among them.

        Raises EngineError when the engine leaves, or sends what is no trace."""
        reader, writer = await self._connect()
        try:
            decoded = Reader()
            while True:
                header = await reader.readexactly(HEADER.size)
                length, checksum = parse_header(header)
                item = decoded.read(parse_payload(await reader.readexactly(length), checksum))
                if item is None:
                    self.hello = decoded.hello
                else:
                    yield item
        except asyncio.IncompleteReadError as cut:
            what = "in the middle of a frame" if cut.partial else "(it stopped, or was restarted)"
            raise EngineError(f"the engine closed its trace at {self.address} {what}") from None
        except (FrameError, OSError) as error:
            raise EngineError(f"trace at {self.address}: {error}") from None
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self.address
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if address.path:
                    reader, writer = await asyncio.open_unix_connection(address.path, limit=READ_LIMIT_BYTES)
                else:
                    reader, writer = await asyncio.open_connection(address.host, address.port, limit=READ_LIMIT_BYTES)
        except PermissionError:
            raise EngineError(
                f"no permission for the trace socket {address.path}: run the daemon as the engine's user, or give both "
                "ASTROLABE_TRACE=unix:/path in a folder that they share"
            ) from None
        except (OSError, TimeoutError) as error:
            raise EngineError(
                f"no trace at {address} ({type(error).__name__}): is vLLM running there with --scheduler-cls "
                "astrolabe_trace.scheduler.TraceScheduler?"
            ) from None
        writer.write(frame(Attach(SCHEMA, self._exclusive, f"pid {os.getpid()}")))
        return reader, writer

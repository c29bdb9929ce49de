"""From an engine's `submit` with a sink to an asynchronous iterator, for callers that want one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from engine_adapters.base import EngineClient, EngineError, EngineOutput, EngineRequest


async def stream(client: EngineClient, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
    """The outputs of one request. Closing the iterator early aborts it. Raises RequestRefused, EngineError."""
    arrived: asyncio.Queue[EngineOutput | EngineError] = asyncio.Queue()
    client.submit(request, lambda _, output: arrived.put_nowait(output))
    ended = False
    try:
        while not ended:
            output = await arrived.get()
            if isinstance(output, EngineError):
                ended = True
                raise output
            ended = output.finish is not None
            yield output
    finally:
        if not ended:
            await client.abort(request.request_id)

"""An engine's reply that is kept back until what the call has changed is known here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from engine_adapters.forwarding import ReplyData, ReplyHead
from predictor.requests import End, ReplySink

NAMES_CHANGE = ("/load_lora_adapter", "/unload_lora_adapter")
"""Ends of paths whose calls change the names by which the engine may be asked."""


class HeldReply:
    """A sink for one call: tells another what it was told, once `look` is through. Such replies are short."""

    def __init__(self, sink: ReplySink, look: Callable[[], Awaitable[None]]) -> None:
        """`look` raises nothing."""
        self._sink = sink
        self._look = look
        self._held: list[tuple[str, ReplyHead | ReplyData | None, End | None]] = []
        self._telling: asyncio.Task[None] | None = None

    def __call__(self, request_id: str, reply: ReplyHead | ReplyData | None, end: End | None) -> None:
        self._held.append((request_id, reply, end))
        if end is not None:
            self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        await self._look()
        for one in self._held:
            self._sink(*one)

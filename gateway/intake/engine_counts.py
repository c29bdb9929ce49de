"""Prompts counted by an engine's own server (`/tokenize`), where the gateway cannot count them itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

from gateway.core.outcomes import COMPLETE
from gateway.intake.call_facts import CallFacts
from gateway.intake.client_call import ClientCall
from gateway.intake.client_stream import ClientStream
from gateway.intake.denied import Denied

log = structlog.get_logger("gateway.intake.engine_counts")

PATH = "/tokenize"
NO_ROUTE_PAUSE_S = 60.0
"""A model whose server does not count is not asked again before."""
SILENCE_PAUSE_S = 5.0
"""The same after an answer that did not come in time."""
_OF_THE_BODY = frozenset({400, 413, 422})
"""Statuses that say nothing of the next prompt."""


class EngineCount(msgspec.Struct):
    """What a server answers."""

    count: int
    tokens: list[int] = []


class EngineCounts:
    """Asks by a light call of the pass-through lane, which any node of the model may get; never longer than `within_s`
    (0: never). A model that is not counted is left alone for a while."""

    def __init__(
        self,
        forward: Callable[[ClientCall, CallFacts], Awaitable[ClientStream]],
        *,
        consumed: Callable[[ClientStream], None],
        close: Callable[[ClientStream], None],
        within_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forward = forward
        self._consumed = consumed
        self._close = close
        self._within_s = within_s
        self._clock = clock
        self._paused_until_s: dict[str, float] = {}
        """By model."""

    async def count(self, facts: CallFacts) -> EngineCount | None:
        """How long the prompt is, and its ids where the server tells them; None if nobody says in time."""
        model = facts.model
        if not self._within_s or self._clock() < self._paused_until_s.get(model, 0.0):
            return None
        body = msgspec.json.encode(_question(facts))
        call = ClientCall(
            method="POST",
            target=PATH,
            headers=(("content-type", "application/json"),),
            body=body,
            body_bytes=len(body),
            is_light=True,
            is_aside=True,
        )
        # A forecast would take longer than the answer.
        asked = CallFacts(model=model, is_light=True, max_output_tokens=1, policy="least_requests")
        stream: ClientStream | None = None
        try:
            async with asyncio.timeout(self._within_s):
                stream = await self._forward(call, asked)
                data = await self._read(stream)
        except TimeoutError:
            self._pause(model, SILENCE_PAUSE_S, f"no answer within {self._within_s:g} s")
            return None
        except Denied:
            return None
        finally:
            if stream is not None:
                self._close(stream)
        return self._counted(model, stream, data)

    async def _read(self, stream: ClientStream) -> bytes:
        answer = stream.answer
        assert answer is not None, "it was handed on"
        data = bytearray()
        while True:
            is_over = stream.outcome is not None
            data += answer.take()
            if is_over:
                return bytes(data)
            self._consumed(stream)
            await stream.changed()

    def _counted(self, model: str, stream: ClientStream, data: bytes) -> EngineCount | None:
        head = None if stream.answer is None else stream.answer.head
        status = 0 if head is None else head.status
        if status in _OF_THE_BODY:
            return None
        try:
            if status != 200 or stream.outcome not in COMPLETE:
                raise ValueError(f"status {status}" if status else stream.detail or "no answer")
            said = msgspec.json.decode(data, type=EngineCount)
            if said.count < 1 or (said.tokens and len(said.tokens) != said.count):
                raise ValueError(f"{said.count} tokens, {len(said.tokens)} ids")
        except ValueError as bad:
            self._pause(model, NO_ROUTE_PAUSE_S, str(bad)[:200])
            return None
        return said

    def _pause(self, model: str, pause_s: float, detail: str) -> None:
        self._paused_until_s[model] = self._clock() + pause_s
        log.info("prompts are estimated, as no engine counts them", model=model, detail=detail, again_in_s=pause_s)


def _question(facts: CallFacts) -> dict[str, Any]:
    named = {"model": facts.model} if facts.model else {}
    if facts.chat:
        return {**facts.chat, **named}
    texts = facts.prompt.texts
    if not facts.turns:
        return {**named, "prompt": "\n".join(texts)}
    system = [{"role": "system", "content": "\n".join(texts)}] if texts else []
    turns = [{"role": turn.role, "content": turn.content} for turn in facts.turns]
    tools = {"tools": facts.tools} if facts.tools else {}
    return {**named, "messages": [*system, *turns], **tools}

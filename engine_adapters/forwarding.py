"""Calls that are handed on to an engine's server as their client made them: what goes there and what comes back.

An adapter that can (`Capabilities.forwards`) implements `Forwarder`. Of an answer nothing is
read but what accounts need: how many output tokens went by.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from engine_adapters.base import EngineError

Headers = tuple[tuple[str, str], ...]
"""Names in lower case, values as they came; a name may come twice."""


class ForwardCall(msgspec.Struct, frozen=True, kw_only=True):
    """A client's HTTP request, as the engine's server is to get it."""

    request_id: str
    method: str
    target: str
    """Path and query."""
    headers: Headers
    body_bytes: int
    """Length of the whole body."""
    prompt_tokens: int = 0
    """How long its prompt is taken to be; 0: it has none. For accounts only, as what follows."""
    max_output_tokens: int = 0
    priority: int = 0
    model: str = ""
    """The name that its client says, of the model or of a LoRA adapter; empty: the model."""


class ReplyHead(msgspec.Struct, frozen=True):
    """The head of the server's answer; comes once, first."""

    status: int
    headers: Headers


class ReplyData(msgspec.Struct, frozen=True):
    """The next bytes of the answer."""

    data: bytes
    output_tokens: int = 0
    """Output tokens in them, as far as they can be told; the sum over an answer is its usage where it says one."""


class ReplyEnd(msgspec.Struct, frozen=True):
    """The answer is complete, or (`aborted`) nobody wants more of it."""

    aborted: bool = False
    at_limit: bool = False
    """The answer says that it stops at its limit of tokens."""
    prompt_tokens: int | None = None
    """As the answer's own usage says; None where it says nothing."""
    output_tokens: int | None = None
    """The same for the output."""
    cached_tokens: int = 0


ForwardSink = Callable[[str, ReplyHead | ReplyData | ReplyEnd | EngineError], None]
"""Takes (request id, what came). The last call for a request brings a `ReplyEnd` or an EngineError. Called on the event
loop; must not raise."""


class BodyFeed:
    """The body of a call while it comes in: `feed` from one side, iterated over once by the other."""

    def __init__(self, body_bytes: int, on_taken: Callable[[int], None] = lambda _size_bytes: None) -> None:
        """`body_bytes`: length of the whole body. `on_taken` is told how much of it each piece takes along."""
        self._missing_bytes = body_bytes
        self._on_taken = on_taken
        self._pieces: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._broken = False

    @property
    def is_drained(self) -> bool:
        """Whether all of it has come and been taken."""
        return not self._missing_bytes and not self._pieces

    def take(self) -> bytes:
        """The next piece, if one is here; else empty."""
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        self._on_taken(len(piece))
        return piece

    def feed(self, data: bytes) -> None:
        """Raises ValueError for more than the whole body."""
        if len(data) > self._missing_bytes:
            raise ValueError(f"the body is {len(data) - self._missing_bytes} bytes longer than announced")
        self._missing_bytes -= len(data)
        if data:
            self._pieces.append(data)
        self._wake.set()

    def give_up(self) -> None:
        """The rest will not come: iteration ends with EngineError."""
        self._broken = True
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            while piece := self.take():
                yield piece
            if not self._missing_bytes:
                return
            if self._broken:
                raise EngineError("the rest of the body did not come")
            self._wake.clear()
            await self._wake.wait()


class Forwarder(Protocol):
    """Hands calls on to one engine's server."""

    def forward(self, call: ForwardCall, body: BodyFeed, sink: ForwardSink) -> None:
        """Starts the call; what comes back goes to `sink`.

        Raises RequestRefused for a name that runs here, EngineError if it is known at once that it cannot be done; then
        the sink is never called.
        """

    def hold(self, request_id: str, held: bool) -> None:
        """Stops reading the answer, or goes on with it: its client reads too slowly. Unknown ids change nothing."""

    async def abort(self, request_id: str) -> bool:
        """Breaks the call off, so that the engine drops it within a step; its sink gets `ReplyEnd(aborted=True)`. False
        if it is unknown."""

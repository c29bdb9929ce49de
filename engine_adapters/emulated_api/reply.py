"""One call's way back to its client: the head, the bytes, the end; held back while its reader is slow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from engine_adapters.base import EngineError
from engine_adapters.forwarding import ForwardSink, Headers, ReplyData, ReplyEnd, ReplyHead

_Item = ReplyHead | ReplyData | ReplyEnd | EngineError

JSON: Headers = (("content-type", "application/json"),)
EVENTS: Headers = (("content-type", "text/event-stream; charset=utf-8"),)

encode_json = msgspec.json.Encoder().encode


NOTHING_SAID = ReplyEnd()


class Reply:
    """What goes to a call's sink, in order. After its end, or an abort, nothing more goes."""

    def __init__(self, request_id: str, sink: ForwardSink, forget: Callable[[str], object]) -> None:
        """`forget` is told once, when the sink has got the last word."""
        self._request_id = request_id
        self._sink = sink
        self._forget = forget
        self._waiting: deque[_Item] = deque()
        self._held = False
        self._uncounted_tokens = 0
        self.ended = False
        """Whether all of the answer is known, though its reader may not have it."""

    def whole(
        self,
        status: int,
        body: bytes,
        headers: Headers = JSON,
        *,
        end: ReplyEnd = NOTHING_SAID,
    ) -> None:
        """A whole answer. `end` says what the body says of its tokens."""
        self._send(ReplyHead(status, (*headers, ("content-length", str(len(body))))))
        if body:
            self._send(ReplyData(body, end.output_tokens or 0))
        self.end(end)

    def json(self, status: int, tree: Any, *, end: ReplyEnd = NOTHING_SAID) -> None:
        """A whole answer as JSON."""
        self.whole(status, encode_json(tree), end=end)

    def begin_events(self) -> None:
        """The head of a streamed answer."""
        self._send(ReplyHead(200, EVENTS))

    def count(self, tokens: int) -> None:
        """Output tokens that the next bytes account for."""
        self._uncounted_tokens += tokens

    def event(self, tree: Any, name: str = "") -> None:
        """An event of the stream; `name` where the API names its events."""
        prefix = f"event: {name}\ndata: " if name else "data: "
        self.data(prefix.encode() + encode_json(tree) + b"\n\n")

    def data(self, data: bytes) -> None:
        """Bytes of the stream."""
        self._send(ReplyData(data, self._uncounted_tokens))
        self._uncounted_tokens = 0

    def end(self, end: ReplyEnd = NOTHING_SAID) -> None:
        """The answer is complete. `end` says what it says of its tokens."""
        if not self.ended:
            self._send(end)
            self.ended = True

    def fail(self, error: EngineError) -> None:
        """The engine failed."""
        if not self.ended:
            self._send(error)
            self.ended = True

    def abort(self) -> None:
        """Nobody wants more: what waits is dropped."""
        self.ended = True
        self._waiting.clear()
        self._held = False
        self._deliver(ReplyEnd(aborted=True))

    def hold(self, held: bool) -> None:
        self._held = held
        while self._waiting and not self._held:
            self._deliver(self._waiting.popleft())

    def _send(self, item: _Item) -> None:
        if self.ended:
            return
        if self._held or self._waiting:
            self._waiting.append(item)
        else:
            self._deliver(item)

    def _deliver(self, item: _Item) -> None:
        if isinstance(item, ReplyEnd | EngineError):
            self._forget(self._request_id)
        self._sink(self._request_id, item)

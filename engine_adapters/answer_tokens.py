"""How many output tokens go by in an engine's answer that is handed on unread. Pure.

A stream of server-sent events has about one event a token; its usage, where it says one, puts the sum right. Nothing is
parsed: a key inside a client's text has its quotes escaped, so the bytes of a key are a key.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    # Gateways count tokens too, and that module brings the simulator's compiled parts along.
    from engine_adapters.forwarding import Headers

_USAGE = re.compile(
    rb'"(?:(prompt_tokens|input_tokens)|(completion_tokens|output_tokens)|(cached_tokens|cache_read_input_tokens))"'
    rb"\s*:\s*(\d+)"
)
_AT_LIMIT = re.compile(
    rb'"(?:finish_reason|stop_reason|reason)"\s*:\s*"(?:length|max_tokens|max_output_tokens|model_length)"'
)
_OVERLAP_BYTES = 96
"""Longer than anything looked for: what the end of one piece has of it is looked at again with the next."""
_LONGEST_LINE_BYTES = 64 * 1024
_MARKS: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("/chat/completions", (b'"delta":',)),
    ("/completions", (b'"text":',)),
    ("/responses", (b".delta\n", b".delta\r\n")),
    ("/messages", (b"event: content_block_delta",)),
)
"""What stands once in each event with tokens, by the path's end."""
_NO_TOKEN = b'"role"'
"""The first event of each answer of a chat says who speaks, and nothing yet."""


def is_event_stream(headers: Headers) -> bool:
    """Whether the answer with these headers comes as it is produced."""
    return any(n == "content-type" and v.lower().startswith("text/event-stream") for n, v in headers)


class Counted(NamedTuple):
    """What an answer's own usage says; None where it says nothing."""

    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int


class AnswerTokens:
    """Counts along one answer: `add` each piece, then ask for the `usage`."""

    __slots__ = ("_awaits_role", "_counted", "_marks", "_rest", "_said", "at_limit", "is_stream")

    def __init__(self, target: str, headers: Headers) -> None:
        """Path and query of the call; the headers of its answer."""
        path = target.partition("?")[0]
        encoded = any(name == "content-encoding" and value.lower() != "identity" for name, value in headers)
        self.is_stream = is_event_stream(headers)
        """Whether it comes as it is produced, so that its first bytes are its first token."""
        self.at_limit = False
        """Whether it says that it stops at its limit of tokens."""
        self._marks: tuple[bytes, ...] = ()
        self._awaits_role = False
        if self.is_stream and not encoded:
            end, self._marks = next(((end, marks) for end, marks in _MARKS if path.endswith(end)), ("", ()))
            self._awaits_role = end == "/chat/completions"
        self._rest = b""
        self._counted = 0
        self._said: dict[int, int] = {}

    def add(self, data: bytes) -> int:
        """Output tokens in the next bytes, as far as they can be told."""
        if self.is_stream:
            whole = self._lines(data)
        else:
            whole = self._rest + data
            self._rest = whole[-_OVERLAP_BYTES:]
        new = 0
        for mark in self._marks:
            new += whole.count(mark)
        if self._awaits_role and _NO_TOKEN in whole:
            # Only in the first: some servers say it in each.
            self._awaits_role = False
            new -= 1
        if b'_tokens"' in whole:
            self._read_usage(whole)
        if not self.at_limit and (b'length"' in whole or b'_tokens"' in whole):
            self.at_limit = _AT_LIMIT.search(whole) is not None
        # What has been told cannot be taken back: more events than tokens stay so until the usage catches up.
        total = self._said.get(2)
        if total is not None:
            new = max(0, total - self._counted)
        self._counted += new
        return new

    def usage(self) -> Counted:
        """What it said of itself."""
        said = self._said
        return Counted(said.get(1), said.get(2), said.get(3, 0))

    def _lines(self, data: bytes) -> bytes:
        """The whole lines among what is here."""
        rest = self._rest
        if data.endswith(b"\n"):
            self._rest = b""
            return rest + data if rest else data
        data = rest + data
        cut = data.rfind(b"\n") + 1
        if not cut and len(data) > _LONGEST_LINE_BYTES:
            cut = len(data) - _OVERLAP_BYTES
        self._rest = data[cut:]
        return data[:cut]

    def _read_usage(self, whole: bytes) -> None:
        for found in _USAGE.finditer(whole):
            kind = 1 if found[1] else 2 if found[2] else 3
            self._said[kind] = int(found[4])

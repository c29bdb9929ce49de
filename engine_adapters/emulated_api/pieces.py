"""From the tokens of one answer to what an API tells of them: text, calls of tools, why it ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from engine_adapters.tokenizer import StreamDecoder, Tokenizer


class SaidText(msgspec.Struct, frozen=True):
    """More of the answer's text."""

    text: str


class CallBegun(msgspec.Struct, frozen=True):
    """The answer begins its call number `index` of a tool."""

    index: int
    call_id: str
    name: str


class CallWords(msgspec.Struct, frozen=True):
    """More of that call's arguments."""

    index: int
    text: str


Part = SaidText | CallBegun | CallWords


class Segment(msgspec.Struct, frozen=True):
    """A stretch of an answer whose words are given."""

    kind: Literal["text", "arguments", "silent"]
    text: str
    begins: CallBegun | None = None
    """The call that is known when these words have come."""
    index: int = 0
    """The call whose arguments they are."""


class StopCutter:
    """Ends a text at the first of its stop texts; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str], *, keep: bool) -> None:
        """`keep`: the stop text itself belongs to the answer."""
        self._stops = stops
        self._keep = keep
        self._held_chars = max((len(s) for s in stops), default=1) - 1
        self._tail = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """What may be told by now."""
        if not self._stops or self.found is not None:
            return text if self.found is None else ""
        self._tail += text
        hits = [(at, s) for s in self._stops if (at := self._tail.find(s)) >= 0]
        if hits:
            at, self.found = min(hits, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            told, self._tail = self._tail[: at + len(self.found) if self._keep else at], ""
            return told
        cut = max(0, len(self._tail) - self._held_chars)
        told, self._tail = self._tail[:cut], self._tail[cut:]
        return told

    def finish(self) -> str:
        """What was held back in vain."""
        told, self._tail = self._tail, ""
        return told


class Voice:
    """Reads one answer's tokens as they come."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        segments: Sequence[tuple[Segment, int]] = (),
        *,
        stops: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        keep_stop: bool = False,
    ) -> None:
        """`segments`: with their lengths in tokens; none: all is text."""
        self._tokenizer = tokenizer
        self._segments = list(reversed(segments))
        self._left_tokens = 0
        self._segment: Segment | None = None
        self._decoder = StreamDecoder(tokenizer)
        self._cutter = StopCutter(stops, keep=keep_stop)
        self._stop_token_ids = frozenset(stop_token_ids)
        self._keep_stop = keep_stop
        self.stop_reason: int | str | None = None

    def take(self, token_ids: Sequence[int], *, last: bool) -> list[Part]:
        """What these tokens tell; `last`: no more will come."""
        if self._segments or self._segment:
            return self._scripted(token_ids)
        if last and token_ids and token_ids[-1] in self._stop_token_ids:
            self.stop_reason = token_ids[-1]
            token_ids = token_ids if self._keep_stop else token_ids[:-1]
        text = self._cutter.push(self._decoder.push(token_ids))
        if last:
            text += self._cutter.push(self._decoder.finish())
            if self._cutter.found is None:
                text += self._cutter.finish()
            else:
                self.stop_reason = self._cutter.found
        return [SaidText(text)] if text else []

    def _scripted(self, token_ids: Sequence[int]) -> list[Part]:
        parts: list[Part] = []
        for token in token_ids:
            if not self._left_tokens:
                self._segment, self._left_tokens = self._segments.pop()
            self._left_tokens -= 1
            segment = self._segment
            assert segment is not None
            text = self._decoder.push([token])
            if segment.kind == "text" and text:
                parts.append(SaidText(text))
            elif segment.kind == "arguments" and text:
                parts.append(CallWords(segment.index, text))
            if not self._left_tokens and segment.begins is not None:
                parts.append(segment.begins)
        return parts

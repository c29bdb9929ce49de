"""A conversation as turns of its sides, whatever file or request it came from. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import msgspec

Role = Literal["user", "assistant", "other"]

_PART_SUFFIX = re.compile(r"_(\d+)$")
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}


def encodable(text: str) -> str:
    """The text with half surrogate pairs (JSON can spell them, UTF-8 cannot) replaced by `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


def role_of(word: str) -> Role:
    """The side that a file means by a word such as `human` or `gpt`."""
    return _ROLES.get(word.strip().lower(), "other")


def root_of(conversation_id: str) -> tuple[str, int]:
    """The id without its part number, and that number: long conversations come as parts `abc_0`, `abc_1`, ..."""
    found = _PART_SUFFIX.search(conversation_id)
    return (conversation_id, 0) if found is None else (conversation_id[: found.start()], int(found[1]))


class Turn(msgspec.Struct, frozen=True):
    """What one side said; may be empty."""

    role: Role
    text: str


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    conversation_id: str
    """As in the file, made unique by nothing: long conversations come as parts `abc_0`, `abc_1`, ..."""
    turns: tuple[Turn, ...]

    @property
    def root_id(self) -> str:
        """The id without its part number: what must stay on one side of a split."""
        return root_of(self.conversation_id)[0]


def answered_turns(conversation: Conversation) -> Iterator[int]:
    """Positions of the user turns that an assistant turn follows directly, both with some text."""
    for i in range(len(conversation.turns) - 1):
        asked, answer = conversation.turns[i], conversation.turns[i + 1]
        if asked.role == "user" and answer.role == "assistant" and asked.text and answer.text:
            yield i

"""A conversation as turns of its sides, whatever file or request it came from. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import msgspec

Role = Literal["user", "assistant", "other"]

_PART_SUFFIX = re.compile(r"_\d+$")


def encodable(text: str) -> str:
    """The text with half surrogate pairs (JSON can spell them, UTF-8 cannot) replaced by `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


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
        return _PART_SUFFIX.sub("", self.conversation_id)


def answered_turns(conversation: Conversation) -> Iterator[int]:
    """Positions of the user turns that an assistant turn follows directly, both with some text."""
    for i in range(len(conversation.turns) - 1):
        asked, answer = conversation.turns[i], conversation.turns[i + 1]
        if asked.role == "user" and answer.role == "assistant" and asked.text and answer.text:
            yield i

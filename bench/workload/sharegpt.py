"""ShareGPT as a workload: the first answered question of each conversation. Pure: bytes go in.

`length_model.sharegpt` reads the file's layout; what is cut off at its end is left out, and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from bench.workload.dataset_error import DatasetError
from length_model.core.conversation import Conversation, answered_turns
from length_model.sharegpt import ConversationReader, ShareGptError


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
    """Feed it the file's bytes in pieces of any size; it hands out the pair of each conversation as it completes."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._reader = ConversationReader()
        self._empty = 0
        self._without_pair = 0

    def feed(self, data: bytes) -> list[Pair]:
        """The pairs that this piece completes. Raises DatasetError when the file cannot be ShareGPT."""
        try:
            return self._pairs(self._reader.feed(data))
        except ShareGptError as bad:
            raise self._named(bad) from bad

    def finish(self) -> tuple[list[Pair], ShareGptReport]:
        """The last pairs and the account of the file. Raises DatasetError if it was empty or held nothing complete."""
        try:
            rest, account = self._reader.finish()
        except ShareGptError as bad:
            raise self._named(bad) from bad
        pairs = self._pairs(rest)
        report = ShareGptReport(
            conversations=account.conversations,
            empty=self._empty,
            without_pair=self._without_pair,
            cut_off=account.cut_off,
        )
        return pairs, report

    def _pairs(self, conversations: Iterable[Conversation]) -> list[Pair]:
        found = []
        for conversation in conversations:
            turns = conversation.turns
            first = next(answered_turns(conversation), None)
            if first is not None:
                found.append(Pair(conversation.conversation_id, turns[first].text, turns[first + 1].text))
            elif turns:
                self._without_pair += 1
            else:
                self._empty += 1
        return found

    def _named(self, bad: ShareGptError) -> DatasetError:
        return DatasetError(self._source, bad.reason, row=bad.row, mend=bad.mend)

"""ShareGPT as a workload: the first answered question of each conversation. Pure: text goes in.

`length_model.sharegpt` reads the file's layout; what is cut off at its end is left out, and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from bench.workload.dataset_error import DatasetError
from bench.workload.rows import SKIP_BAD, plural
from length_model.core.conversation import Conversation, answered_turns
from length_model.sharegpt import TURN_LISTS, ConversationReader, ShareGptError


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
    bad_turns: int
    """Turns without a role or a text; they count as nothing said."""
    bad: int
    """Conversations that cannot be read."""
    first_bad: str
    """The first of them: its number and why."""
    cut_off: bool
    """The file ends before its array does."""

    def notes(self, pairs: int) -> list[str]:
        """The account for people, where so many pairs are used."""
        ending = " before the file is cut off" if self.cut_off else ""
        found = [
            f"ShareGPT: {self.conversations:,} complete conversations{ending}, {self.empty:,} of them empty; "
            f"{pairs:,} give a first human-to-model pair"
        ]
        if self.without_pair:
            found.append(f"{plural(self.without_pair, 'conversation')} without an answered human turn left out")
        if self.bad_turns:
            found.append(f"{plural(self.bad_turns, 'turn')} without a role or a text passed over")
        if self.bad:
            found.append(
                f"{plural(self.bad, 'conversation')} that cannot be read left out; the first is {self.first_bad}"
            )
        return found


def is_sharegpt(keys: set[str]) -> bool:
    """Whether an object with these keys is a conversation."""
    return not keys.isdisjoint(TURN_LISTS)


class ShareGptReader:
    """Feed it the file's text in pieces of any size; it hands out the pair of each conversation as it completes.

    Conversations that cannot be read are errors, or with `skip_bad` counted and passed over.
    """

    def __init__(self, source: str, *, skip_bad: bool = False) -> None:
        self._source = source
        self._reader = ConversationReader(on_bad=self._passed_over if skip_bad else None)
        self._empty = 0
        self._without_pair = 0
        self._bad: list[ShareGptError] = []

    def feed(self, text: str) -> list[Pair]:
        """The pairs that this piece completes. Raises DatasetError when the file cannot be ShareGPT."""
        try:
            return self._pairs(self._reader.feed(text))
        except ShareGptError as bad:
            raise self._named(bad) from bad

    def finish(self) -> tuple[list[Pair], ShareGptReport]:
        """The last pairs and the account of the file. Raises DatasetError if it was empty or held nothing complete."""
        try:
            rest, account = self._reader.finish()
        except ShareGptError as bad:
            raise self._named(self._bad[0] if self._bad else bad) from bad
        pairs = self._pairs(rest)
        report = ShareGptReport(
            conversations=account.conversations,
            empty=self._empty,
            without_pair=self._without_pair,
            bad_turns=account.bad_turns,
            bad=len(self._bad),
            first_bad=f"number {self._bad[0].row}: {self._bad[0].reason}" if self._bad else "",
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

    def _passed_over(self, bad: ShareGptError) -> None:
        self._bad.append(bad)

    def _named(self, bad: ShareGptError) -> DatasetError:
        mend = bad.mend if bad.row is None or self._bad else f"{bad.mend} {SKIP_BAD}"
        return DatasetError(self._source, bad.reason, row=bad.row, mend=mend)

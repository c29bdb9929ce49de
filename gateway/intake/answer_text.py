"""The text of one answer as its tokens come: decoded, and ended by a stop string if one was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from engine_adapters.tokenizer import StreamDecoder, Tokenizer
from gateway.intake.stops import StopFinder

REPLACEMENT = "\ufffd"


class AnswerText:
    """The text of one answer so far. Mutable; one per answer."""

    __slots__ = ("_broken", "_decoder", "_finder", "_silent", "_tokens_before_stop", "_waiting")

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, stop_token_ids: Sequence[int] = (), min_tokens: int = 0
    ) -> None:
        """A stop string that is complete with the first `min_tokens` tokens or earlier stops nothing, and the token
        that an answer stops at is not in its text, both as in vLLM."""
        self._silent = frozenset(stop_token_ids)
        self._tokens_before_stop = min_tokens
        self._decoder = StreamDecoder(tokenizer)
        self._broken = ""
        """Characters at the end that are none, as far as is known. As in vLLM they are told when a whole one follows,
        and else not at all."""
        self._finder = StopFinder(stop) if stop else None
        self._waiting = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come: nothing after it belongs to the answer."""
        finder = self._finder
        return finder is not None and finder.found is not None

    @property
    def stopped_by(self) -> str | None:
        """The stop string that has come."""
        return None if self._finder is None else self._finder.found

    def push(self, token_ids: Sequence[int]) -> int:
        """Takes the next tokens; how many of them belong to the answer, the one that completes a stop string
        included."""
        finder = self._finder
        if finder is None:
            self._waiting += self._decoded(token_ids)
            return len(token_ids)
        for position, token_id in enumerate(token_ids):
            if finder.found is not None:
                return position
            self._tokens_before_stop -= 1
            self._waiting += finder.push(self._decoded((token_id,)), may_end=self._tokens_before_stop < 0)
        return len(token_ids)

    def _decoded(self, token_ids: Sequence[int]) -> str:
        silent = self._silent
        text = self._decoder.push([i for i in token_ids if i not in silent] if silent else token_ids)
        if self._broken or text.endswith(REPLACEMENT):
            text = self._broken + text
            whole = text.rstrip(REPLACEMENT)
            text, self._broken = whole, text[len(whole) :]
        return text

    def finish(self) -> None:
        """No more tokens come."""
        if self._finder is not None:
            self._waiting += self._finder.finish()

    def take(self) -> str:
        """The text since the last call."""
        taken, self._waiting = self._waiting, ""
        return taken

"""Stop strings in a text that comes in pieces. Pure.

The answer ends where the first stop string is complete, and its text ends right before that string, however the text
was cut into pieces on the way.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Looks for the first of `strings` (not empty, none of them empty). Raises ValueError otherwise."""

    __slots__ = ("_held", "_longest", "_strings", "found")

    def __init__(self, strings: Sequence[str]) -> None:
        if not strings or not all(strings):
            raise ValueError("stop strings must not be empty")
        self._strings = tuple(strings)
        self._longest = max(map(len, strings))
        self._held = ""
        """The end of the text so far, as far as it may be the beginning of a stop string."""
        self.found: str | None = None
        """The one that ended the text, once one has."""

    def push(self, text: str, *, may_end: bool = True) -> str:
        """Takes the next piece; the text that is certain to stand before any stop string. Nothing once one is `found`.
        Without `may_end` a string that is complete in this piece stops nothing."""
        if self.found is not None or not text:
            return ""
        old = len(self._held)
        text = self._held + text
        # The first to be complete wins, and of those the one named first: as in vLLM, however the text was cut.
        strings = self._strings if may_end else ()
        ends = [(at + len(s), at, s) for s in strings if (at := text.find(s, max(0, old - len(s) + 1))) >= 0]
        if ends:
            _, at, self.found = min(ends, key=lambda end: end[0])
            self._held = ""
            return text[:at]
        held = self._beginning(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """The text is complete: what was held back."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._strings):
                return length
        return 0

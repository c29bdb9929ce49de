"""What a node tells its gateways of its prefix cache: the whole, then what has changed, a few times a second. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from simcore.cache_summary import MOST_NAMES, MOST_ONE_IN, CacheSummary, is_told, told_name

TELL_EVERY_S = 0.25
"""Least time between two summaries."""
KEPT = 8
"""Summaries that are kept for a gateway that has not read them yet; one further behind gets the whole."""


class CacheTeller:
    """The summaries of one node, the same for all its gateways. Costs as much as the cache changes."""

    def __init__(self, content: Callable[[], Iterable[int] | None], *, most_names: int = MOST_NAMES) -> None:
        """`content` gives the names (`simcore.prefix`) of all that is cached now; None: it is not known."""
        self.number = 0
        """Of the last summary; 0 before the first."""
        self._content = content
        self._most_names = most_names
        self.one_in = 1
        """Of so many names about one is told now (`is_told`)."""
        self._told: set[int] | None = None
        """What the last summary comes to; None: not known."""
        self._touched: dict[int, bool] = {}
        """By name as told, since the last summary: whether it is there."""
        self._anew = True
        """Whether changes since the last summary are not all known."""
        self._due_s = 0.0
        self._kept: deque[CacheSummary] = deque(maxlen=KEPT)

    @property
    def has_news(self) -> bool:
        """Whether anything may have changed since the last summary."""
        return self._anew or bool(self._touched)

    @property
    def due_s(self) -> float:
        """When the next summary may be made."""
        return self._due_s

    def changed(self, stored: Iterable[int], evicted: Iterable[int]) -> None:
        """These names are there now, those are not any more."""
        if self._anew:
            return
        one_in, touched = self.one_in, self._touched
        for name in evicted:
            if is_told(name, one_in):
                touched[told_name(name)] = False
        for name in stored:
            if is_told(name, one_in):
                touched[told_name(name)] = True
        if len(touched) > 2 * self._most_names:
            # Nobody has asked for long.
            self.changed_wholly()

    def changed_wholly(self) -> None:
        """What is cached must be read anew."""
        self._anew = True
        self._touched.clear()

    def make(self, now_s: float) -> bool:
        """Makes the next summary, if it is due and there is news."""
        if now_s < self._due_s or not self.has_news:
            return False
        summary = self._whole() if self._anew else self._change()
        if summary is None:
            return False
        self._due_s = now_s + TELL_EVERY_S
        self.number = summary.number
        if summary.whole:
            self._kept.clear()
        self._kept.append(summary)
        return True

    def after(self, number: int | None) -> CacheSummary | None:
        """What a gateway needs next that has read the summary of this number (None: none at all); None: nothing."""
        if number == self.number or not self.number:
            return None
        kept = self._kept
        if number is not None and kept and kept[0].number <= number + 1 <= kept[-1].number:
            return kept[number + 1 - kept[0].number]
        told = self._told
        if told is None:
            return CacheSummary(number=self.number, whole=True, unknown=True)
        return CacheSummary(number=self.number, whole=True, one_in=self.one_in, stored=tuple(told), names=len(told))

    def _whole(self) -> CacheSummary | None:
        self._anew = False
        self._touched.clear()
        content = self._content()
        if content is None:
            known, self._told = self._told is not None, None
            return CacheSummary(number=self.number + 1, whole=True, unknown=True) if known else None
        names = list(content)
        one_in = 1
        told = {told_name(name) for name in names}
        while len(told) > self._most_names and one_in < MOST_ONE_IN:
            one_in *= 2
            told = {told_name(name) for name in names if is_told(name, one_in)}
        if len(told) > self._most_names:
            # Names that are no hashes.
            told = set(sorted(told)[: self._most_names])
        self._told, self.one_in = told, one_in
        return CacheSummary(number=self.number + 1, whole=True, one_in=one_in, stored=tuple(told), names=len(told))

    def _change(self) -> CacheSummary | None:
        told = self._told
        assert told is not None, "changes are counted from a known content on"
        stored = [name for name, there in self._touched.items() if there and name not in told]
        evicted = [name for name, there in self._touched.items() if not there and name in told]
        self._touched.clear()
        if not stored and not evicted:
            return None
        told.difference_update(evicted)
        told.update(stored)
        if len(told) > self._most_names or len(stored) + len(evicted) > len(told):
            # Also when it has shrunk so far that more of it could be told.
            return self._whole()
        if self.one_in > 1 and len(told) < self._most_names // 4:
            return self._whole()
        return CacheSummary(
            number=self.number + 1,
            one_in=self.one_in,
            stored=tuple(stored),
            evicted=tuple(evicted),
            names=len(told),
        )

"""The accounts of `gateway.intake.quota`, kept in memory that workers can share.

Layout of a shared file: SLOTS rows of eight-byte words: the first eight bytes of the SHA-256 of the caller's name, the
theoretical arrival time (double), then one count per worker. A row is found by probing from the hash. Two workers may
read the same time before either writes: a limit can then be passed by one request, never by more per worker.
"""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

from gateway.core.outcomes import Denial
from gateway.intake.callers import Caller
from gateway.intake.denied import Denied
from gateway.intake.quota import Book, Limits, enter, leave

SLOTS = 4096
"""Callers with limits that there can be."""
_WORD_BYTES = 8


class Quotas:
    """All accounts as one process sees them."""

    def __init__(self, *, path: Path | None = None, worker: int = 0, workers: int = 1) -> None:
        """With a `path` the accounts are shared with the other workers; this one's counts begin at 0."""
        self._worker = worker
        self._row_words = 2 + workers
        size_bytes = SLOTS * self._row_words * _WORD_BYTES
        if path is None:
            memory = memoryview(bytearray(size_bytes))
        else:
            with path.open("a+b") as file:
                file.truncate(size_bytes)
                memory = memoryview(mmap.mmap(file.fileno(), size_bytes))
        self._hashes = memory.cast("Q")
        self._times_s = memory.cast("d")
        self._counts = memory.cast("q")
        self._books: dict[str, Book] = {}
        for row in range(SLOTS):
            self._counts[row * self._row_words + 2 + worker] = 0

    def enter(self, caller: Caller, now_s: float) -> None:
        """Counts a request of the caller in. Raises Denied when a limit is reached."""
        if not _limited(caller.limits):
            return
        verdict = enter(self._book(caller.name), caller.limits, self._worker, now_s)
        if verdict is not None:
            raise Denied(
                Denial.RATE_LIMITED,
                f"key {caller.name!r} has reached its limit: {verdict.reason}; try again later",
                retry_after_s=verdict.retry_after_s,
            )

    def leave(self, caller: Caller) -> None:
        """A request of the caller that was counted in has ended."""
        if _limited(caller.limits):
            leave(self._book(caller.name), self._worker)

    def _book(self, name: str) -> Book:
        book = self._books.get(name)
        if book is None:
            word = self._row(name) * self._row_words
            book = self._books[name] = Book(
                arrival_s=self._times_s[word + 1 : word + 2], under_way=self._counts[word + 2 : word + self._row_words]
            )
        return book

    def _row(self, name: str) -> int:
        wanted = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") or 1
        for probe in range(SLOTS):
            row = (wanted + probe) % SLOTS
            found = self._hashes[row * self._row_words]
            if found in (0, wanted):
                self._hashes[row * self._row_words] = wanted
                return row
        raise Denied(Denial.RATE_LIMITED, f"more than {SLOTS} keys have limits; remove some")


def _limited(limits: Limits) -> bool:
    return bool(limits.requests_per_s or limits.max_concurrent)

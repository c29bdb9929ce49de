"""Quotas: the accounts of all callers with limits, in memory that worker processes can share.

Layout of the memory: SLOTS rows of eight-byte words: the first eight bytes of the SHA-256 of the caller's name, the
theoretical arrival time (double), then one count per worker. A row is found by probing from the hash. Two workers may
read the same time before either writes: a limit can then be passed by one request, never by more per worker.
"""

from __future__ import annotations

import hashlib

from gateway.core.outcomes import Denial
from gateway.intake.caller_account import CallerAccount, CallerLimits, enter, leave
from gateway.intake.callers import Caller
from gateway.intake.denied import Denied

SLOTS = 4096
"""Callers with limits that there can be."""
_WORD_BYTES = 8


class Quotas:
    """All accounts as one process sees them."""

    def __init__(self, memory: memoryview | None = None, *, worker: int = 0, workers: int = 1) -> None:
        """`memory` of `size_bytes` is shared with the other workers (`gateway.workers.shared_quotas`); this one's
        counts begin at 0."""
        self._worker = worker
        self._row_words = 2 + workers
        if memory is None:
            memory = memoryview(bytearray(size_bytes(workers)))
        self._hashes = memory.cast("Q")
        self._times_s = memory.cast("d")
        self._counts = memory.cast("q")
        self._accounts: dict[str, CallerAccount] = {}
        for row in range(SLOTS):
            self._counts[row * self._row_words + 2 + worker] = 0

    def enter(self, caller: Caller, now_s: float) -> None:
        """Counts a request of the caller in. Raises Denied when a limit is reached."""
        if not _limited(caller.limits):
            return
        over = enter(self._account(caller.name), caller.limits, self._worker, now_s)
        if over is not None:
            raise Denied(
                Denial.RATE_LIMITED,
                f"key {caller.name!r} has reached its limit: {over.reason}; try again later",
                retry_after_s=over.retry_after_s,
            )

    def leave(self, caller: Caller) -> None:
        """A request of the caller that was counted in has ended."""
        if _limited(caller.limits):
            leave(self._account(caller.name), self._worker)

    def _account(self, name: str) -> CallerAccount:
        account = self._accounts.get(name)
        if account is None:
            word = self._row(name) * self._row_words
            account = self._accounts[name] = CallerAccount(
                arrival_s=self._times_s[word + 1 : word + 2], under_way=self._counts[word + 2 : word + self._row_words]
            )
        return account

    def _row(self, name: str) -> int:
        wanted = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") or 1
        for probe in range(SLOTS):
            row = (wanted + probe) % SLOTS
            found = self._hashes[row * self._row_words]
            if found in (0, wanted):
                self._hashes[row * self._row_words] = wanted
                return row
        raise Denied(Denial.RATE_LIMITED, f"more than {SLOTS} keys have limits; remove some")


def size_bytes(workers: int) -> int:
    """Memory that the accounts of so many workers take."""
    return SLOTS * (2 + workers) * _WORD_BYTES


def _limited(limits: CallerLimits) -> bool:
    return bool(limits.requests_per_s or limits.max_concurrent)

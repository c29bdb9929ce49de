"""Rate and concurrency limits of one caller. Pure: times come in as `now_s`, the account may lie in shared memory.

Rate is the generic cell rate algorithm (ITU-T I.371): one number per caller, the theoretical arrival time of the next
request, so that a limit can be shared by processes through eight bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

import msgspec

Number = TypeVar("Number", int, float)


class CallerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Rate and concurrency limits of one caller; 0 means none."""

    requests_per_s: float = 0.0
    burst: int = 1
    """Requests that may come at once after a pause (a count); >= 1."""
    max_concurrent: int = 0
    """Requests under way at the same time (a count)."""

    def __post_init__(self) -> None:
        if not 0 <= self.requests_per_s < float("inf"):
            raise ValueError(f"requests_per_s must be >= 0, got {self.requests_per_s}")
        if self.burst < 1:
            raise ValueError(f"burst must be >= 1, got {self.burst}")
        if self.max_concurrent < 0:
            raise ValueError(f"max_concurrent must be >= 0, got {self.max_concurrent}")


class Cells(Protocol[Number]):
    """A row of numbers: as much of a list, or of shared memory, as an account needs."""

    def __getitem__(self, index: int, /) -> Number: ...

    def __setitem__(self, index: int, value: Number, /) -> None: ...

    def __iter__(self) -> Iterator[Number]: ...


class CallerAccount(msgspec.Struct):
    """One caller's account. The sequences may lie in shared memory."""

    arrival_s: Cells[float]
    """One number: the theoretical arrival time, in seconds."""
    under_way: Cells[int]
    """Requests under way, per process."""


class OverLimit(msgspec.Struct, frozen=True):
    """Why a request may not come now."""

    reason: str
    retry_after_s: float


def enter(account: CallerAccount, limits: CallerLimits, process: int, now_s: float) -> OverLimit | None:
    """Counts a request in, or says why not; nothing has changed then."""
    if limits.max_concurrent and (running := sum(account.under_way)) >= limits.max_concurrent:
        return OverLimit(f"{running} of its requests run, the limit is {limits.max_concurrent}", 1.0)
    if limits.requests_per_s:
        interval_s = 1.0 / limits.requests_per_s
        due_s = max(account.arrival_s[0], now_s)
        early_s = due_s - now_s - (limits.burst - 1) * interval_s
        # A nanosecond for the rounding of sums: the tenth request of a second must pass at 10/s.
        if early_s > 1e-9:
            return OverLimit(f"the limit is {limits.requests_per_s:g} requests/s (bursts of {limits.burst})", early_s)
        account.arrival_s[0] = due_s + interval_s
    account.under_way[process] += 1
    return None


def leave(account: CallerAccount, process: int) -> None:
    """A request that was counted in has ended."""
    account.under_way[process] -= 1

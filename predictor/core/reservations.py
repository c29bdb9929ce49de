"""Requests that were dispatched to the node and are not yet in its trace. Pure.

Each is counted exactly once: from `reserve` until it shows up in the trace, is released, or expires.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from simcore.types import Candidate


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """One request on its way."""

    candidate: Candidate
    reserved_s: float
    expires_s: float
    sent: bool
    """Whether the engine has it already; else others will bring it."""


class Reservations:
    """The reservations of one node, in order of dispatch. Not thread-safe; one owner."""

    def __init__(self) -> None:
        self.version = 0
        """Grows with every change."""
        self._held: dict[str, Reservation] = {}

    def reserve(self, candidate: Candidate, *, now_s: float, ttl_s: float, sent: bool = False) -> None:
        """Counts the candidate from now. A second reservation of the same id replaces the first."""
        self._held[candidate.request_id] = Reservation(
            candidate=candidate, reserved_s=now_s, expires_s=now_s + ttl_s, sent=sent
        )
        self.version += 1

    def drop(self, request_id: str) -> bool:
        """It was released or has shown up in the trace. False if it was not held."""
        if self._held.pop(request_id, None) is None:
            return False
        self.version += 1
        return True

    def drop_all(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self.drop(request_id)

    def expire(self, now_s: float) -> list[str]:
        """Drops what has waited longer than its time to live; the ids, in order of dispatch."""
        late = [i for i, r in self._held.items() if r.expires_s <= now_s]
        self.drop_all(late)
        return late

    def held(self) -> list[Reservation]:
        """In order of dispatch."""
        return list(self._held.values())

    def candidates(self) -> list[Candidate]:
        """In order of dispatch."""
        return [r.candidate for r in self._held.values()]

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held

    def __len__(self) -> int:
        return len(self._held)

"""Idempotency keys: which running request has which key. Workers share theirs (`gateway.workers.shared_claims`)."""

from __future__ import annotations

from typing import Protocol

from gateway.core.outcomes import Denial
from gateway.intake.denied import Denied


class Claims(Protocol):
    """Who runs the request of a key."""

    def claim(self, key: str, request_id: str) -> None:
        """Takes the key for a request. Raises Denied when a running request has it."""

    def release(self, key: str) -> None:
        """Gives it back."""


class OwnClaims:
    """The claims of one process."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    def claim(self, key: str, request_id: str) -> None:
        if key in self._keys:
            raise taken(key, self._keys[key])
        self._keys[key] = request_id

    def release(self, key: str) -> None:
        self._keys.pop(key, None)


def taken(key: str, request_id: str) -> Denied:
    """What a second request with the key is told."""
    name = key.partition(":")[2]
    return Denied(
        Denial.DUPLICATE,
        f"idempotency_key {name!r} is that of the running request {request_id!r}; wait for its end",
        param="idempotency_key",
    )

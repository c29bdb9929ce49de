"""How a request can end (`simcore.types.Outcome`), mapped once to gRPC and HTTP. Pure.

*We are full* (overloaded), *nobody is there* (no_node), *the engine failed*, *the client left* are never mixed up.
"""

from __future__ import annotations

from typing import NamedTuple

from simcore.types import Outcome


class Codes(NamedTuple):
    grpc: int
    """Number of `grpc.StatusCode`."""
    http: int


CODES: dict[Outcome, Codes] = {
    Outcome.STOP: Codes(0, 200),
    Outcome.LENGTH: Codes(0, 200),
    Outcome.CLIENT_LEFT: Codes(1, 499),
    Outcome.CANCELLED: Codes(1, 499),
    Outcome.DEADLINE: Codes(4, 504),
    Outcome.INVALID: Codes(3, 400),
    Outcome.NO_NODE: Codes(14, 503),
    Outcome.OVERLOADED: Codes(8, 429),
    Outcome.ENGINE_FAILED: Codes(13, 502),
    Outcome.NODE_LOST: Codes(14, 502),
    Outcome.INTERNAL: Codes(13, 500),
}
"""gRPC: 0 OK, 1 CANCELLED, 3 INVALID_ARGUMENT, 4 DEADLINE_EXCEEDED, 8 RESOURCE_EXHAUSTED, 13 INTERNAL,
14 UNAVAILABLE."""

COMPLETE = frozenset({Outcome.STOP, Outcome.LENGTH})
"""Outcomes with a whole answer."""

"""How a request can end (`simcore.types.Outcome`) and why it may not even begin, mapped once to gRPC and HTTP. Pure.

*We are full* (overloaded), *nobody is there* (no_node), *the engine failed*, *the client left* are never mixed up.
Metric labels and log fields are the values of the enums.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from simcore.types import Outcome


class Codes(NamedTuple):
    """What one ending is called elsewhere."""

    grpc: int
    """Number of `grpc.StatusCode`."""
    http: int
    error_type: str
    """`error.type` of OpenAI's error shape."""
    text: str
    """For people, when nobody has said more."""


CODES: dict[Outcome, Codes] = {
    Outcome.STOP: Codes(0, 200, "", ""),
    Outcome.LENGTH: Codes(0, 200, "", ""),
    Outcome.CLIENT_LEFT: Codes(1, 499, "client_error", "the client left"),
    Outcome.CANCELLED: Codes(1, 499, "client_error", "the request was cancelled"),
    Outcome.CLIENT_SLOW: Codes(8, 499, "client_error", "the client reads too slowly"),
    Outcome.DEADLINE: Codes(4, 504, "timeout_error", "the deadline passed"),
    Outcome.INVALID: Codes(3, 400, "invalid_request_error", "the request is not valid"),
    Outcome.NO_NODE: Codes(14, 503, "service_unavailable_error", "no node can serve the request"),
    Outcome.OVERLOADED: Codes(8, 429, "overloaded_error", "the system is full; try again later"),
    Outcome.ENGINE_FAILED: Codes(13, 502, "engine_error", "the engine failed"),
    Outcome.NODE_LOST: Codes(14, 502, "engine_error", "the node went away during the request"),
    Outcome.INTERNAL: Codes(13, 500, "server_error", "a defect of the gateway; its log says more"),
}
"""gRPC: 0 OK, 1 CANCELLED, 3 INVALID_ARGUMENT, 4 DEADLINE_EXCEEDED, 8 RESOURCE_EXHAUSTED, 13 INTERNAL,
14 UNAVAILABLE."""

COMPLETE = frozenset({Outcome.STOP, Outcome.LENGTH})
"""Outcomes with a whole answer."""


class Denial(enum.Enum):
    """Why a call was turned away before it became a request; a closed list."""

    INVALID = "invalid"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    DUPLICATE = "duplicate"
    UNKNOWN = "unknown"
    NOT_AS_IT_IS = "not_as_it_is"
    MODEL_NOT_FOUND = "model_not_found"
    NO_KEY = "no_key"
    FORBIDDEN = "forbidden"
    RATE_LIMITED = "rate_limited"
    SHUTTING_DOWN = "shutting_down"


DENIALS: dict[Denial, Codes] = {
    Denial.INVALID: Codes(3, 400, "invalid_request_error", "the request is not valid"),
    Denial.UNSUPPORTED: Codes(12, 400, "invalid_request_error", "this is not supported"),
    Denial.TOO_LARGE: Codes(8, 413, "invalid_request_error", "the request is too large"),
    Denial.DUPLICATE: Codes(6, 409, "invalid_request_error", "such a request is running"),
    Denial.UNKNOWN: Codes(5, 404, "invalid_request_error", "there is no such thing"),
    Denial.NOT_AS_IT_IS: Codes(9, 409, "invalid_request_error", "that cannot be done as things are"),
    Denial.MODEL_NOT_FOUND: Codes(5, 404, "invalid_request_error", "no node serves this model"),
    Denial.NO_KEY: Codes(16, 401, "authentication_error", "no valid API key"),
    Denial.FORBIDDEN: Codes(7, 403, "permission_error", "this key may not do that"),
    Denial.RATE_LIMITED: Codes(8, 429, "rate_limit_error", "the key's limit is reached"),
    Denial.SHUTTING_DOWN: Codes(14, 503, "service_unavailable_error", "the gateway is shutting down"),
}
"""gRPC as above, and 5 NOT_FOUND, 6 ALREADY_EXISTS, 7 PERMISSION_DENIED, 9 FAILED_PRECONDITION,
12 UNIMPLEMENTED, 16 UNAUTHENTICATED."""

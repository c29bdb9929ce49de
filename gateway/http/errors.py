"""Errors of the gateway's own in the shape of the API that was called.

Three shapes: OpenAI's; Anthropic's for `/v1/messages` and what is below it; vLLM's own for the paths that OpenAI does
not have (scores, ranks, pooling, tokens), with the status in the place of OpenAI's code.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Literal

import orjson

from gateway.core.outcomes import CODES, DENIALS, Codes, Denial
from simcore.types import Outcome

Shape = Literal["openai", "anthropic", "vllm"]

_ANTHROPIC = "/v1/messages"
_RESPONSES = "/v1/responses"
_VLLM = frozenset(
    {
        "/pooling",
        "/classify",
        "/score",
        "/v1/score",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/tokenize",
        "/detokenize",
        "/version",
        "/inference/v1/generate",
        "/v1/systemone",
        "/generative_scoring",
    }
)
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""By status; any other is an `api_error`. https://docs.anthropic.com/en/api/errors"""
_VLLM_TYPES = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}
"""By status; of others the reason phrase, as its server does."""
DEFECT = CODES[Outcome.INTERNAL]


def shape_of(path: str) -> Shape:
    if path == _ANTHROPIC or path.startswith(f"{_ANTHROPIC}/"):
        return "anthropic"
    return "vllm" if path in _VLLM else "openai"


def error_json(why: Outcome | Denial, detail: str, param: str = "") -> bytes:
    """In OpenAI's shape; `code` is the outcome's or denial's label."""
    codes = _codes(why)
    return _openai(codes.error_type, detail or codes.text, param, why.value)


def error_body(path: str, why: Outcome | Denial, detail: str, param: str = "") -> bytes:
    """For a call to that path."""
    codes = _codes(why)
    return plain_error(path, codes.http, detail or codes.text, kind=codes.error_type, param=param, code=why.value)


def plain_error(
    path: str, status: int, message: str, *, kind: str = "invalid_request_error", param: str = "", code: str = ""
) -> bytes:
    """For a call to that path which is answered with `status`; `kind` and `code` are OpenAI's."""
    match shape_of(path):
        case "anthropic":
            name = "overloaded_error" if kind == "overloaded_error" else _ANTHROPIC_TYPES.get(status, "api_error")
            return orjson.dumps({"type": "error", "error": {"type": name, "message": _said(message)}})
        case "vllm":
            name = _VLLM_TYPES.get(status) or _phrase(status)
            error = {"message": _said(message), "type": name, "param": _said(param) or None, "code": status}
            return orjson.dumps({"error": error})
        case "openai":
            return _openai(kind, message, param, code)


def error_event(path: str, outcome: Outcome, detail: str) -> bytes:
    """The event by which a stream that has begun tells that it is not whole."""
    if shape_of(path) == "anthropic":
        return b"event: error\ndata: %b\n\n" % error_body(path, outcome, detail)
    if path == _RESPONSES or path.startswith(f"{_RESPONSES}/"):
        said: dict[str, Any] = {"type": "error", "code": outcome.value, "param": None}
        said["message"] = _said(detail) or CODES[outcome].text
        return b"event: error\ndata: %b\n\n" % orjson.dumps(said)
    return b"data: %b\n\n" % error_json(outcome, detail)


def _openai(kind: str, message: str, param: str, code: str) -> bytes:
    error = {"message": _said(message), "type": kind, "param": _said(param) or None, "code": code or None}
    return orjson.dumps({"error": error})


def _said(text: str) -> str:
    """What of a client's own words can be written as JSON: halves of characters cannot."""
    return text if text.isascii() else text.encode("utf-8", errors="replace").decode()


def _codes(why: Outcome | Denial) -> Codes:
    return CODES[why] if isinstance(why, Outcome) else DENIALS[why]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request" if status == 499 else "Error"

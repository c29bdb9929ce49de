"""What is wrong with a call, in the words and shapes of vLLM's server."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A call that is answered with an error. `param`: the field at fault; None: none in particular."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> dict[str, Any]:
        """As OpenAI's APIs have it."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return {"error": error}

    def anthropic_body(self) -> dict[str, Any]:
        """As Anthropic's API has it."""
        return {"type": "error", "error": {"type": self.kind, "message": self.message}}


def invalid(message: str, param: str | None = None, *, kind: str = "value_error") -> ApiError:
    """A body that is not of the right form."""
    said = f"Value error, {message}" if kind == "value_error" else message
    entry = {"type": kind, "loc": param if param and param.startswith("body") else "body", "msg": said}
    return ApiError(f"1 validation error:\n  {entry}", kind="Bad Request", param=param)


def refused(message: str, param: str, value: object = None) -> ApiError:
    """Fields that are well formed and cannot be followed; `value`: the one at fault."""
    what = f"parameter={param}" if value is None else f"parameter={param}, value={value}"
    return ApiError(f"{message} ({what})", param=param)


def unknown_model(name: str) -> ApiError:
    """A model that is not served here."""
    return ApiError(f"The model `{name}` does not exist.", status=404, kind="NotFoundError", param="model")

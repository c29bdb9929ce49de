"""A call that is turned away before it is a request of the router's."""

from __future__ import annotations

from gateway.core.outcomes import Denial


class Denied(Exception):
    """The call is turned away. The message is for people; `param` names the field at fault, if one is."""

    def __init__(self, denial: Denial, message: str, *, param: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.denial = denial
        self.param = param
        self.retry_after_s = retry_after_s


def invalid(message: str, *, param: str = "") -> Denied:
    return Denied(Denial.INVALID, message, param=param)

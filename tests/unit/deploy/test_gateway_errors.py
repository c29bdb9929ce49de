"""What commands say of calls that failed."""

from __future__ import annotations

import grpc
import pytest

from deploy.gateway_client import explain


class _Failed:
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


LATE = _Failed(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")


def test_who_gave_a_deadline_is_told_that_it_was_theirs() -> None:
    assert "within 0.1 s; give it longer with --deadline-s" in explain(LATE, "gw:8200", 0.1)
    assert explain(LATE, "gw:8200") == "the gateway at gw:8200 did not answer in time"


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ("DNS resolution failed for foo:8200", "no host of that name: foo"),
        ("failed to connect to all addresses", "no gateway answers at foo"),
        ("Socket closed", "its gRPC port, HTTP's is another"),
    ],
)
def test_a_name_a_port_and_a_gateway_that_are_not_there_are_told_apart(details: str, said: str) -> None:
    assert said in explain(_Failed(grpc.StatusCode.UNAVAILABLE, details), "foo")

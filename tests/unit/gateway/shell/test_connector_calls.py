from __future__ import annotations

import asyncio

import pytest

from gateway.scale import calls
from gateway.scale.calls import patiently
from gateway.scale.connectors.base import ConnectorError


class Flaky:
    """Fails so many times, then answers."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.left, self.error, self.calls = failures, error, 0

    async def call(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "done"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_PAUSE_S", 0.0)


async def test_a_call_that_fails_is_tried_again() -> None:
    flaky = Flaky(2, ConnectorError("not yet"))
    assert await patiently(flaky.call, limit_s=5.0, tries=3) == "done"
    assert flaky.calls == 3


@pytest.mark.parametrize(
    ("error", "says"), [(ConnectorError("quota exceeded"), "quota exceeded"), (KeyError("x"), "KeyError: 'x'")]
)
async def test_the_last_reason_is_told(error: Exception, says: str) -> None:
    flaky = Flaky(9, error)
    with pytest.raises(ConnectorError, match=says):
        await patiently(flaky.call, limit_s=5.0, tries=2)
    assert flaky.calls == 2


async def test_a_call_without_an_answer_ends() -> None:
    with pytest.raises(ConnectorError, match=r"no answer within 0\.01 s"):
        await patiently(lambda: asyncio.sleep(60), limit_s=0.01, tries=2)

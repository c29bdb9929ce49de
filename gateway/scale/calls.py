"""A connector's calls with a time limit, tried again with growing pauses. Shell."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.scale.connectors.base import ConnectorError

T = TypeVar("T")

FIRST_PAUSE_S = 0.5


async def patiently(call: Callable[[], Awaitable[T]], *, limit_s: float, tries: int) -> T:
    """What the call gives. Raises ConnectorError with the last try's reason."""
    pause_s = FIRST_PAUSE_S
    for left in reversed(range(tries)):
        try:
            async with asyncio.timeout(limit_s):
                return await call()
        except TimeoutError:
            reason = f"no answer within {limit_s:g} s"
        except ConnectorError as bad:
            reason = str(bad)
        except Exception as defect:
            reason = f"{type(defect).__name__}: {defect}"
        if left:
            await asyncio.sleep(pause_s)
            pause_s *= 2
    raise ConnectorError(reason)

"""The latest lines of this process's log, as they were written."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import MutableMapping
from typing import Any

KEPT = 400
"""Lines."""


class LogTail:
    """A processor of structlog that keeps what passes. Lines may come from any thread."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lines: deque[tuple[int, MutableMapping[str, Any]]] = deque(maxlen=KEPT)

    def __call__(self, _logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        self._lines.append((next(self._numbers), line))
        return line

    def since(self, number: int) -> tuple[int, list[MutableMapping[str, Any]]]:
        """The number of the last line, and the lines after `number` that are still kept."""
        lines = list(self._lines)
        fresh = [line for n, line in lines if n > number]
        return (lines[-1][0] if lines else number), fresh

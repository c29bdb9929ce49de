"""The latest lines of this process's log, as they were written."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import MutableMapping
from typing import Any, TypeAlias

Line: TypeAlias = MutableMapping[str, Any]
KEPT = 400
"""Lines."""
MOST_NEW = 100
"""Lines that are told at one look: more cannot be read in a second."""


class LogTail:
    """A processor of structlog that keeps what passes. Lines may come from any thread."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lines: deque[tuple[int, Line]] = deque(maxlen=KEPT)

    def __call__(self, _logger: Any, _method: str, line: Line) -> Line:
        self._lines.append((next(self._numbers), line))
        return line

    def since(self, number: int) -> tuple[int, list[Line]]:
        """The number of the last line, and the lines after `number` that are still kept."""
        lines = list(self._lines)
        fresh = [line for n, line in lines if n > number]
        return (lines[-1][0] if lines else number), fresh

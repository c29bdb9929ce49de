"""Optional parts of libraries that a daemon does not load. Shell code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Meanwhile the module is taken not to be installed, unless it is loaded already: for libraries that load it merely
    because it is there."""
    blocked = name not in sys.modules
    if blocked:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if blocked:
            del sys.modules[name]

"""Nodes and what-ifs whose kernels Python runs, in a process that has them compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

from simcore import lookahead, node, tracing
from simcore.compiled.entry import ENTRIES, Entries
from simcore.interpreted import interpreted

INTERPRETED = Entries(*map(interpreted, ENTRIES))


@contextlib.contextmanager
def by_python() -> Iterator[None]:
    """Meanwhile no kernel is run compiled that a node or a what-if calls."""
    with contextlib.ExitStack() as patches:
        for module in (node, lookahead, tracing):
            patches.enter_context(patch.object(module, "ENTRIES", INTERPRETED))
        yield

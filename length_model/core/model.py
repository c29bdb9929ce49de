"""The Protocol of a length model. Pure.

A model answers with one probability per bucket; everything else (mean, quantiles, what remains, atoms) follows in
`distribution`. Models are immutable, never fail on a query, and may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from length_model.core.distribution import Floats, Ints
from length_model.core.query import LengthQuery


class LengthModel(Protocol):
    """Prompt in, distribution of the answer's length out."""

    @property
    def name(self) -> str: ...

    edges: Ints
    """Bucket edges in tokens, [K + 1]."""
    sha256: str
    """Content hash of its artefact; empty without one."""

    def pmf(self, queries: Sequence[LengthQuery]) -> Floats:
        """[n, K]: one row per query, each summing to one. Takes any text: empty, huge, binary."""

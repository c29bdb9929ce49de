"""Length beliefs of the requests on a node as the arrays that compiled code draws scenarios from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simcore.compiled.layout import Ints
from simcore.scenarios import permutation
from simcore.types import LengthBelief


class BeliefTable:
    """One row per request: `atoms[row]` = (number of atoms, longest output, atoms ascending...), `strata[row]`.

    Rows are kept while the same requests come back with the same belief objects, so that asking again costs a look-up.
    """

    def __init__(self, scenarios: int) -> None:
        self.scenarios = scenarios
        self.atoms: Ints = np.zeros((64, 34), dtype=np.int64)
        self.strata: Ints = np.zeros((64, scenarios), dtype=np.int64)
        self._rows: dict[str, tuple[LengthBelief, int, int]] = {}
        self._next = 0

    def rows(self, request_ids: Sequence[str], beliefs: Sequence[LengthBelief], longest: Sequence[int]) -> list[int]:
        """The row of each request; `longest[i]` is the most output tokens the engine can give it."""
        if self._next + len(request_ids) > len(self.atoms):
            self._make_room(len(request_ids))
        known = self._rows
        rows: list[int] = []
        for request_id, belief, most in zip(request_ids, beliefs, longest, strict=True):
            entry = known.get(request_id)
            if entry is None or entry[0] is not belief or entry[1] != most:
                entry = (belief, most, self._fill(request_id, belief, most))
                known[request_id] = entry
            rows.append(entry[2])
        return rows

    def _fill(self, request_id: str, belief: LengthBelief, most: int) -> int:
        row = self._next
        self._next += 1
        n = len(belief.atoms_tokens)
        if n + 2 > self.atoms.shape[1]:
            wider = np.zeros((len(self.atoms), 2 * (n + 2)), dtype=np.int64)
            wider[:, : self.atoms.shape[1]] = self.atoms
            self.atoms = wider
        self.atoms[row, : n + 2] = (n, most, *belief.atoms_tokens)
        if n > 1:
            self.strata[row] = permutation(request_id, self.scenarios)
        return row

    def _make_room(self, wanted: int) -> None:
        self._rows.clear()
        self._next = 0
        if 2 * wanted > len(self.atoms):
            self.atoms = np.zeros((4 * wanted, self.atoms.shape[1]), dtype=np.int64)
            self.strata = np.zeros((4 * wanted, self.scenarios), dtype=np.int64)

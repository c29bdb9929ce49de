"""Length beliefs of the requests on a node as the arrays that compiled code draws scenarios from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from simcore.compiled.layout import Ints
from simcore.scenarios import longest_output, permutation
from simcore.types import EngineConfig, LengthBelief


class BeliefTable:
    """One row per request: `atoms[row]` = (number of atoms, longest output, atoms ascending...), `strata[row]`.

    A row is kept while its request comes back with the same belief, so that asking again costs a look-up.
    """

    def __init__(self, config: EngineConfig, scenarios: int) -> None:
        self.scenarios = scenarios
        self.atoms: Ints = np.zeros((64, 34), dtype=np.int64)
        self.strata: Ints = np.zeros((64, scenarios), dtype=np.int64)
        self._config = config
        self._rows: dict[str, tuple[LengthBelief, int, int, int]] = {}
        self._next = 0
        self.generation = 0
        """Grows when all rows are forgotten."""

    def rows(self, requests: Iterable[tuple[str, LengthBelief, int, int]], most: int) -> list[int]:
        """The row of each (request id, belief, prompt tokens, max output tokens); `most` is how many there can be.

        Raises ValueError for a prompt that the engine cannot hold.
        """
        if self._next + most > len(self.atoms):
            self._make_room(most)
        known = self._rows
        rows: list[int] = []
        for request_id, belief, prompt_tokens, max_output_tokens in requests:
            entry = known.get(request_id)
            if (
                entry is None
                or (entry[0] is not belief and entry[0] != belief)
                or entry[1] != prompt_tokens
                or entry[2] != max_output_tokens
            ):
                longest = longest_output(self._config, prompt_tokens, max_output_tokens)
                entry = (belief, prompt_tokens, max_output_tokens, self._fill(request_id, belief, longest))
                known[request_id] = entry
            rows.append(entry[3])
        return rows

    def _fill(self, request_id: str, belief: LengthBelief, longest: int) -> int:
        row = self._next
        self._next += 1
        n = len(belief.atoms_tokens)
        if n + 2 > self.atoms.shape[1]:
            wider = np.zeros((len(self.atoms), 2 * (n + 2)), dtype=np.int64)
            wider[:, : self.atoms.shape[1]] = self.atoms
            self.atoms = wider
        self.atoms[row, : n + 2] = (n, longest, *belief.atoms_tokens)
        if n > 1:
            self.strata[row] = permutation(request_id, self.scenarios)
        return row

    def _make_room(self, wanted: int) -> None:
        """Forgets all rows; with room for several times what is wanted this is rare."""
        self._rows.clear()
        self._next = 0
        self.generation += 1
        if 4 * wanted > len(self.atoms):
            self.atoms = np.zeros((8 * wanted, self.atoms.shape[1]), dtype=np.int64)
            self.strata = np.zeros((8 * wanted, self.scenarios), dtype=np.int64)

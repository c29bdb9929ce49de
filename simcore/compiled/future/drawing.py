"""Draws of how long each answer is in each scenario."""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.compiled.layout import Ints
from simcore.kernel_cache import kernel
from simcore.scenarios import OVERDUE_TOKENS


@kernel
def draw_finals(req: Ints, slots: int, atoms: Ints, strata: Ints, rows: Ints, scenarios: int, finals: Ints) -> int:
    """Fills `finals[s, slot]`: total output tokens of each slot in each scenario, given what it has produced.

    `atoms[row]` is (number of atoms, longest output allowed, atoms ascending...), `strata[row]` the permutation,
    `rows[slot]` the row of a slot. Same rule as `simcore.scenarios.final_lengths`. Returns how many scenarios there
    are: 1 when every length is known.
    """
    known = True
    for slot in range(slots):
        row = rows[slot]
        known = known and atoms[row, 2] == atoms[row, 1 + atoms[row, 0]]
    if known:
        scenarios = 1
    for slot in range(slots):
        row = rows[slot]
        n = atoms[row, 0]
        out = req[slot, at.OUT]
        ceiling = max(atoms[row, 1], out + 1)
        gone = 0
        while gone < n and atoms[row, 2 + gone] <= out:
            gone += 1
        left = n - gone
        for s in range(scenarios):
            if left == 0:
                final = out + OVERDUE_TOKENS
            elif known:
                final = atoms[row, 2 + gone]
            else:
                final = atoms[row, 2 + gone + (2 * strata[row, s] + 1) * left // (2 * scenarios)]
            finals[s, slot] = min(ceiling, final)
    return scenarios

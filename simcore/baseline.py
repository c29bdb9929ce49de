"""Reuse of a baseline: whether a simulated node has done since a forecast just what had been forecast. Pure.

Then the future without a candidate, computed for that forecast, still holds and need not be computed again: with known
lengths a node that nobody joins and nobody leaves early does what its simulation does.
"""

from __future__ import annotations

from simcore.compiled.layout import FIRST_ENDED, N_ENDED, Floats, Ints
from simcore.node import SimNode

SAME_MOMENT_S = 1e-6
"""Ends are summed up in another order than the engine does it; steps take milliseconds."""


class Baseline:
    """A node as it stood when the future without a candidate was computed."""

    def __init__(self, node: SimNode, slots: Ints, now_s: float) -> None:
        """`slots`: the node's own, of each request of the base state, in its order."""
        self.node = node
        self.now_s = now_s
        self.preempted = node.preemptions_total
        self._ids = [node.ids[slot] for slot in slots.tolist()]
        self._interventions = node.interventions
        self._finished = node.membership - node.interventions
        self._gone = 0

    def still_holds(self, ends: Floats, ended: Ints, first_start_s: float) -> bool:
        """Nobody has come, been aborted, ended early or stayed on, and one more could not have started yet.

        `ends` and `ended` as `running.run` leaves them, `first_start_s` when it kept a checkpoint, in seconds after
        `now_s`.
        """
        node = self.node
        now_s = node.free_at_s - self.now_s
        if node.interventions != self._interventions or first_start_s < now_s - SAME_MOMENT_S:
            return False
        until_s = now_s + SAME_MOMENT_S
        while self._gone < ended[N_ENDED] and ends[slot := ended[FIRST_ENDED + self._gone]] <= until_s:
            if self._ids[slot] in node.requests:
                return False
            self._gone += 1
        return node.membership - node.interventions - self._finished == self._gone

    def move_on(self, now_s: float) -> tuple[float, int]:
        """Moves the origin of all times to `now_s`. Returns the seconds gone since, and the preemptions."""
        later_s, self.now_s = now_s - self.now_s, now_s
        preempted, self.preempted = self.preempted, self.node.preemptions_total
        return later_s, self.preempted - preempted

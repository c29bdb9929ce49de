"""Changes that must have been asked for without a break: how Ray Serve and SkyServe delay. Pure."""

from __future__ import annotations


class Delayed:
    """Lets a change through when every decision for so long has asked for one in the same direction."""

    def __init__(self, *, up_s: float, down_s: float) -> None:
        self._delay_s = {1: up_s, -1: down_s}
        self._direction = 0
        self._since_s = 0.0

    def settle(self, nodes: int, asked: int, now_s: float) -> int:
        """From so many nodes, with so many asked for: how many there may be."""
        direction = (asked > nodes) - (asked < nodes)
        if direction != self._direction:
            self._direction, self._since_s = direction, now_s
        if direction and now_s - self._since_s >= self._delay_s[direction]:
            self._direction = 0
            return asked
        return nodes

"""Starts nodes again that have died, as a service manager would."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

FIRST_WAIT_S = 2.0
"""Long enough to see in `astrolabe nodes` that it is down."""
LONGEST_WAIT_S = 60.0


class KeptProcess(Protocol):
    """What is kept alive."""

    name: str

    def exit_code(self) -> int | None:
        """None while it runs; below zero: minus the signal that killed it."""

    def start(self) -> None:
        """Starts it again, on the address it had."""

    def is_ready(self) -> bool:
        """Whether it serves. Only of one that runs."""

    def last_words(self) -> str:
        """The end of its log."""


class NodeKeeper:
    """Looks after nodes that all serve now. One that dies starts again after a wait, which doubles as long as it does
    not come to serve; one that ended with 0 was asked to and stays out."""

    def __init__(self, nodes: Iterable[KeptProcess], say: Callable[[str], None]) -> None:
        self._nodes = [_Kept(node) for node in nodes]
        self._say = say

    def look(self, now_s: float) -> None:
        """Says what has ended, and starts what is due. `now_s` on the monotonic clock."""
        for kept in self._nodes:
            if kept.out:
                continue
            if kept.due_s is not None:
                if now_s >= kept.due_s:
                    kept.due_s = None
                    kept.node.start()
                continue
            code = kept.node.exit_code()
            if code is not None:
                self._ended(kept, code, now_s)
            elif not kept.serves and kept.node.is_ready():
                kept.serves, kept.wait_s = True, FIRST_WAIT_S
                self._say(f"{kept.node.name} serves again")

    def _ended(self, kept: _Kept, code: int, now_s: float) -> None:
        name = kept.node.name
        if code == 0:
            kept.out = True
            self._say(f"{name} was asked to end, and stays out")
            return
        again = f"{name} {how_ended(code)}; it starts again in {kept.wait_s:g} s"
        # Who was killed has said nothing of it.
        self._say(again if code < 0 else f"{kept.node.last_words()}\n{again}")
        kept.serves = False
        kept.due_s = now_s + kept.wait_s
        kept.wait_s = min(LONGEST_WAIT_S, 2.0 * kept.wait_s)


class _Kept:
    def __init__(self, node: KeptProcess) -> None:
        self.node = node
        self.serves = True
        self.out = False
        self.due_s: float | None = None
        """When it starts again."""
        self.wait_s = FIRST_WAIT_S
        """Before the next start."""


def how_ended(code: int) -> str:
    """What an exit code says."""
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

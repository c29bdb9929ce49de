"""Whether a node is to leave: told by any gateway, kept by the node itself, so that all of them agree. Pure.

    serving ── retire ─► retiring ── the last request ends ─► left
       ▲                    │
       └────── undo ────────┘

A node that retires takes nothing new from anybody and finishes what it has. Once it is empty it has left, and nothing
brings it back but a new start of its daemon: whoever leads may have given the order to stop it the moment it said that
it was empty, and such an order can be under way for long, after its giver has died even. So a stop never meets a
request.
"""

from __future__ import annotations


class Leaving:
    """A node's word on whether it leaves."""

    def __init__(self) -> None:
        self.retiring = False
        """It takes nothing new."""
        self.has_left = False
        """And has nothing any more."""

    def retire(self, *, is_empty: bool) -> bool:
        """It is to leave; whether that is news."""
        is_news = not self.retiring
        self.retiring = True
        return self.look(is_empty=is_empty) or is_news

    def undo(self, *, is_empty: bool) -> bool:
        """It is to stay after all; whether it does, and did not before. One that is empty has left and stays so."""
        self.look(is_empty=is_empty)
        if not self.retiring or self.has_left:
            return False
        self.retiring = False
        return True

    def look(self, *, is_empty: bool) -> bool:
        """What it has may have changed; whether it has left by that."""
        if not self.retiring or self.has_left or not is_empty:
            return False
        self.has_left = True
        return True

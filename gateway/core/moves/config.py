"""When requests move between nodes: the numbers, each with the reason for its default. Pure data."""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec


class TransferConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How long engines take that fetch KV from each other."""

    fixed_s: float = 0.028
    """A transfer of next to nothing."""
    s_per_1000_tokens: float = 0.0106
    """What each thousand tokens add."""
    overlap: bool = True
    """The source goes on decoding meanwhile; otherwise it stops first, which is how others copy."""

    def __post_init__(self) -> None:
        for name in ("fixed_s", "s_per_1000_tokens"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"moves.transfer.{name} must be >= 0 and finite, got {getattr(self, name)}")

    def seconds(self, tokens: int) -> float:
        """Of one transfer alone."""
        return self.fixed_s + self.s_per_1000_tokens * tokens / 1000


class MovesConfig(msgspec.Struct, frozen=True, kw_only=True):
    """When requests that run go on at another node."""

    rule: Annotated[str, msgspec.Meta(extra={"metavar": "NAME", "option": ""})] = "off"
    """Who says which requests move: `llumnix`, `forecast`, or `off`. Nodes that leave are emptied in any case, unless
    `empty_leaving` says no."""
    options: Annotated[dict[str, Any], msgspec.Meta(extra={"no_option": "a table, for the file"})] = {}
    """Options of the rule."""
    transfer: Annotated[TransferConfig | None, msgspec.Meta(extra={"no_option": "a table, for the file"})] = None
    """Between nodes that both say where their engines' KV can be fetched (`kv_source`), the destination fetches it from
    the source, and so fast. Not given: it computes it anew."""
    every_s: float = 0.5
    """The rule is asked so often."""
    empty_leaving: bool = True
    """A node that is drained, or that is to leave, hands over what can go on elsewhere and finds room there."""
    share: float = 0.03
    """Most of a node's time that it may spend on the KV of those that are to come from others, those of a node that
    leaves apart: what makes moves cheap to those who are there."""
    at_once: int = 2
    """Most moves from one node, and to one, that a rule may have under way."""
    at_once_leaving: int = 16
    """Most moves under way from a node that leaves."""
    rest_s: float = 10.0
    """A request that has moved stays for so long, whatever a rule says: what keeps it from going to and fro."""
    gain_s: float = 1.0
    """Least that a move must save everybody together, by the forecasts of both nodes, in seconds."""
    gain_share: float = 0.1
    """And of one that runs, as a share of what its answer still takes: forecasts err by about so much."""
    give_up_s: float = 120.0
    """A move that is not done after so long is given up: its stages do not catch up with the answer."""

    def __post_init__(self) -> None:
        for name in ("every_s", "give_up_s"):
            if not (0 < getattr(self, name) < math.inf):
                raise ValueError(f"moves.{name} must be > 0 and finite, got {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"moves.share must be above 0 and at most 1, got {self.share}")
        if self.at_once < 1 or self.at_once_leaving < 1:
            raise ValueError("moves.at_once and moves.at_once_leaving must be >= 1")
        for name in ("rest_s", "gain_s", "gain_share"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"moves.{name} must be >= 0, got {getattr(self, name)}")

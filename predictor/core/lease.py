"""The lease that a node keeps for the gateways: who of them may decide on how many nodes there are. Pure.

Every node keeps one of its own and knows nothing of the others'; a gateway leads with those of most nodes
(`gateway/core/scale/lease.py`, where the whole is argued). Durations only: no clock is compared with another machine's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

LATELY = 2.0
"""For so many times what it asks for a gateway that says nothing is taken to be there with what it had: some asks of
one that is may be late or lost, and one node too many that is left alone does no harm."""
FORGOTTEN = 10.0
"""A gateway that has not asked for so many times what it asked for is forgotten."""
LONGEST_S = 600.0
"""For which anybody may hold a lease, whatever it asks for."""


class LeaseAsk(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway says to a node."""

    gateway: str
    """Its name, of this one run of its process."""
    number: int
    """Grows with each ask of that gateway."""
    ttl_s: float
    wants: bool
    """False: it gives back what it has, and would only hear."""
    leads: bool = False
    """It holds most nodes' leases now."""
    up_nodes: Sequence[str] = ()
    """Nodes with which it has a session."""


class LeaseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the node says to that."""

    granted: bool
    holder: str
    """Who has the lease now; empty: nobody."""
    waits_s: float = 0.0
    """The node has begun so lately that it may not know what it has granted: for so long it grants to none but who
    leads already."""
    elsewhere: tuple[str, ...] = ()
    """Nodes with which other gateways have a session."""
    others: int = 0
    """How many other gateways have asked lately."""


class _Known(msgspec.Struct, kw_only=True):
    number: int
    heard_s: float
    ttl_s: float
    up_nodes: tuple[str, ...]


class LeaseKeeper:
    """The lease of one node."""

    def __init__(self, now_s: float) -> None:
        self.holder = ""
        """Who had it last; `holder_at` says whether it still has."""
        self._begun_s = now_s
        self._until_s = -math.inf
        self._gateways: dict[str, _Known] = {}

    def holder_at(self, now_s: float) -> str:
        """Who has it; empty: nobody."""
        return self.holder if now_s < self._until_s else ""

    def ask(self, ask: LeaseAsk, now_s: float) -> LeaseAnswer | None:
        """The answer; None to an ask that was overtaken by a later one, which counts for nothing."""
        ttl_s = min(ask.ttl_s, LONGEST_S)
        known = self._gateways.get(ask.gateway)
        if known is not None and ask.number <= known.number:
            return None
        self._gateways[ask.gateway] = _Known(
            number=ask.number, heard_s=now_s, ttl_s=ttl_s, up_nodes=tuple(ask.up_nodes)
        )
        holder = self.holder_at(now_s)
        waits_s = max(0.0, self._begun_s + ttl_s - now_s)
        granted = ask.wants and holder in ("", ask.gateway) and (waits_s == 0.0 or ask.leads or holder == ask.gateway)
        if granted:
            self.holder, self._until_s = ask.gateway, now_s + ttl_s
        elif holder == ask.gateway:
            self._until_s = -math.inf
        others = self._others(ask, now_s)
        return LeaseAnswer(
            granted=granted,
            holder=self.holder_at(now_s),
            waits_s=waits_s,
            elsewhere=tuple(sorted({node_id for other in others for node_id in other.up_nodes})),
            others=len(others),
        )

    def _others(self, ask: LeaseAsk, now_s: float) -> list[_Known]:
        for gateway, known in list(self._gateways.items()):
            if now_s - known.heard_s > FORGOTTEN * known.ttl_s:
                del self._gateways[gateway]
        return [
            known
            for gateway, known in self._gateways.items()
            if gateway != ask.gateway and now_s - known.heard_s <= LATELY * known.ttl_s
        ]

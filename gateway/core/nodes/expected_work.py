"""What each node is going to get from this gateway, to be told to it. Pure.

A node foresees later arrivals by those that it has had: one that has just joined or comes back has had none, and what
it has had says late that the fleet gets more. So it is told: the fleet's rate of the last `FLEET_TAU_S` or so, times
the share that went to this node of what has been sent, over `SHARE_TAU_S`, since it takes part; as far as that is less
than its memory, the share is that of its speed among the nodes of its model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gateway.core.nodes.node import Node
from simcore.types import ExpectedWork

FLEET_TAU_S = 20.0
SHARE_TAU_S = 60.0
TELL_EVERY_S = 1.0
"""Least time between two words to a node; they go with questions, so an idle gateway tells nothing."""


class _Flow:
    """What came per second, exponentially weighted: requests, tokens, squares of tokens."""

    __slots__ = ("_at_s", "_tau_s", "requests", "tokens", "tokens2")

    def __init__(self, tau_s: float) -> None:
        self._tau_s = tau_s
        self._at_s = -math.inf
        self.requests = self.tokens = self.tokens2 = 0.0

    def to(self, now_s: float) -> _Flow:
        """As of now."""
        if now_s > self._at_s:
            left = math.exp((self._at_s - now_s) / self._tau_s)
            self.requests *= left
            self.tokens *= left
            self.tokens2 *= left
            self._at_s = now_s
        return self

    def came(self, tokens: float, now_s: float) -> None:
        flow, weight = self.to(now_s), 1.0 / self._tau_s
        flow.requests += weight
        flow.tokens += weight * tokens
        flow.tokens2 += weight * tokens * tokens


class _Member:
    """One node since it takes part."""

    __slots__ = ("fleet_requests", "fleet_tokens", "sent", "since_s", "told_s")

    def __init__(self, fleet: _Flow, now_s: float) -> None:
        self.since_s = now_s
        self.fleet_requests, self.fleet_tokens = fleet.requests, fleet.tokens
        """Of the fleet, when it began to take part: that is not part of its share."""
        self.sent = _Flow(SHARE_TAU_S)
        self.told_s = -math.inf


class ExpectedSendings:
    """The account of one gateway. Not thread-safe; one owner."""

    def __init__(self) -> None:
        self._fleets: dict[str, tuple[_Flow, _Flow]] = {}
        """By model: over FLEET_TAU_S, and over SHARE_TAU_S."""
        self._members: dict[str, _Member] = {}

    def begins(self, node: Node, now_s: float) -> None:
        """The node takes requests from now on: it has joined, or comes back."""
        self._members[node.node_id] = _Member(self._fleet(node)[1].to(now_s), now_s)

    def left(self, node_id: str) -> None:
        """The node is of the fleet no more."""
        self._members.pop(node_id, None)

    def sent(self, node: Node, new_tokens: float, now_s: float) -> None:
        """A request goes to the node, with so many prompt tokens that it has not cached."""
        for flow in self._fleet(node):
            flow.came(new_tokens, now_s)
        self._member(node, now_s).sent.came(new_tokens, now_s)

    def is_due(self, node: Node, now_s: float) -> bool:
        """Whether it is time to tell the node something."""
        return now_s - self._member(node, now_s).told_s >= TELL_EVERY_S

    def tell(self, node: Node, fellows: Sequence[Node], now_s: float) -> ExpectedWork | None:
        """What the node, one of the `fellows` that serve what it serves, is told now; None: nothing was sent yet."""
        member = self._member(node, now_s)
        fleet, memory = self._fleet(node)
        fleet.to(now_s)
        if fleet.requests <= 0.0:
            return None
        member.told_s = now_s
        memory.to(now_s)
        sent = member.sent.to(now_s)
        unknown = math.exp((member.since_s - now_s) / SHARE_TAU_S)
        by_requests = _share(sent.requests, memory.requests - unknown * member.fleet_requests, unknown)
        by_tokens = _share(sent.tokens, memory.tokens - unknown * member.fleet_tokens, unknown)
        if unknown > 0.01:
            paces = [pace for fellow in fellows if (pace := fellow.pace) is not None]
            decode, prefill = [pace.decode_speed for pace in paces], [pace.prefill_speed for pace in paces]
            own = node.pace
            by_requests += unknown * _part(None if own is None else own.decode_speed, decode, len(fellows))
            by_tokens += unknown * _part(None if own is None else own.prefill_speed, prefill, len(fellows))
        return ExpectedWork(
            requests_per_s=fleet.requests * by_requests,
            new_tokens_per_s=fleet.tokens * by_tokens,
            new_tokens2_per_s=fleet.tokens2 * by_tokens,
        )

    def _member(self, node: Node, now_s: float) -> _Member:
        if node.node_id not in self._members:
            self.begins(node, now_s)
        return self._members[node.node_id]

    def _fleet(self, node: Node) -> tuple[_Flow, _Flow]:
        model = node.config.model
        if model not in self._fleets:
            self._fleets[model] = _Flow(FLEET_TAU_S), _Flow(SHARE_TAU_S)
        return self._fleets[model]


def _share(own: float, of_all: float, unknown: float) -> float:
    """The node's share of what was sent since it takes part, as far as that is its memory."""
    return (1.0 - unknown) * min(1.0, own / of_all) if of_all > 0.0 else 0.0


def _part(own: float | None, speeds: Sequence[float], fellows: int) -> float:
    """A node's speed among those of all its fellows, of whom who tells no pace is as fast as the others."""
    if own is None or not speeds:
        return 1.0 / max(1, fellows)
    return min(1.0, own * len(speeds) / (sum(speeds) * fellows))

"""What happens to requests, told to those who judge their nodes: health, pulse and trust in forecasts. Pure."""

from __future__ import annotations

from gateway.core.nodes.accuracy import judge_all
from gateway.core.nodes.node import Node
from gateway.core.nodes.pool import NodeTable
from gateway.core.outcomes import COMPLETE
from gateway.core.request.live import LiveRequest
from simcore.types import Outcome

PACE_TOKENS = 32
"""After so many tokens a stream's pace is compared with its forecast, long before it ends."""
LATE = 3.0
LATE_S = 0.5
"""A first token that takes this many times its forecast, and this much, does not speed up a slow start."""


class Watch:
    """One per router. `stall_s`: how long a node may show no sign of life while it has requests of ours."""

    def __init__(self, table: NodeTable, *, stall_s: float) -> None:
        self._table = table
        self._stall_s = stall_s
        self._unjudged = 0

    def tokens(self, live: LiveRequest, tokens: int, now_s: float) -> None:
        """Output tokens of a request came from its present node; they are counted in it already."""
        node = live.node
        assert node is not None, "tokens come from a node"
        node.pulse.tokens(now_s)
        if live.expected is not None and not live.paced:
            begun_tokens = live.output_tokens - live.resumed_tokens
            # Many at once are an answer that nobody streamed: its end tells as much.
            if begun_tokens >= PACE_TOKENS > tokens:
                live.paced = True
                node.trust.part(live.expected, now_s - live.dispatched_s, begun_tokens)
        if node.health.stalled:
            self._alive_again(node)

    def first_token(self, live: LiveRequest, now_s: float) -> None:
        """The first token of a request from its present node."""
        node, expected = live.node, live.expected
        assert node is not None, "tokens come from a node"
        took_s = now_s - live.dispatched_s
        node.delivered = True
        node.health.delivered(in_time=expected is None or took_s <= max(LATE * expected.ttft_s, LATE_S))
        self._table.health_changed(node)
        if expected is not None:
            node.trust.first_token(expected, took_s, now_s)
            self._judge()

    def ended(self, live: LiveRequest, outcome: Outcome, now_s: float) -> None:
        """Its node has ended it, well or badly, but not by failing."""
        if live.node is not None and live.expected is not None and outcome in COMPLETE:
            tokens = live.output_tokens - live.resumed_tokens
            if tokens:
                live.node.trust.ended(live.expected, now_s - live.dispatched_s, tokens)
                self._judge()

    def failed(self, node: Node, outcome: Outcome, detail: str, now_s: float) -> None:
        """A node has failed a request."""
        if outcome is Outcome.OVERLOADED:
            node.health.pushed_back(now_s)
        elif outcome in (Outcome.ENGINE_FAILED, Outcome.INTERNAL):
            node.health.failed(detail or outcome.value, now_s)
        self._table.health_changed(node)

    def suspected(self, node: Node, detail: str) -> None:
        node.health.suspicion = detail
        self._table.health_changed(node)

    def stalled(self, node: Node, now_s: float) -> str:
        """Why its requests should be taken from it; empty when they should not."""
        if node.pulse.moved_s == now_s and not node.health.stalled:
            # The note in hand has told of a step.
            return ""
        quiet_s = node.pulse.quiet_s(now_s) if node.held else 0.0
        if quiet_s > self._stall_s:
            node.health.stalled = f"its engine has given no sign of life for {quiet_s:.1f} s"
            self._table.health_changed(node)
            return f"{node.node_id} was given up: {node.health.stalled}"
        if node.health.stalled and node.pulse.quiet_s(now_s) < self._stall_s:
            self._alive_again(node)
        return ""

    def _alive_again(self, node: Node) -> None:
        node.health.start_slowly()
        self._table.health_changed(node)

    def _judge(self) -> None:
        """Judges all forecasts, so seldom that a comparison costs as much whatever the number of nodes."""
        nodes = self._table.nodes.values()
        self._unjudged += 1
        if self._unjudged * 8 >= len(nodes):
            self._unjudged = 0
            judge_all([node.trust for node in nodes])

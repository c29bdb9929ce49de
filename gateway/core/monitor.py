"""The node monitor: tells health, liveness and forecast accuracy of nodes what happens to requests. Pure."""

from __future__ import annotations

from gateway.core.nodes.accuracy import judge_all
from gateway.core.nodes.node import Node
from gateway.core.nodes.pool import NodePool
from gateway.core.outcomes import COMPLETE
from gateway.core.request.attempt import Attempt
from simcore.types import Outcome

PACE_TOKENS = 32
"""After so many tokens a stream's pace is compared with its forecast, long before it ends."""
LATE = 3.0
LATE_S = 0.5
"""A first token that takes this many times its forecast, and this much, does not speed up a slow start."""


class NodeMonitor:
    """Keeps health, liveness and forecast accuracy of one router's nodes.

    `stall_s`: how long a node may show no sign of life while it has requests of ours.
    """

    def __init__(self, pool: NodePool, *, stall_s: float) -> None:
        self._pool = pool
        self._stall_s = stall_s
        self._unjudged = 0

    def tokens(self, attempt: Attempt, tokens: int, now_s: float) -> None:
        """Output tokens came of an attempt; they are counted in it already."""
        node = attempt.node
        node.tokens_came(now_s)
        # Many tokens at once are an answer that nobody streamed: its end tells as much.
        due = not attempt.pace_compared and attempt.output_tokens >= PACE_TOKENS > tokens
        if attempt.expected is not None and due:
            attempt.pace_compared = True
            node.accuracy.part(attempt.expected, now_s - attempt.dispatched_s, attempt.output_tokens)
        if node.health.stalled:
            self._alive_again(node)

    def first_token(self, attempt: Attempt, now_s: float, *, is_timed: bool = True) -> None:
        """The first token of an attempt; unless `is_timed` it is not known when it was produced."""
        node, expected = attempt.node, attempt.expected if is_timed else None
        took_s = now_s - attempt.dispatched_s
        node.delivered = True
        node.health.delivered(in_time=expected is None or took_s <= max(LATE * expected.ttft_s, LATE_S))
        self._pool.health_changed(node)
        if expected is not None:
            node.accuracy.first_token(expected, took_s, now_s)
            self._judge()

    def ended(self, attempt: Attempt, outcome: Outcome, now_s: float) -> None:
        """Its node has ended it, well or badly, but not by failing."""
        if not attempt.output_tokens and outcome in COMPLETE and attempt.asked.lane != "tokens":
            # An answer of which no tokens can be counted is a sign of health all the same.
            attempt.node.delivered = True
            attempt.node.health.delivered(in_time=True)
            self._pool.health_changed(attempt.node)
        if attempt.expected is not None and outcome in COMPLETE and attempt.output_tokens:
            took_s = now_s - attempt.dispatched_s
            attempt.node.accuracy.ended(attempt.expected, took_s, attempt.output_tokens)
            self._judge()

    def failed(self, node: Node, outcome: Outcome, detail: str, now_s: float) -> None:
        """A node has failed a request."""
        if outcome is Outcome.OVERLOADED:
            node.health.pushed_back(now_s)
        elif outcome in (Outcome.ENGINE_FAILED, Outcome.INTERNAL):
            node.health.failed(detail or outcome.value, now_s)
        self._pool.health_changed(node)

    def suspected(self, node: Node, detail: str) -> None:
        node.health.suspicion = detail
        self._pool.health_changed(node)

    def stalled(self, node: Node, now_s: float) -> str:
        """Why its requests should be taken from it; empty when they should not."""
        if node.liveness.moved_s == now_s and not node.health.stalled:
            # The note in hand has told of a step.
            return ""
        quiet_s = node.liveness.quiet_s(now_s) if node.in_flight else 0.0
        if quiet_s > self._stall_s:
            node.health.stalled = f"its engine has given no sign of life for {quiet_s:.1f} s"
            self._pool.health_changed(node)
            return f"{node.node_id} was given up: {node.health.stalled}"
        if node.health.stalled and node.liveness.quiet_s(now_s) < self._stall_s:
            self._alive_again(node)
        return ""

    def _alive_again(self, node: Node) -> None:
        node.health.start_slowly()
        self._pool.health_changed(node)

    def _judge(self) -> None:
        """Judges all forecasts, so seldom that a comparison costs as much whatever the number of nodes."""
        nodes = self._pool.nodes.values()
        self._unjudged += 1
        if self._unjudged * 8 >= len(nodes):
            self._unjudged = 0
            judge_all([node.accuracy for node in nodes])

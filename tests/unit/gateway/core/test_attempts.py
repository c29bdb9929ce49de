"""A request may be at two nodes at once: one streams, the other makes ready. Each attempt has books of its own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gateway.core import events as ev
from gateway.core.nodes.node import InFlight
from gateway.core.request.attempt import Attempt
from simcore.types import Outcome
from tests.helpers.routing import CheckedRouter, every


class TwoAttempts(CheckedRouter):
    """`r` streams from one node, and another has it as well, as the second attempt."""

    def __init__(self) -> None:
        super().__init__("least_requests")
        self.join("a", "b")
        self.arrive("r")
        self.tokens("r", 3)
        self.first = self.at["r"]
        self.second = "b" if self.first == "a" else "a"
        live = self.router._ledger.live["r"]
        node = self.router._pool.nodes[self.second]
        sent = InFlight(
            request_id="r",
            dispatch_seq=node.dispatch_seq + 1,
            prompt_blocks=2,
            tokens=132,
            prompt_tokens=32,
            delay_s=None,
        )
        node.take(sent, self.now_s)
        self.live = live
        self.ready = Attempt(
            number=live.next_attempt,
            node=node,
            asked=live.shape,
            decision=live.decisions[0],
            dispatched_s=self.now_s,
        )
        live.attempts.append(self.ready)

    def in_flight(self) -> dict[str, int]:
        return {node.node_id: node.in_flight for node in self.router.nodes()}

    def of_second(self, event: ev.AnyEvent) -> Sequence[ev.AnyAction]:
        return self.router.handle(event, self.now_s)


def test_each_counts_its_own_tokens_and_the_client_gets_those_of_one() -> None:
    world = TwoAttempts()
    assert world.in_flight() == {"a": 1, "b": 1}
    assert not world.of_second(ev.TokensSeen(request_id="r", node_id=world.second, tokens=1, attempt=2))
    assert [attempt.output_tokens for attempt in world.live.attempts] == [3, 1]
    assert world.live.output_tokens == 3


@pytest.mark.parametrize("outcome", [Outcome.ENGINE_FAILED, Outcome.LENGTH, Outcome.CANCELLED])
def test_the_end_of_the_one_that_does_not_stream_is_not_the_end_of_the_request(outcome: Outcome) -> None:
    world = TwoAttempts()
    ended = ev.StreamEnded(request_id="r", node_id=world.second, outcome=outcome, attempt=2)
    assert not world.of_second(ended), "the client hears nothing"
    assert world.in_flight()[world.second] == 0
    world.end("r")
    assert world.finished["r"].outcome is Outcome.STOP
    world.router.check_quiescent()


def test_losing_its_node_changes_nothing_for_the_client() -> None:
    world = TwoAttempts()
    assert not world.tell(ev.NodeLost(node_id=world.second))
    world.end("r")
    world.router.check_quiescent()


def test_a_client_that_leaves_frees_both_nodes() -> None:
    world = TwoAttempts()
    actions = world.of_second(ev.ClientGone(request_id="r"))
    assert {(abort.node_id, abort.attempt) for abort in every(actions, ev.Abort)} == {
        (world.first, 1),
        (world.second, 2),
    }
    assert world.in_flight() == {"a": 0, "b": 0}
    world.router.check_quiescent()

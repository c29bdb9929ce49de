"""Who leads: most nodes' leases, counted so that they end here before they end there."""

from __future__ import annotations

import itertools

import pytest

from gateway.core.scale.lease import MARGIN, ROUNDS, LeaseSeeker
from predictor.core.lease import LeaseAsk, LeaseKeeper

TTL_S = 10.0
ROUND_S = TTL_S / ROUNDS


class Fleet:
    """Nodes that answer at once, and gateways that ask in turns."""

    def __init__(self, nodes: int, *gateways: str) -> None:
        self.now_s = 100.0
        self.keepers = {f"n{i}": LeaseKeeper(0.0) for i in range(nodes)}
        self.seekers = {name: LeaseSeeker(name, TTL_S, 0.0) for name in gateways}
        for seeker in self.seekers.values():
            for node_id in self.keepers:
                seeker.node_up(node_id)

    def ask(self, name: str, *, leaves: bool = False) -> None:
        seeker = self.seekers[name]
        for question in seeker.questions(self.now_s, leaves=leaves):
            ask = LeaseAsk(
                gateway=name, number=question.number, ttl_s=TTL_S, wants=question.wants, leads=question.leads
            )
            answer = self.keepers[question.node_id].ask(ask, self.now_s)
            assert answer is not None
            seeker.heard(
                question.node_id,
                question.number,
                granted=answer.granted,
                holder=answer.holder,
                waits_s=answer.waits_s,
                elsewhere=answer.elsewhere,
                now_s=self.now_s,
            )

    def round(self, *names: str) -> None:
        self.now_s += ROUND_S
        for name in names or self.seekers:
            self.ask(name)

    def leaders(self) -> list[str]:
        return [name for name, seeker in self.seekers.items() if seeker.leads(self.now_s)]


def test_the_first_leads_and_the_other_does_not() -> None:
    fleet = Fleet(3, "a", "b")
    for _ in range(10):
        fleet.round()
        assert fleet.leaders() == ["a"]


def test_it_ceases_to_lead_before_anybody_else_can() -> None:
    fleet = Fleet(3, "a", "b")
    fleet.round()
    asked_s = fleet.now_s
    fleet.now_s = asked_s + (1.0 - MARGIN) * TTL_S - 0.001
    assert fleet.leaders() == ["a"]
    fleet.now_s = asked_s + (1.0 - MARGIN) * TTL_S
    assert fleet.leaders() == []
    assert all(keeper.holder_at(fleet.now_s) == "a" for keeper in fleet.keepers.values())


def test_after_a_leader_dies_the_other_leads() -> None:
    fleet = Fleet(3, "a", "b")
    fleet.round()
    for _ in range(ROUNDS + 2):
        fleet.round("b")
    assert fleet.leaders() == ["b"]


def test_one_that_leaves_is_followed_at_once() -> None:
    fleet = Fleet(3, "a", "b")
    fleet.round()
    fleet.ask("a", leaves=True)
    assert fleet.leaders() == []
    del fleet.seekers["a"]
    fleet.round()
    fleet.round()
    assert fleet.leaders() == ["b"]


@pytest.mark.parametrize(
    ("held", "leader"), [({"a": 2, "b": 2}, "a"), ({"a": 2, "b": 3, "c": 2}, "b"), ({"a": 1, "b": 1, "c": 1}, "a")]
)
def test_those_that_block_each_other_come_to_one(held: dict[str, int], leader: str) -> None:
    fleet = Fleet(sum(held.values()), *held)
    nodes = iter(fleet.keepers.values())
    for name, count in held.items():
        for keeper in itertools.islice(nodes, count):
            keeper.ask(LeaseAsk(gateway=name, number=0, ttl_s=TTL_S, wants=True), fleet.now_s)
    fleet.round()
    assert fleet.leaders() == []
    for _ in range(4):
        fleet.round()
    assert fleet.leaders() == [leader]


def test_nodes_that_come_up_change_nothing() -> None:
    fleet = Fleet(1, "a", "b")
    fleet.round()
    for i in range(1, 6):
        fleet.keepers[f"n{i}"] = LeaseKeeper(fleet.now_s)
    for name in ("b", "a"):
        for i in range(1, 6):
            fleet.seekers[name].node_up(f"n{i}")
        fleet.ask(name)
        assert fleet.leaders() == ["a"]
    for _ in range(10):
        fleet.round("b", "a")
        assert fleet.leaders() == ["a"]


def test_a_node_that_does_not_vote_yet_is_not_counted() -> None:
    fleet = Fleet(1, "a")
    fleet.keepers["new"] = LeaseKeeper(fleet.now_s)
    fleet.seekers["a"].node_up("new")
    fleet.ask("a")
    assert fleet.leaders() == ["a"]


def test_where_nobody_can_be_asked_everybody_leads_after_a_while() -> None:
    fleet = Fleet(1, "a", "b")
    fleet.round()
    for seeker in fleet.seekers.values():
        seeker.node_down("n0", fleet.now_s)
    assert fleet.leaders() == []
    fleet.now_s += TTL_S
    assert fleet.leaders() == ["a", "b"]
    for seeker in fleet.seekers.values():
        seeker.node_up("n0")
    assert fleet.leaders() == ["a", "b"], "until it has answered"
    fleet.keepers["n0"] = LeaseKeeper(fleet.now_s)
    fleet.ask("b")
    fleet.ask("a")
    assert fleet.leaders() == ["b"]


def test_one_that_has_just_begun_does_not_lead() -> None:
    seeker = LeaseSeeker("a", TTL_S, 50.0)
    assert not seeker.leads(59.9)
    assert seeker.leads(60.0)


def test_an_answer_to_what_was_asked_before_it_was_given_back_counts_for_nothing() -> None:
    seeker = LeaseSeeker("a", TTL_S, 0.0)
    seeker.node_up("n")
    (asked,) = seeker.questions(100.0)
    seeker.questions(100.1, leaves=True)
    seeker.heard("n", asked.number, granted=True, holder="a", waits_s=0.0, elsewhere=(), now_s=100.2)
    assert not seeker.leads(100.2)


def test_an_answer_of_an_earlier_session_counts_for_nothing() -> None:
    seeker = LeaseSeeker("a", TTL_S, 0.0)
    seeker.node_up("n")
    (asked,) = seeker.questions(100.0)
    seeker.node_down("n", 100.1)
    seeker.node_up("n")
    seeker.heard("n", asked.number, granted=True, holder="a", waits_s=0.0, elsewhere=(), now_s=100.2)
    (again,) = seeker.questions(100.3)
    seeker.heard("n", again.number, granted=False, holder="b", waits_s=0.0, elsewhere=("x", "n"), now_s=100.4)
    assert not seeker.leads(100.4)
    assert seeker.elsewhere(100.4) == {"x"}, "what it has itself is not elsewhere"


def test_that_it_has_not_led_for_a_while_is_seen_afterwards() -> None:
    fleet = Fleet(3, "a")
    fleet.round()
    seeker = fleet.seekers["a"]
    assert seeker.term(fleet.now_s) == 1
    fleet.round()
    assert seeker.term(fleet.now_s) == 1
    fleet.now_s += 5 * TTL_S
    fleet.ask("a")
    assert seeker.term(fleet.now_s) == 2, "nobody had looked"

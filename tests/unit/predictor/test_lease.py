"""The lease of one node: one holder at a time, until it runs out by the node's own clock."""

from __future__ import annotations

import itertools
from typing import Any

from predictor.core.lease import FORGOTTEN, LONGEST_S, LeaseAnswer, LeaseAsk, LeaseKeeper

TTL_S = 10.0


class Node:
    def __init__(self) -> None:
        self.keeper = LeaseKeeper(0.0)
        self._numbers = itertools.count(1)

    def ask(self, gateway: str, now_s: float, *, wants: bool = True, **changes: Any) -> LeaseAnswer:
        ask = LeaseAsk(gateway=gateway, **{"number": next(self._numbers), "ttl_s": TTL_S, "wants": wants, **changes})
        answer = self.keeper.ask(ask, now_s)
        assert answer is not None
        return answer


def test_the_first_has_it_and_keeps_it_while_it_asks() -> None:
    node = Node()
    assert node.ask("a", 20.0).granted
    for now_s in (22.0, 29.0, 38.0):
        assert node.ask("b", now_s) == LeaseAnswer(granted=False, holder="a", others=1)
        assert node.ask("a", now_s).granted
    assert not node.ask("b", 47.9).granted
    assert node.ask("b", 48.0).granted, "it has run out"
    assert node.keeper.holder_at(57.9) == "b"
    assert node.keeper.holder_at(58.0) == ""


def test_what_is_given_back_is_free_at_once() -> None:
    node = Node()
    node.ask("a", 20.0)
    assert not node.ask("b", 21.0, wants=False).granted, "nobody gives back another's"
    assert node.keeper.holder_at(21.0) == "a"
    assert node.ask("a", 22.0, wants=False) == LeaseAnswer(granted=False, holder="", others=1)
    assert node.ask("b", 22.0).granted


def test_one_that_has_begun_lately_grants_to_none_but_who_leads() -> None:
    """It may have granted to somebody before it began anew, for as long as a lease lasts."""
    node = Node()
    early = node.ask("a", 4.0)
    assert (early.granted, early.waits_s) == (False, 6.0)
    assert node.ask("b", 5.0, leads=True).granted
    assert not node.ask("c", 6.0, leads=True).granted, "one of those who say so"
    assert node.ask("b", 9.0).granted, "its own is kept"
    assert node.ask("a", 19.5).granted


def test_an_ask_that_was_overtaken_counts_for_nothing() -> None:
    node = Node()
    node.ask("a", 20.0, number=7)
    node.ask("a", 21.0, number=9, wants=False)
    assert node.keeper.ask(LeaseAsk(gateway="a", number=8, ttl_s=TTL_S, wants=True), 22.0) is None
    assert node.keeper.holder_at(22.0) == ""


def test_nobody_holds_it_longer_than_may_be() -> None:
    node = Node()
    assert node.ask("a", 1e6, ttl_s=1e9).granted
    assert node.keeper.holder_at(1e6 + LONGEST_S) == ""


def test_each_hears_what_others_have() -> None:
    node = Node()
    assert node.ask("a", 20.0, up_nodes=["n", "x"]).elsewhere == ()
    assert node.ask("b", 21.0, up_nodes=["n"]).elsewhere == ("n", "x")
    assert node.ask("a", 22.0, up_nodes=["n", "x"]).elsewhere == ("n",)
    assert node.ask("b", 33.0, up_nodes=["n"]).elsewhere == ("n", "x"), "one word of it may be late"
    assert node.ask("b", 43.0, up_nodes=["n"]).elsewhere == (), "it has not been heard for two durations"
    assert node.ask("b", 43.0 + FORGOTTEN * TTL_S).elsewhere == ()

"""What a gateway tells nodes of the work that it is going to send them."""

from __future__ import annotations

import msgspec
import pytest

from gateway.core import events as ev
from gateway.core.nodes.expected_work import FLEET_TAU_S, TELL_EVERY_S, ExpectedSendings
from gateway.core.nodes.node import Node
from tests.helpers.routing import PACE, CheckedRouter, engine_config, every


def node(node_id: str, *, times_slower: float = 1.0, model: str = "m") -> Node:
    made = Node(node_id, engine_config(model), "gpu/m", 0.0)
    slower = {"prefill_s_per_token": PACE.prefill_s_per_token * times_slower}
    made.reckon_with(msgspec.structs.replace(PACE, step_s=tuple(s * times_slower for s in PACE.step_s), **slower))
    return made


def send(account: ExpectedSendings, to: list[Node], *, rate_per_s: float, from_s: float, to_s: float) -> None:
    """Prompts of 100 tokens to these nodes in turn."""
    for i in range(round((to_s - from_s) * rate_per_s)):
        account.sent(to[i % len(to)], 100.0, from_s + i / rate_per_s)


def test_each_is_told_the_share_that_it_gets() -> None:
    account, a, b = ExpectedSendings(), node("a"), node("b")
    account.begins(a, 0.0)
    account.begins(b, 0.0)
    send(account, [a, a, a, b], rate_per_s=8.0, from_s=0.0, to_s=400.0)
    told = [account.tell(each, [a, b], 400.0) for each in (a, b)]
    assert [work.requests_per_s for work in told if work] == pytest.approx([6.0, 2.0], rel=0.05)
    assert [work.new_tokens_per_s for work in told if work] == pytest.approx([600.0, 200.0], rel=0.05)
    assert [work.new_tokens2_per_s for work in told if work] == pytest.approx([6e4, 2e4], rel=0.05)


def test_one_that_joins_is_told_the_share_of_its_speed_and_then_what_it_gets() -> None:
    account, a, b = ExpectedSendings(), node("a"), node("b")
    account.begins(a, 0.0)
    send(account, [a], rate_per_s=8.0, from_s=0.0, to_s=200.0)
    fast = node("fast", times_slower=0.5)
    account.begins(fast, 200.0)
    account.begins(b, 200.0)
    fleet = [a, b, fast]
    told = [account.tell(each, fleet, 200.0) for each in (b, fast)]
    assert [work.requests_per_s for work in told if work] == pytest.approx([2.0, 4.0], rel=0.05)
    # The router finds that it takes much more.
    send(account, [fast, fast, fast, b], rate_per_s=8.0, from_s=200.0, to_s=500.0)
    told = [account.tell(each, fleet, 500.0) for each in (b, fast)]
    assert [work.requests_per_s for work in told if work] == pytest.approx([2.0, 6.0], rel=0.05)


def test_who_comes_back_is_told_of_the_fleet_as_it_is_now() -> None:
    account, a, b = ExpectedSendings(), node("a"), node("b")
    for each in (a, b):
        account.begins(each, 0.0)
    send(account, [a, b], rate_per_s=2.0, from_s=0.0, to_s=200.0)
    send(account, [a], rate_per_s=16.0, from_s=200.0, to_s=500.0)
    account.begins(b, 500.0)
    told = account.tell(b, [a, b], 500.0)
    assert told is not None
    assert told.requests_per_s == pytest.approx(8.0, rel=0.05)


def test_a_rate_that_rises_is_told_before_a_node_has_had_its_part_of_it() -> None:
    account, a, b = ExpectedSendings(), node("a"), node("b")
    for each in (a, b):
        account.begins(each, 0.0)
    send(account, [a, b], rate_per_s=2.0, from_s=0.0, to_s=300.0)
    send(account, [a], rate_per_s=20.0, from_s=300.0, to_s=300.0 + 0.5 * FLEET_TAU_S)
    told = account.tell(b, [a, b], 300.0 + 0.5 * FLEET_TAU_S)
    assert told is not None
    assert told.requests_per_s > 1.5


def test_models_have_accounts_of_their_own_and_who_left_has_none() -> None:
    account, a, other = ExpectedSendings(), node("a"), node("other", model="else")
    account.begins(a, 0.0)
    account.begins(other, 0.0)
    send(account, [a], rate_per_s=8.0, from_s=0.0, to_s=50.0)
    assert account.tell(other, [other], 50.0) is None
    account.left("a")
    account.left("a")
    assert account.is_due(a, 50.0)


def test_a_question_brings_it_once_a_second_at_most() -> None:
    router = CheckedRouter("min_total_latency")
    router.join("a", "b")
    first = every(router.arrive("first", prompt_tokens=300), ev.AskForecast)
    assert [ask.expected for ask in first] == [None, None], "nothing was sent yet"
    router.answer(first, {"a": 1.0, "b": 2.0})
    router.now_s += 0.5
    asked = every(router.arrive("second"), ev.AskForecast)
    assert all(ask.expected is not None and ask.expected.requests_per_s > 0.0 for ask in asked)
    router.now_s += 0.5 * TELL_EVERY_S
    assert [ask.expected for ask in every(router.arrive("third"), ev.AskForecast)] == [None, None]
    router.now_s += 0.5 * TELL_EVERY_S
    assert all(ask.expected for ask in every(router.arrive("fourth"), ev.AskForecast))


def test_a_node_that_is_taken_back_into_service_begins_anew() -> None:
    router = CheckedRouter("min_total_latency")
    router.join("a", "b")
    for i in range(40):
        router.now_s += 1.0
        router.answer(every(router.arrive(f"r{i}"), ev.AskForecast), {"a": 1.0, "b": 9.0})
    router.now_s += 1.0
    a, b = (ask.expected for ask in every(router.arrive("before"), ev.AskForecast))
    router.tell(ev.DrainAsked(node_id="b"))
    router.tell(ev.DrainAsked(node_id="b", undo=True))
    after = [ask.expected for ask in every(router.arrive("after"), ev.AskForecast)]
    assert a is not None
    assert b is not None
    assert after[0] is None
    assert after[1] is not None
    assert after[1].requests_per_s > b.requests_per_s

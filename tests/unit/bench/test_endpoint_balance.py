"""PlanetServe's dispatch among plain servers."""

from __future__ import annotations

import pytest

from bench.client.balance import CHUNK_TOKENS, REMEMBERED_PROMPTS, make_balance

A = list(range(100))
B = list(range(1000, 1100))


def test_round_robin_goes_around() -> None:
    balance = make_balance("rr", 3)
    assert [balance.choose(A) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_known_prefix_goes_where_it_is_known() -> None:
    balance = make_balance("lb", 3)
    first = balance.choose(A)
    other = balance.choose(B)
    assert other != first, "no match: the idle server"
    balance.ended(first, A, 0.1)
    balance.ended(other, B, 0.1)
    assert balance.choose(A[:60] + [7] * 40) == first
    assert balance.choose(B) == other


def test_less_than_a_chunk_in_common_is_no_match() -> None:
    balance = make_balance("lb", 2)
    first = balance.choose(A)
    assert balance.choose(A[: CHUNK_TOKENS - 1] + B) != first


def test_alone_with_a_match_even_a_slow_server_gets_it() -> None:
    balance = make_balance("lb", 2)
    home = balance.choose(A)
    for _ in range(40):
        balance.ended(home, [], 7.0)
    assert balance.choose(A) == home, "it is within the 80th percentile of itself"


def test_without_a_match_the_slow_server_is_left_alone() -> None:
    balance = make_balance("lb", 2)
    slow, fast = balance.choose(A), balance.choose(B)
    for _ in range(40):
        balance.ended(slow, [], 7.0)
    assert balance.choose(list(range(5000, 5100))) == fast


def test_a_prompt_is_forgotten_after_ten_others() -> None:
    balance = make_balance("lb", 2)
    home = balance.choose(A)
    balance.ended(home, A, 0.071)
    for other in range(2 * REMEMBERED_PROMPTS + 1):
        prompt = [10_000 * (other + 1) + i for i in range(100)]
        balance.ended(balance.choose(prompt), prompt, 0.071)
    balance.choose(B)  # one queued request, so that an idle server differs from a busy one
    fresh = balance.choose(A)
    assert fresh != 0 or home == 0, "by load alone"


def test_ended_requests_leave_nothing_behind() -> None:
    balance = make_balance("lb", 2)
    chosen = [balance.choose(A) for _ in range(50)]
    for server in chosen:
        balance.ended(server, A, 0.071)
    assert [balance.choose([]) for _ in range(2)] == [0, 1], "equal again"


def test_no_server_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one server"):
        make_balance("lb", 0)

from __future__ import annotations

import pytest

from gateway.intake.caller_account import CallerAccount, CallerLimits, enter, leave


def new_account(processes: int = 1) -> CallerAccount:
    return CallerAccount(arrival_s=[0.0], under_way=[0] * processes)


def test_a_rate_lets_its_requests_through_and_no_more() -> None:
    account, limits = new_account(), CallerLimits(requests_per_s=10.0)
    passed = sum(enter(account, limits, 0, step * 0.01) is None for step in range(1000))
    assert passed == 100


def test_a_burst_comes_at_once_after_a_pause_and_is_earned_back_slowly() -> None:
    account, limits = new_account(), CallerLimits(requests_per_s=2.0, burst=5)
    assert [enter(account, limits, 0, 100.0) is None for _ in range(7)] == [True] * 5 + [False] * 2
    over = enter(account, limits, 0, 100.0)
    assert over is not None
    assert over.retry_after_s == pytest.approx(0.5)
    assert enter(account, limits, 0, 100.5) is None
    assert enter(account, limits, 0, 100.6) is not None


def test_a_refused_request_costs_nothing() -> None:
    account, limits = new_account(), CallerLimits(requests_per_s=1.0, max_concurrent=1)
    assert enter(account, limits, 0, 0.0) is None
    for _ in range(10):
        assert enter(account, limits, 0, 0.5) is not None
    leave(account, 0)
    assert enter(account, limits, 0, 1.0) is None


def test_requests_under_way_count_over_all_processes() -> None:
    account, limits = new_account(3), CallerLimits(max_concurrent=2)
    assert enter(account, limits, 0, 0.0) is None
    assert enter(account, limits, 2, 0.0) is None
    over = enter(account, limits, 1, 0.0)
    assert over is not None
    assert "the limit is 2" in over.reason
    leave(account, 2)
    assert enter(account, limits, 1, 0.0) is None


@pytest.mark.parametrize("wrong", [{"requests_per_s": -1.0}, {"burst": 0}, {"max_concurrent": -1}])
def test_limits_that_are_none(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CallerLimits(**wrong)  # type: ignore[arg-type]

"""The traffic envelope against every window of a plain list of arrivals."""

from __future__ import annotations

import math
import random

import pytest

from bench.micro.envelope import measure
from gateway.core.scale.envelope import TrafficEnvelope, doubling_windows_s

STRETCH_S = 0.5
LOOK_BACK_S = 20.0


def brute(arrivals: list[tuple[float, float]], window_s: float, now_s: float, look_back_s: float) -> float:
    """The largest rate over all windows that end with an arrival, wherever they begin."""
    seen = [(time_s, amount) for time_s, amount in arrivals if time_s > now_s - look_back_s]
    ends = [time_s for time_s, _ in seen]
    return max((sum(a for t, a in seen if end - window_s < t <= end) for end in ends), default=0.0) / window_s


def arrivals_of(rng: random.Random, *, on_stretches: bool) -> list[tuple[float, float]]:
    times: list[tuple[float, float]] = []
    now_s = rng.uniform(0, 100)
    for _ in range(rng.randint(0, 200)):
        now_s += rng.choice((0.0, rng.expovariate(10.0), rng.expovariate(0.5)))
        times.append((math.floor(now_s / STRETCH_S) * STRETCH_S if on_stretches else now_s, rng.randint(1, 500)))
    return times


@pytest.mark.parametrize("seed", range(60))
def test_on_whole_stretches_it_is_exactly_the_maximum_over_all_windows(seed: int) -> None:
    rng = random.Random(seed)
    arrivals = arrivals_of(rng, on_stretches=True)
    envelope = TrafficEnvelope(look_back_s=LOOK_BACK_S, stretch_s=STRETCH_S)
    for time_s, amount in arrivals:
        envelope.add(amount, time_s)
    now_s = (arrivals[-1][0] if arrivals else 3.0) + rng.choice((0.0, 0.0, 7.5, 40.0))
    for window_s in (0.5, 1.0, 2.0, 8.0, 20.0):
        for look_back_s in (LOOK_BACK_S, 10.0):
            if window_s > look_back_s:
                continue
            expected = brute(arrivals, window_s, now_s, look_back_s)
            got = envelope.max_rate(window_s, now_s, look_back_s=look_back_s)
            assert got == pytest.approx(expected), (seed, window_s, look_back_s)


@pytest.mark.parametrize("seed", range(60))
def test_between_stretches_the_true_maximum_lies_between_two_of_its_answers(seed: int) -> None:
    rng = random.Random(seed)
    arrivals = arrivals_of(rng, on_stretches=False)
    envelope = TrafficEnvelope(look_back_s=LOOK_BACK_S, stretch_s=STRETCH_S)
    for time_s, amount in arrivals:
        envelope.add(amount, time_s)
    now_s = arrivals[-1][0] if arrivals else 3.0
    for window_s in (0.5, 2.0, 4.0):
        low, wider = envelope.max_rates([window_s, window_s + STRETCH_S], now_s)
        high = wider * (window_s + STRETCH_S) / window_s
        # The oldest stretch is whole or not there: a window that begins in it is not looked at.
        inner = brute(arrivals, window_s, now_s, LOOK_BACK_S - STRETCH_S)
        outer = brute(arrivals, window_s, now_s, LOOK_BACK_S + STRETCH_S)
        assert inner <= high + 1e-9, (seed, window_s)
        assert low <= outer + 1e-9, (seed, window_s)


@pytest.mark.parametrize("seed", range(30))
def test_longer_windows_are_all_of_them(seed: int) -> None:
    rng = random.Random(seed)
    arrivals = arrivals_of(rng, on_stretches=True)
    envelope = TrafficEnvelope(look_back_s=LOOK_BACK_S, stretch_s=STRETCH_S)
    for time_s, amount in arrivals:
        envelope.add(amount, time_s)
    now_s = arrivals[-1][0] if arrivals else 3.0
    lengths = [STRETCH_S * k for k in range(6, round(LOOK_BACK_S / STRETCH_S) + 1)]
    assert envelope.max_rate_of_longer(3.0, now_s) == pytest.approx(max(envelope.max_rates(lengths, now_s))), seed


def test_what_is_told_late_counts_with_the_latest() -> None:
    envelope = TrafficEnvelope(look_back_s=10.0, stretch_s=1.0)
    envelope.add(5, 100.0)
    envelope.add(7, 99.0)
    assert envelope.max_rate(1.0, 100.5) == 12.0
    assert envelope.rate(10.0, 100.5) == pytest.approx(1.2)
    assert envelope.rate(10.0, 200.0) == 0.0


def test_nothing_has_come() -> None:
    assert TrafficEnvelope(look_back_s=10.0, stretch_s=1.0).max_rates([1.0, 10.0], 5.0) == [0.0, 0.0]


@pytest.mark.parametrize(("look_back_s", "stretch_s"), [(10.0, 0.0), (1.0, 2.0), (math.inf, 1.0), (10.0, math.nan)])
def test_what_cannot_be_is_refused(look_back_s: float, stretch_s: float) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        TrafficEnvelope(look_back_s=look_back_s, stretch_s=stretch_s)


def test_windows_double_up_to_the_longest() -> None:
    assert doubling_windows_s(0.2, 1.0) == [0.2, 0.4, 0.8, 1.0]
    assert doubling_windows_s(90.0, 60.0) == [60.0]


def test_the_benchmark_measures_all_three() -> None:
    cost = measure(1000, questions=2)
    assert min(cost.update_us, cost.query_us, cost.list_query_us or 0.0) > 0

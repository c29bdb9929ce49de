"""What is expected to come: level, trend, silence, and quantiles that are right as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.core.scale.arrivals import BIN_S, SHORT_S, Arrivals

TICK_S = 5.0


def course(*steps: tuple[float, float], seed: int = 0) -> tuple[list[float], float]:
    """Poisson arrivals at a rate for so long, one after another; and when all is over."""
    rng = np.random.default_rng(seed)
    times, at_s = list[float](), 0.0
    for rate, seconds in steps:
        times += sorted(rng.uniform(at_s, at_s + seconds, rng.poisson(rate * seconds)).tolist())
        at_s += seconds
    return times, at_s


def heard(times: list[float], until_s: float) -> Arrivals:
    arrivals = Arrivals()
    arrivals.look(0.0)
    for at_s in times:
        if at_s < until_s:
            arrivals.came(at_s)
    arrivals.look(until_s)
    return arrivals


@pytest.mark.parametrize("rate", [0.5, 6.0, 60.0])
def test_a_constant_rate_is_found(rate: float) -> None:
    found = [heard(*course((rate, 900.0), seed=seed)).level()[0] for seed in range(8)]
    assert np.mean(found) == pytest.approx(rate, rel=0.1)


def test_a_step_is_seen_within_the_shortest_windows() -> None:
    times, _ = course((20.0, 900.0), (40.0, 60.0))
    arrivals = heard(times, 900.0 + 2 * SHORT_S)
    rate, window_s = arrivals.level()
    assert rate == pytest.approx(40.0, rel=0.15)
    assert window_s <= 2 * SHORT_S


def test_a_great_step_is_seen_at_once() -> None:
    """From two to ten a second: within the first five seconds."""
    times, _ = course((2.0, 600.0), (10.0, 5.0))
    assert heard(times, 605.0).level()[0] == pytest.approx(10.0, rel=0.4)


def test_a_step_out_of_nothing_makes_nobody_expect_more_such_steps() -> None:
    times, _ = course((0.02, 300.0), (2.0, 120.0), (10.0, 180.0))
    arrivals, i = Arrivals(), 0
    arrivals.look(0.0)
    for at_s in np.arange(TICK_S, 600.0, TICK_S):
        while i < len(times) and times[i] < at_s:
            arrivals.came(times[i])
            i += 1
        ahead = arrivals.ahead(at_s, at_s + 20.0, at_s + 80.0, 10, answer_s=60.0)
    assert ahead.median == pytest.approx(10.0, rel=0.3)
    assert ahead.draws[-1] < 31.0


def test_silence_is_data() -> None:
    times, _ = course((20.0, 300.0))
    arrivals = heard(times, 600.0)
    assert arrivals.level()[0] == 0.0
    assert arrivals.idle_s(600.0) == pytest.approx(300.0, abs=1.0)
    ahead = arrivals.ahead(600.0, 660.0, 720.0, 10, answer_s=60.0)
    assert ahead.median <= ahead.draws[-1] < 0.1


def test_a_draw_is_exceeded_as_seldom_as_it_says() -> None:
    """On a course that jumps now and then, after an hour of learning, in the time that an answer takes."""
    exceeded, told = 0, 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        steps = [(float(rng.uniform(5.0, 15.0)), 300.0) for _ in range(36)]
        times, end_s = course(*steps, seed=seed)
        counts = np.histogram(times, bins=np.arange(0.0, end_s + 1.0, 1.0))[0]
        arrivals, i = Arrivals(), 0
        arrivals.look(0.0)
        for at_s in np.arange(TICK_S, end_s - 200.0, TICK_S):
            while i < len(times) and times[i] < at_s:
                arrivals.came(times[i])
                i += 1
            ahead = arrivals.ahead(at_s, at_s + 60.0, at_s + 120.0, 5, answer_s=60.0)
            assert list(ahead.draws) == sorted(ahead.draws)
            if at_s > 3600.0:
                told += 1
                # The highest of five: the middle of the highest fifth.
                exceeded += counts[int(at_s) : int(at_s + 60.0)].mean() > ahead.draws[-1]
    assert 0.02 < exceeded / told < 0.25


def test_at_a_constant_rate_the_draws_close_in() -> None:
    """What varies of itself is not taken for changes of the rate: after a while a twentieth is left of the spread."""
    times, end_s = course((8.0, 3600.0))
    arrivals, i = Arrivals(), 0
    arrivals.look(0.0)
    spreads = []
    for at_s in np.arange(TICK_S, end_s, TICK_S):
        while i < len(times) and times[i] < at_s:
            arrivals.came(times[i])
            i += 1
        draws = arrivals.ahead(at_s, at_s + 60.0, at_s + 120.0, 6, answer_s=60.0).draws
        spreads.append(draws[-1] / draws[0] - 1.0)
    assert np.median(spreads[-240:]) < 0.2 < spreads[20]


def test_no_trend_runs_away() -> None:
    """A fall from ten to four is no fall to nothing."""
    arrivals = heard(course((10.0, 600.0), (4.0, 60.0))[0], 600.0)
    low = []
    for at_s in np.arange(605.0, 660.0, TICK_S):
        for came_s in np.arange(at_s - TICK_S, at_s, 0.25):
            arrivals.came(float(came_s))
        low.append(arrivals.ahead(float(at_s), at_s + 100.0, at_s + 200.0, 5, answer_s=100.0).median)
    assert min(low) > 2.0


def test_burstiness_is_measured() -> None:
    rng = np.random.default_rng(3)
    bursts = np.sort(np.repeat(rng.uniform(0.0, 900.0, 90), 10)).tolist()
    smooth, burst = heard(course((1.0, 900.0))[0], 900.0), heard(bursts, 900.0)
    for arrivals in (smooth, burst):
        arrivals.ahead(900.0, 960.0, 1020.0, 5, answer_s=60.0)
    assert smooth.dispersion < 2.0
    assert burst.dispersion > 4.0


def test_a_day_that_was_is_a_day_to_come() -> None:
    """Twice the rate in the second half of each day: shortly before it that is expected on the second day."""
    day_s, half_s = 86_400.0, 43_200.0
    arrivals = Arrivals()
    arrivals.look(0.0)
    at_s = 0.0
    while at_s < day_s + half_s - 60.0:
        rate = 0.05 if at_s % day_s < half_s else 0.2
        at_s += 1.0 / rate
        arrivals.came(at_s)
        if at_s > day_s:
            arrivals.ahead(at_s, at_s + 300.0, at_s + 600.0, 5, answer_s=300.0)
    assert arrivals.ahead(at_s, at_s + 300.0, at_s + 900.0, 5, answer_s=300.0).median > 0.1


def test_bins_do_not_grow_with_what_comes() -> None:
    arrivals = heard([i * 1e-3 for i in range(100_000)], 100.0)
    assert arrivals.seen_s == 100.0
    assert arrivals.level()[0] == pytest.approx(1000.0, rel=0.01)
    assert len(arrivals._bins) == 100.0 / BIN_S

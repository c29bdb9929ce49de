"""Forecasts are joined with what happened, each at most once."""

from __future__ import annotations

import random

import msgspec
import pytest

from predictor.core.calibration import OPEN_FORECASTS, OPEN_S, Calibration
from predictor.core.later_work import NO_COST, DelayCost
from simcore.types import Forecast, ForecastSource, Quantiles


def forecast(name: str, ttft_s: float = 1.0, e2e_s: float = 10.0, source: ForecastSource = "simulated") -> Forecast:
    return Forecast(
        request_id=name,
        node_id="n",
        ttft_s=Quantiles(ttft_s, ttft_s, 2 * ttft_s),
        tpot_s=Quantiles(0.1, 0.1, 0.1),
        e2e_s=Quantiles(e2e_s, e2e_s, 1.5 * e2e_s),
        preemptions=0.0,
        kv_headroom_blocks=1,
        harm_s=Quantiles(0.0, 0.0, 0.0),
        trace_seq=1,
        state_age_s=0.0,
        source=source,
    )


def run(
    calibration: Calibration, name: str, *, at_s: float, ttft_s: float, e2e_s: float, complete: bool = True
) -> None:
    calibration.dispatched(name, at_s)
    calibration.first_token(name, at_s + ttft_s)
    calibration.first_token(name, at_s + ttft_s + 5.0)
    calibration.ended(name, at_s + e2e_s, complete=complete, output_tokens=1)


def test_bias_relative_error_and_coverage() -> None:
    calibration = Calibration()
    actuals = [0.5, 1.0, 2.0, 4.0]
    for i, ttft_s in enumerate(actuals):
        calibration.forecast(forecast(f"r{i}"))
        run(calibration, f"r{i}", at_s=100.0 * i, ttft_s=ttft_s, e2e_s=10.0 * ttft_s)
    ttft, e2e = calibration.ttft.raw(), calibration.e2e.raw()
    assert ttft.samples == e2e.samples == 4
    assert ttft.bias_s == pytest.approx(sum(1.0 - a for a in actuals) / 4)
    # |1-0.5|/0.5 = 1, 0, |1-2|/2 = 0.5, |1-4|/4 = 0.75
    assert ttft.median_relative == pytest.approx(0.5)
    assert ttft.p90_relative == pytest.approx(1.0)
    assert ttft.coverage_p90 == pytest.approx(3 / 4)
    assert e2e.coverage_p90 == pytest.approx(2 / 4)
    # Nearest ranks of actual / p50: 0.5, 1, 2, 4.
    assert (ttft.bias, ttft.spread) == (1.0, 0.5 * (4.0 - 0.5))


def test_times_count_from_the_dispatch_and_the_last_forecast_before_it_is_the_one() -> None:
    calibration = Calibration()
    calibration.forecast(forecast("a", ttft_s=9.0))
    calibration.forecast(forecast("a", ttft_s=2.0))
    run(calibration, "a", at_s=1000.0, ttft_s=2.0, e2e_s=10.0)
    assert calibration.ttft.raw().bias_s == pytest.approx(0.0)


def test_what_was_never_forecast_or_only_guessed_is_not_joined() -> None:
    calibration = Calibration()
    run(calibration, "unasked", at_s=0.0, ttft_s=1.0, e2e_s=2.0)
    calibration.forecast(forecast("guessed", source="prior"))
    run(calibration, "guessed", at_s=0.0, ttft_s=1.0, e2e_s=2.0)
    calibration.forecast(forecast("elsewhere"))
    assert calibration.ttft.raw().samples == calibration.e2e.raw().samples == 0


def test_a_broken_answer_says_nothing_of_its_end() -> None:
    calibration = Calibration()
    calibration.forecast(forecast("a"))
    run(calibration, "a", at_s=0.0, ttft_s=1.0, e2e_s=2.0, complete=False)
    assert calibration.ttft.raw().samples == 1
    assert calibration.e2e.raw().samples == 0
    run(calibration, "a", at_s=0.0, ttft_s=1.0, e2e_s=2.0)
    assert calibration.e2e.raw().samples == 0, "a forecast is joined once"


def test_the_window_is_bounded_and_so_are_open_forecasts() -> None:
    calibration = Calibration(window_pairs=10)
    for i in range(30):
        calibration.forecast(forecast(f"r{i}"))
        run(calibration, f"r{i}", at_s=0.0, ttft_s=1.0 if i >= 20 else 50.0, e2e_s=10.0)
    assert calibration.ttft.raw().samples == 10
    assert calibration.ttft.raw().bias_s == pytest.approx(0.0), "only the last ten count"
    for i in range(OPEN_FORECASTS + 5):
        calibration.forecast(forecast(f"open{i}"))
    run(calibration, "open0", at_s=0.0, ttft_s=99.0, e2e_s=10.0)
    assert calibration.ttft.raw().bias_s == pytest.approx(0.0), "the oldest forecast was let go"


def test_a_forecast_that_no_dispatch_follows_is_let_go() -> None:
    calibration = Calibration()
    calibration.forecast(forecast("elsewhere"), 0.0)
    calibration.forecast(forecast("here"), OPEN_S)
    assert calibration.awaits("elsewhere")
    calibration.forecast(forecast("later"), OPEN_S + 0.1)
    assert not calibration.awaits("elsewhere")
    assert calibration.awaits("here")


def test_what_is_told_is_corrected_and_what_is_learned_from_is_not() -> None:
    calibration = Calibration()
    for i in range(200):
        calibration.forecast(forecast(f"r{i}"))
        run(calibration, f"r{i}", at_s=100.0 * i, ttft_s=3.0, e2e_s=30.0)
    told = calibration.forecast(forecast("next"))
    assert told.ttft_s.p50 == pytest.approx(3.0)
    assert told.e2e_s.p50 == pytest.approx(30.0)
    assert calibration.e2e.raw().median_relative == pytest.approx(2 / 3)
    assert calibration.e2e.raw().bias == pytest.approx(3.0)
    # The first were told before anything was known.
    assert calibration.e2e.corrected().median_relative == pytest.approx(0.0, abs=0.01)


def test_a_node_three_times_slower_than_it_says_loses_trust_and_wins_it_back() -> None:
    """Fifty requests are under way at any moment, as on a busy node."""
    calibration = Calibration()
    seen = []
    for i in range(250):
        calibration.forecast(forecast(f"r{i}"))
        calibration.dispatched(f"r{i}", float(i))
        if i >= 50:
            late = f"r{i - 50}"
            calibration.first_token(late, i - 50.0 + 3.0)
            calibration.ended(late, i - 50.0 + 3.0 + 0.3 * 90, complete=True, output_tokens=91)
        seen.append(calibration.trusted)
    assert seen[:69] == [True] * 69, "twenty pairs must be in before anybody is judged"
    assert not seen[75]
    assert seen[-1]


def test_a_node_that_nobody_can_foresee_is_not_trusted() -> None:
    calibration = Calibration()
    for i in range(100):
        calibration.forecast(forecast(f"r{i}"))
        run(calibration, f"r{i}", at_s=100.0 * i, ttft_s=0.2 if i % 2 else 5.0, e2e_s=10.0)
    assert not calibration.trusted


def test_guesses_are_told_as_they_are() -> None:
    calibration = Calibration()
    for i in range(50):
        calibration.forecast(forecast(f"r{i}"))
        run(calibration, f"r{i}", at_s=0.0, ttft_s=3.0, e2e_s=30.0)
    guess = forecast("guess", source="prior")
    assert calibration.forecast(guess) is guess


@pytest.mark.parametrize(("factor", "applied"), [(1.2, 1.0), (1 / 1.2, 1.0), (3.0, 3.0), (0.5, 0.5)])
def test_means_follow_the_tempo_of_the_node_only_when_that_is_far_off(factor: float, applied: float) -> None:
    """Small corrections of each node would be noise in the comparison of nodes."""
    calibration = Calibration()
    raw = msgspec.structs.replace(forecast("r", ttft_s=1.0, e2e_s=10.0), harm_s=Quantiles(4.0, 4.0, 4.0))
    for i in range(100):
        calibration.forecast(msgspec.structs.replace(raw, request_id=f"r{i}"))
        calibration.dispatched(f"r{i}", 0.0)
        calibration.first_token(f"r{i}", 1.0)
        calibration.ended(f"r{i}", 1.0 + 0.1 * factor * 90, complete=True, output_tokens=91)
    told = calibration.forecast(raw)
    assert told.e2e_s.mean == pytest.approx(10.0 * applied)
    assert told.harm_s.mean == pytest.approx(4.0 * applied)
    assert told.tpot_s.p50 == pytest.approx(0.1 * factor)


def live_beside_prompts(calibration: Calibration, seed: int, *, told: bool, pace: float = 1.0) -> None:
    """300 answers that take 10 s at the least; prompts of a second come beside them, none or up to 20, and each adds
    its second. `told`: what the prompts cost is known."""
    rng = random.Random(seed)
    for i in range(300):
        at_s = 1000.0 * i
        calibration.forecast(forecast(f"r{i}"), at_s)
        calibration.dispatched(f"r{i}", at_s)
        calibration.first_token(f"r{i}", at_s + 1.0)
        later = rng.choice((0, 0, 0, 12, 16, 20))
        for k in range(later):
            calibration.dispatched(f"r{i}+{k}", at_s + 2.0, DelayCost(1.0) if told else NO_COST)
        calibration.ended(f"r{i}", at_s + 1.0 + 9.0 * pace + later, complete=True, output_tokens=91)


@pytest.mark.parametrize("seed", range(3))
def test_what_later_prompts_took_is_no_reason_to_distrust(seed: int) -> None:
    calibration = Calibration()
    live_beside_prompts(calibration, seed, told=True)
    assert calibration.trusted, f"seed {seed}"
    assert calibration.forecast(forecast("next")).e2e_s.mean == 10.0, "nor is the node's clock wrong"
    assert calibration.forecast(forecast("next")).e2e_s.p50 > 11.0, "but people are told what is to be expected"
    unexplained = Calibration()
    live_beside_prompts(unexplained, seed, told=False)
    assert not unexplained.trusted, f"seed {seed}"


def test_a_slow_clock_shows_beside_later_prompts() -> None:
    calibration = Calibration()
    live_beside_prompts(calibration, 0, told=True, pace=3.0)
    assert calibration.forecast(forecast("next")).e2e_s.mean == pytest.approx(30.0)


def test_later_prompts_excuse_no_answer_that_came_too_soon() -> None:
    """Whose answers are suddenly four times as fast as forecast simulates another engine, whatever came later."""
    calibration = Calibration()
    for i in range(60):
        calibration.forecast(forecast(f"r{i}"))
    for i in range(60):
        calibration.dispatched(f"r{i}", 0.0)
        calibration.dispatched(f"later{i}", 0.0, DelayCost(5.0))
        calibration.first_token(f"r{i}", 1.0)
        calibration.ended(f"r{i}", 1.0 + 9.0 / 4, complete=True, output_tokens=91)
    assert not calibration.trusted


@pytest.mark.parametrize("seed", range(3))
def test_answers_beside_long_prompts_are_told_right_in_the_median_and_nine_of_ten_under_the_p90(seed: int) -> None:
    """Long prompts of 0.5 s come at random, 0.4 a second: the longer an answer the more of them; short answers after
    long waits see hardly any."""
    rng = random.Random(seed)
    calibration = Calibration()
    medians: list[bool] = []
    unders: list[bool] = []
    short_off: list[float] = []
    for i in range(1500):
        ttft_s, after_s = rng.lognormvariate(0.0, 1.0), rng.lognormvariate(0.5, 1.5)
        raw = msgspec.structs.replace(forecast(f"r{i}"), ttft_s=Quantiles(ttft_s, ttft_s, ttft_s))
        e2e_s = ttft_s + after_s
        raw = msgspec.structs.replace(
            raw, e2e_s=Quantiles(e2e_s, e2e_s, e2e_s), tpot_s=Quantiles(after_s / 90, after_s / 90, after_s / 90)
        )
        told = calibration.forecast(raw)
        actual_s, left_s = ttft_s + after_s * rng.lognormvariate(0.0, 0.01), after_s
        while (left_s := left_s - rng.expovariate(0.4)) > 0.0:
            actual_s += 0.5 * rng.expovariate(1.0)
        calibration.dispatched(raw.request_id, 0.0)
        calibration.first_token(raw.request_id, ttft_s)
        calibration.ended(raw.request_id, actual_s, complete=True, output_tokens=91)
        if i >= 300:
            medians.append(actual_s <= told.e2e_s.p50)
            unders.append(actual_s <= told.e2e_s.p90)
            if after_s < 0.1:
                short_off.append(told.e2e_s.p50 / e2e_s)
    assert sum(unders) / len(unders) == pytest.approx(0.9, abs=0.05), f"seed {seed}"
    assert sum(medians) / len(medians) == pytest.approx(0.5, abs=0.06), f"seed {seed}"
    assert max(short_off) < 1.1, f"seed {seed}: what long answers teach is not put on the wait for a first token"


def test_the_share_of_prompts_is_told_with_each_forecast() -> None:
    calibration = Calibration()
    assert calibration.forecast(forecast("first"), 0.0).prefill_share == 0.0
    for second in range(200):
        calibration.dispatched(f"r{second}", float(second), DelayCost(prefill_s=0.3, step_s=0.0))
    assert calibration.forecast(forecast("now"), 199.5).prefill_share == pytest.approx(0.3, rel=0.03)
    assert calibration.forecast(forecast("much later"), 500.0).prefill_share < 1e-3
    for i in range(100):
        calibration.dispatched(f"burst{i}", 500.0, DelayCost(prefill_s=30.0, step_s=0.0))
    assert calibration.forecast(forecast("after"), 500.0).prefill_share == 1.0

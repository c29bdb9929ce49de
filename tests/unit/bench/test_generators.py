"""Generators against their formulas: mean, variance and tail, with a fixed seed."""

from __future__ import annotations

import numpy as np
import pytest

from bench.workload.dataset_error import DatasetError
from bench.workload.power_law import LLUMNIX, POWER_LAW_NAMES, PowerLaw
from bench.workload.rate_profile import RateStep, day_curve, parse_steps, profile_arrivals_s, total_s
from bench.workload.servegen import (
    WINDOW_S,
    ClientWindow,
    LengthQuantiles,
    draw_requests,
    parse_arrivals,
    parse_length_quantiles,
)

SEED = 20_261
PAPER_MEAN_P50_P99 = {"short": (128, 38, 1464), "medium": (256, 32, 4208), "long": (512, 55, 5166)}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


@pytest.mark.parametrize("name", POWER_LAW_NAMES)
def test_power_laws_have_the_papers_mean_and_median(name: str, rng: np.random.Generator) -> None:
    law = LLUMNIX[name]  # type: ignore[index]
    mean, p50, p99 = PAPER_MEAN_P50_P99[name]
    drawn = law.draw_tokens(rng, 400_000)
    assert law.mean_tokens == pytest.approx(mean, rel=0.01)
    assert float(drawn.mean()) == pytest.approx(mean, rel=0.02)
    assert float(np.median(drawn)) == pytest.approx(p50, rel=0.03)
    assert float(np.quantile(drawn, 0.99)) == pytest.approx(p99, rel=0.3)
    assert drawn.min() >= 1
    assert drawn.max() <= law.longest_tokens


def test_a_power_law_with_exponent_one_has_a_mean() -> None:
    near = PowerLaw(exponent=1.0 + 1e-6, shortest_tokens=10).mean_tokens
    assert PowerLaw(exponent=1.0, shortest_tokens=10).mean_tokens == pytest.approx(near, rel=1e-4)


def test_impossible_power_laws_are_refused() -> None:
    for exponent, shortest in ((0.0, 10.0), (1.0, 0.5), (1.0, 7000.0)):
        with pytest.raises(ValueError, match="power law"):
            PowerLaw(exponent=exponent, shortest_tokens=shortest)


def test_steps_have_their_rates_and_rests(rng: np.random.Generator) -> None:
    steps = parse_steps("20x500, 0x100, 50x400")
    times = profile_arrivals_s(rng, steps)
    counts = [int(((times >= a) & (times < b)).sum()) for a, b in ((0, 500), (500, 600), (600, 1000))]
    assert counts[1] == 0
    assert counts[0] == pytest.approx(10_000, abs=5 * 100)
    assert counts[2] == pytest.approx(20_000, abs=5 * 142)
    assert np.all(np.diff(times) >= 0)
    assert times[-1] < total_s(steps)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_burstiness_is_kept_under_a_changing_rate(rng: np.random.Generator, burstiness: float) -> None:
    times = profile_arrivals_s(
        rng, [RateStep(4000.0, 10.0), RateStep(1000.0, 40.0)], kind="gamma", burstiness=burstiness
    )
    for a, b in ((0, 4000), (4000, 5000)):
        gaps = np.diff(times[(times >= a) & (times < b)])
        assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1 / burstiness, rel=0.1)


def test_a_day_has_its_mean_and_its_swing() -> None:
    steps = day_curve(mean_rate_per_s=3.0, peak_to_valley=11.7)
    rates = [step.rate_per_s for step in steps]
    assert sum(rates) / len(rates) == pytest.approx(3.0)
    assert max(rates) / min(rates) == pytest.approx(11.7, rel=0.01)
    assert total_s(steps) == pytest.approx(86_400.0)


@pytest.mark.parametrize("text", ["", "20", "20x", "x5", "20x-1", "-2x5", "0x5", "nanx5", "20xinf"])
def test_impossible_steps_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"rate step|write steps|rate above 0"):
        parse_steps(text)


# --- ServeGen ---------------------------------------------------------------------------------------------------------

QUANTILES = LengthQuantiles(shares=(0.0, 0.5, 1.0), input_tokens=(1, 100, 200), output_tokens=(10, 10, 10))


def windows(rate_per_s: float, *, shape: float, weibull: bool, count: int = 40) -> list[ClientWindow]:
    return [
        ClientWindow(client=1, start_s=i * WINDOW_S, rate_per_s=rate_per_s, weibull=weibull, shape=shape)
        for i in range(count)
    ]


@pytest.mark.parametrize(("shape", "weibull", "cv"), [(0.1, False, 3.16), (1.0, False, 1.0), (0.5, True, 2.24)])
def test_clients_have_their_rate_and_burstiness(
    rng: np.random.Generator, shape: float, weibull: bool, cv: float
) -> None:
    duration_s = 40 * WINDOW_S
    some = windows(2.0, shape=shape, weibull=weibull)
    rows = draw_requests(rng, some, {(1, 0.0): QUANTILES}, start_s=0.0, duration_s=duration_s)
    times = np.array([row.arrival_s for row in rows])
    gaps = np.diff(times)
    assert len(rows) / duration_s == pytest.approx(2.0, rel=0.08)
    assert float(gaps.std() / gaps.mean()) == pytest.approx(cv, rel=0.12)
    assert {row.session for row in rows} == {"1"}


def test_the_aggregate_is_scaled_and_shares_stay(rng: np.random.Generator) -> None:
    both = [
        ClientWindow(client=c, start_s=0.0, rate_per_s=rate, weibull=False, shape=1.0)
        for c, rate in ((1, 3.0), (2, 1.0))
    ]
    rows = draw_requests(rng, both, {(2, 0.0): QUANTILES}, start_s=0.0, duration_s=WINDOW_S, rate_per_s=40.0)
    assert len(rows) == pytest.approx(24_000, rel=0.04)
    assert sum(row.session == "1" for row in rows) / len(rows) == pytest.approx(0.75, abs=0.02)
    assert np.median([row.prompt_tokens for row in rows]) == pytest.approx(100, rel=0.05)
    assert {row.output_tokens for row in rows} == {10}


def test_one_seed_gives_the_same_requests() -> None:
    def draw() -> list[object]:
        return list(
            draw_requests(
                np.random.default_rng(SEED),
                windows(1.0, shape=0.5, weibull=True, count=2),
                {(1, 0.0): QUANTILES},
                start_s=100.0,
                duration_s=300.0,
            )
        )

    assert draw() == draw()


def test_servegen_files_are_read_and_bad_ones_named() -> None:
    head = "client,window_start_s,rate_rps,cv_iat,pattern,param_shape,param_scale"
    (window,) = parse_arrivals([head, "3,1200,0.27,6.0,Weibull,0.5,3.4"], "a.csv")
    assert (window.client, window.start_s, window.weibull, window.shape) == (3, 1200.0, True, 0.5)
    lengths = parse_length_quantiles(
        ["client,window_start_s,field,mean,q0,q100", "3,0,input_tokens,5,1,9", "3,0,output_tokens,5,2,8"], "l.csv"
    )
    assert lengths[3, 0.0].output_tokens == (2.0, 8.0)
    for lines, reason in (
        ([head, "3,1200,0.27,6.0,Pareto,0.5,3.4"], "row 2: unknown pattern `Pareto`"),
        ([head, "3,1200,0,6.0,Gamma,0.5,3.4"], "row 2: a rate or shape of 0"),
        ([head], "no rows"),
        (["a,b"], "header"),
    ):
        with pytest.raises(DatasetError) as raised:
            parse_arrivals(lines, "a.csv")
        assert reason in str(raised.value)
    with pytest.raises(DatasetError, match="do not ascend"):
        parse_length_quantiles(["client,window_start_s,field,mean,q0,q100", "3,0,input_tokens,5,9,1"], "l.csv")
    with pytest.raises(ValueError, match="no client has traffic"):
        draw_requests(np.random.default_rng(1), [window], lengths, start_s=90_000.0, duration_s=1.0)

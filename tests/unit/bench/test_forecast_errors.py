"""The table of forecast errors: who counts, and what the numbers mean."""

from __future__ import annotations

import pytest

from bench.measure.forecast_errors import DispatchForecast, ForecastOutcome, errors_of, measures_of
from bench.measure.measures import KNOWN, GoodputSlo, measure
from bench.measure.results import RequestResult, summarise
from bench.run.spec import RunSpec
from bench.simcluster import SimCluster
from bench.workload.item import WorkloadItem
from gateway.core.router import RouterConfig
from simcore.types import Outcome


def result(name: str, ttft_s: float, e2e_s: float | None, placed: DispatchForecast | None) -> RequestResult:
    return RequestResult(
        request_id=name,
        arrival_s=0.0,
        node_id="n",
        outcome=Outcome.STOP if e2e_s is not None else Outcome.NODE_LOST,
        prompt_tokens=1,
        output_tokens=2,
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        decision_s=0.5,
        forecast=placed,
    )


def test_times_count_from_the_dispatch_and_only_whole_forecast_answers_do() -> None:
    placed = DispatchForecast(ttft_p50_s=1.0, ttft_p90_s=1.2, e2e_p50_s=8.0, e2e_p90_s=11.0)
    rows = [
        result("good", 1.5, 10.5, placed),
        result("broken", 9.0, None, placed),
        result("not forecast", 9.0, 90.0, None),
        result("late", 2.5, 16.5, placed),
    ]
    errors = summarise(rows).forecasts
    assert errors is not None
    assert errors.ttft is not None
    assert errors.e2e is not None
    # TTFT: 1 and 2 s against 1 s; E2E: 10 and 16 s against 8 s.
    assert (errors.ttft.samples, errors.ttft.error_p50, errors.ttft.gap_s) == (2, 0.25, 0.5)
    assert errors.ttft.under_p90 == errors.e2e.under_p90 == 0.5
    assert (errors.e2e.error_p50, errors.e2e.error_p90, errors.e2e.bias) == (0.35, 0.5, -0.35)
    measures = measures_of(errors)
    assert measures["e2e_forecast_error_mean"] == pytest.approx((0.2 + 0.5) / 2)
    assert measures["ttft_forecast_under_p90"] == 0.5
    assert set(measures) <= KNOWN
    assert measure(rows, summarise(rows), GoodputSlo()).items() >= measures.items()


def test_nothing_forecast_gives_no_table() -> None:
    assert summarise([result("a", 1.0, 2.0, None)]).forecasts is None
    assert errors_of([]) is None
    assert errors_of([ForecastOutcome(2.0, 2.0, 2.0)]) is not None


@pytest.mark.parametrize("lengths", ["known", "none"])
def test_a_simulated_cluster_covers_nine_of_ten_and_knows_itself(lengths: str) -> None:
    """About 80 % of two nodes' capacity, after a start from nothing known."""
    items = [
        WorkloadItem(
            request_id=f"r{i}", arrival_s=0.28 * i, prompt_tokens=100 + 37 * i % 400, output_tokens=1 + 53 * i % 500
        )
        for i in range(900)
    ]
    cluster = SimCluster(
        RunSpec(nodes=2).node_specs(),
        RouterConfig(policy="min_total_latency", seed=0),
        lengths="known" if lengths == "known" else "none",
    )
    errors = summarise(cluster.run(items).results[200:]).forecasts
    assert errors is not None
    assert errors.e2e is not None
    assert 0.83 <= errors.e2e.under_p90 <= 0.97
    if lengths == "known":
        assert errors.e2e.error_p50 < 0.08

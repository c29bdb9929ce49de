"""Nodes of a simulated cluster are told of the work to come, and those without a history of their own foresee by it."""

from __future__ import annotations

import statistics

import pytest

from bench.measure.forecast_errors import ForecastOutcome
from bench.measure.results import forecast_pair
from bench.simcluster import SimCluster
from gateway.core import events as ev
from gateway.core.nodes.expected_work import ExpectedSendings
from gateway.core.router import RouterConfig
from predictor.core.calibration import Calibration
from tests.helpers.simulated import cluster_nodes, poisson

FORGET_S = 40.0
"""When all nodes, busy as they are, forget what their forecasts were worth."""


def after_forgetting(seed: int) -> list[ForecastOutcome]:
    """E2E forecasts of the next requests after that, and what came true of them."""
    cluster = SimCluster(
        cluster_nodes(3),
        RouterConfig(policy="min_total_latency", seed=seed),
        observe=lambda at_s, event, actions: forget(at_s, event),
    )
    forgotten: list[float] = []

    def forget(at_s: float, event: ev.AnyEvent) -> None:
        if at_s >= FORGET_S and not forgotten and isinstance(event, ev.Arrived):
            forgotten.append(at_s)
            for node in cluster._nodes.values():
                node.predictor.calibration = Calibration()

    results = cluster.run(poisson(700, 8.0, seed)).results
    next_ones = [r for r in results if FORGET_S < r.arrival_s < FORGET_S + 6.0]
    return [pair[1] for r in next_ones if (pair := forecast_pair(r)) is not None]


def test_without_a_history_forecasts_are_right_where_the_work_to_come_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [pair for seed in range(3) for pair in after_forgetting(seed)]
    monkeypatch.setattr(ExpectedSendings, "tell", lambda *_: None)
    alone = [pair for seed in range(3) for pair in after_forgetting(seed)]
    assert min(len(told), len(alone)) > 100
    assert median_error(told) < 0.8 * median_error(alone)
    assert sum(pair.actual_s <= pair.p90_s for pair in told) >= 0.85 * len(told)


def median_error(pairs: list[ForecastOutcome]) -> float:
    return statistics.median(pair.error for pair in pairs)

"""Live runs beside their simulations: which delays are carried over, and what counts as agreement."""

from __future__ import annotations

import msgspec
import pytest

from bench.experiments.agreement import Agreement, as_markdown, measured_delays, twin
from bench.measure.results import spread
from bench.run.simulated import RunLine
from tests.unit.bench.run_lines import line


def live(decision_s: float) -> RunLine:
    """A run at twice the clock's speed whose answers took 6 ms of it more on their way."""
    made = line("a", 8.0, 0, decision_mean_s=decision_s)
    return msgspec.structs.replace(made, summary=msgspec.structs.replace(made.summary, delivery_s=spread([0.012])))


def test_the_simulation_decides_as_slowly_as_the_live_run_did() -> None:
    run = live(0.003)
    delays = measured_delays(run, 2.0)
    assert (delays.decision_s, delays.delivery_s) == (0.006, 0.012)
    spec = twin(run, 2.0)
    assert 2 * spec.gateway_s + 2 * spec.network_one_way_s + spec.forecast_s == pytest.approx(0.006)
    assert spec.note_interval_s == 2 * run.spec.note_interval_s


def test_a_rule_that_asks_nobody_has_the_default_delays() -> None:
    run = live(0.0001)
    assert twin(run, 1.0).forecast_s == run.spec.forecast_s


def test_what_agrees_and_what_one_run_cannot_tell() -> None:
    def one(live: float, simulated: float, lowest: float, highest: float) -> Agreement:
        return Agreement(
            variant="a", rate_per_s=8.0, seed=0, measure="ttft_p99_s", live=live, simulated=simulated, lowest=lowest,
            highest=highest, bar=0.1,
        )  # fmt: skip

    rows = [one(1.0, 1.09, 1.0, 1.2), one(1.0, 2.0, 0.4, 3.8), one(1.0, 2.0, 1.9, 2.1)]
    assert [(row.holds, row.is_within_spread) for row in rows] == [(True, True), (False, True), (False, False)]
    text = as_markdown(rows, [live(0.003)], time_scale=2.0)
    assert text.startswith("1 of 3 values agree within the bar (5 % of means, 10 % of P99s); of the others 1 within")
    assert "| a | 8 | TTFT P99, s | 1.000 | 2.000 | 0.400 to 3.800 | +100.0% | within the spread |" in text
    assert "- a, 8/s, seed 0: a decision 3.00, between client and gateway 6.00" in text

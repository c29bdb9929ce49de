"""Tables of numbers on narrow terminals: wider than the screen rather than a number cut or folded."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from bench.measure.capacity import InterpolatedCapacity
from bench.measure.differences import difference_table, differences
from bench.measure.forecast_errors import DispatchForecast
from bench.measure.groups import GroupFacts, summarise_groups
from bench.measure.results import RequestResult, Run, summarise
from bench.show.groups import group_table
from bench.show.tables import capacity_table, comparison_table, forecast_table, print_table, summary_table
from simcore.types import Outcome


def run(policy: str, seed: int) -> Run:
    results = [
        RequestResult(
            request_id=f"r{i}",
            arrival_s=123.45678 * i,
            node_id="node-0",
            outcome=Outcome.STOP if i % 7 else Outcome.DEADLINE,
            prompt_tokens=12_345,
            output_tokens=6_789,
            ttft_s=123.456 + i + seed,
            tpot_s=1.23456,
            e2e_s=9_876.543 + i,
            decision_s=0.123456,
            forecast=DispatchForecast(ttft_p50_s=1.0, ttft_p90_s=2.0, e2e_p50_s=30_000.0, e2e_p90_s=40_000.0),
            preemptions=1_234,
        )
        for i in range(20)
    ]
    facts = GroupFacts(
        name="a-group-of-nodes", profile="p", model="a-model", node_ids=("node-0",), price_per_hour=12_345.6
    )
    other = GroupFacts(name="other", profile="p", model="another-model", node_ids=("node-1",))
    groups = summarise_groups(results, [facts, other], {"node-0": 0.12345})
    return Run(policy=policy, rate_per_s=12_345.67, seed=seed, summary=summarise(results), router="r", groups=groups)


RUNS = [run(policy, seed) for seed in (0, 1) for policy in ("min_total_unprocessed_tokens", "min_new_request_latency")]
TABLES = {
    "summary": summary_table(RUNS[0].summary, title="t"),
    "comparison": comparison_table(RUNS, title="t"),
    "forecasts": forecast_table(RUNS),
    "groups": group_table(RUNS),
    "differences": difference_table(differences(RUNS)),
    "capacity": capacity_table(
        [InterpolatedCapacity(policy="min_total_unprocessed_tokens", limit_s=3.0, rate_per_s=12_345.6)]
    ),
}


def printed(table: Table, width: int) -> list[str]:
    out = io.StringIO()
    print_table(Console(file=out, width=width), table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("name", TABLES)
def test_every_number_is_whole_at_any_width(name: str, width: int) -> None:
    whole, narrow = printed(TABLES[name], 400), printed(TABLES[name], width)
    assert "…" not in "".join(narrow)
    rows = [[cell for cell in line.split() if cell[0].isalnum() or cell[0] in "+-≥"] for line in whole]
    assert [[cell for cell in line.split() if cell[0].isalnum() or cell[0] in "+-≥"] for line in narrow] == rows

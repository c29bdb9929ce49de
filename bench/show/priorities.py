"""Simulated runs with requests of several priorities, as a table for people. Renders, computes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from bench.run.simulated import RunLine
from bench.show.tables import milliseconds, rate_text, three_digits

COLUMNS = (
    ("TTFT\nmean s", "ttft_mean_s", three_digits),
    ("TTFT\nP99 s", "ttft_p99_s", three_digits),
    ("TPOT\nmean ms", "tpot_mean_s", milliseconds),
    ("E2E\nmean s", "e2e_mean_s", three_digits),
    ("E2E\nP99 s", "e2e_p99_s", three_digits),
)
_OF = "e2e_mean_s_of_priority_"


def priorities_table(lines: Sequence[RunLine]) -> Table | None:
    """A row for each run and priority, the highest class first; None where no run has several priorities."""
    table = Table(title="by priority", title_justify="left", header_style="bold", box=box.SIMPLE, padding=(0, 0, 0, 1))
    for name in ("\nrate/s", "\npolicy", "\nseed", "prio-\nrity"):
        table.add_column(name, justify="left" if name.endswith("policy") else "right", no_wrap=True)
    for name, _, _ in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        found = line.measures
        for priority in sorted(int(name.removeprefix(_OF)) for name in found if name.startswith(_OF)):
            values = [
                show(value) if (value := found.get(f"{measure}_of_priority_{priority}")) is not None else "–"
                for _, measure, show in COLUMNS
            ]
            table.add_row(rate_text(line.spec.rate_per_s), line.variant, str(line.spec.seed), str(priority), *values)
    return table if table.row_count else None

"""Scaled runs for people: what their nodes cost and what their clients got. Renders, computes nothing but means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.table import Table

from bench.experiments.series import by_variant_and_rate
from bench.measure.scaling import SCALING_MEASURES
from bench.run.simulated import RunLine
from bench.show.tables import rate_text, three_digits

_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("node-\nhours", "node_hours", three_digits),
    ("\ncost", "cost", three_digits),
    ("nodes\nmean", "nodes_mean", three_digits),
    ("\npeak", "nodes_peak", lambda value: f"{value:.0f}"),
    ("missed\n%", "slo_missed_share", lambda value: three_digits(100.0 * value)),
    ("TTFT\nP90 s", "ttft_p90_s", three_digits),
    ("E2E\nP90 s", "e2e_p90_s", three_digits),
    ("flaps\nan hour", "flaps_per_hour", three_digits),
    ("\nstarts", "node_starts", lambda value: f"{value:.0f}"),
    ("\nfailed", "node_starts_failed", lambda value: f"{value:.0f}"),
)


def scaling_table(lines: Sequence[RunLine]) -> Table:
    """A row per rate and variant; means over the seeds."""
    table = Table(
        title="nodes and what they kept",
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    table.add_column("\nrate/s", justify="right")
    table.add_column("\nscaler", no_wrap=True)
    scaled = [line for line in lines if line.scaling is not None]
    columns = [
        column
        for column in _COLUMNS
        if column[1] != "node_starts_failed" or any(line.measures[column[1]] for line in scaled)
    ]
    for name, _, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for (variant, rate), own in by_variant_and_rate(scaled).items():
        cells = []
        for _, measure, show in columns:
            values = [line.measures[measure] for line in own if measure in line.measures]
            cells.append(show(sum(values) / len(values)) if values else "–")
        # Of steps of a rate what came, as the table of requests has it.
        offered = [came for line in own if (came := line.summary.offered_rate_per_s) is not None]
        shown = sum(offered) / len(offered) if rate is None and offered else rate
        table.add_row(rate_text(shown), variant, *cells)
    return table


def scaling_record(line: RunLine) -> dict[str, Any]:
    """One scaled run for machines."""
    return {
        "variant": line.variant,
        "scaler": line.spec.scaler,
        "rate_per_s": line.spec.rate_per_s,
        "seed": line.spec.seed,
        "measures": {name: line.measures[name] for name in (*sorted(SCALING_MEASURES), "slo_missed_share")},
        "course": line.scaling,
    }

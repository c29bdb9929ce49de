"""Results as tables for people. Renders, computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from bench.measure.capacity import InterpolatedCapacity
from bench.measure.results import Run, Summary, statistic_of
from protos.runtime.terminal import out_console, print_table

__all__ = [
    "capacity_table",
    "comparison_table",
    "forecast_table",
    "milliseconds",
    "out_console",
    "print_table",
    "rate_text",
    "seconds",
    "summary_lines",
    "summary_table",
    "three_digits",
]


def seconds(value: float | None) -> str:
    """`12.3 ms`, `0.45 s`, `67.8 s`; a dash for None."""
    if value is None:
        return "–"
    if value < 0.0995:
        return f"{value * 1e3:.3g} ms" if value < 0.01 else f"{value * 1e3:.1f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def rate_text(value: float | None) -> str:
    """Two decimals; a dash for None."""
    return "–" if value is None else f"{value:.2f}"


def summary_table(summary: Summary, *, title: str) -> Table:
    """One run in full."""
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("")
    for name in ("mean", "P50", "P90", "P99", "max"):
        table.add_column(name, justify="right")
    for label, spread in (
        ("TTFT", summary.ttft_s),
        ("TPOT", summary.tpot_s),
        ("inter-token", summary.inter_token_s),
        ("E2E", summary.e2e_s),
        ("decision", summary.decision_s),
        ("sent late by", summary.lateness_s),
        ("to and from gateway", summary.delivery_s),
    ):
        if spread is not None:
            values = (spread.mean, spread.p50, spread.p90, spread.p99, spread.max)
            table.add_row(label, *(seconds(v) for v in values))
    return table


def summary_lines(summary: Summary) -> list[str]:
    """What a run's table has no column for."""
    outcomes = ", ".join(f"{count:,} {name}" for name, count in summary.outcomes.items())
    lines = [
        f"{summary.requests:,} requests in {summary.duration_s:.1f} s: {outcomes}",
        f"rate offered {rate_text(summary.offered_rate_per_s)}/s, achieved {rate_text(summary.achieved_rate_per_s)}/s; "
        f"throughput {summary.throughput_requests_per_s:.2f} answers/s, {summary.output_tokens_per_s:,.0f} output "
        f"tokens/s, {summary.total_tokens_per_s:,.0f} tokens/s in all",
        "preemptions: " + ("unknown" if summary.preemptions is None else f"{summary.preemptions:,}"),
    ]
    if summary.nodes:
        lines.append("per node: " + ", ".join(f"{node} {count:,}" for node, count in summary.nodes.items()))
    return lines


class _Column(msgspec.Struct, frozen=True):
    name: str
    """Two lines: what, and the statistic with its unit."""
    value: Callable[[Summary], float | None]
    show: Callable[[float], str]
    lower_is_better: bool | None = True
    """None: no side is better."""


def three_digits(value: float) -> str:
    """`0.12`, `12.3`, `1,234`."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def milliseconds(value: float) -> str:
    """Three digits, of a value in seconds."""
    return three_digits(value * 1e3)


def _whole(value: float) -> str:
    return f"{value:,.0f}"


_COLUMNS = (
    _Column("TTFT\nmean s", statistic_of("ttft_s", "mean"), three_digits),
    _Column("TTFT\nP99 s", statistic_of("ttft_s", "p99"), three_digits),
    _Column("TPOT\nmean ms", statistic_of("tpot_s", "mean"), milliseconds),
    _Column("E2E\nmean s", statistic_of("e2e_s", "mean"), three_digits),
    _Column("E2E\nP99 s", statistic_of("e2e_s", "p99"), three_digits),
    _Column("tokens/s\nout", lambda s: s.output_tokens_per_s, _whole, lower_is_better=False),
    _Column("pre-\nempted", lambda s: s.preemptions, _whole),
    _Column("decided\nP50 ms", statistic_of("decision_s", "p50"), milliseconds, lower_is_better=None),
)


def comparison_table(runs: Sequence[Run], *, title: str) -> Table:
    """All runs, grouped by rate, the best value of each group in bold green. Fits 80 columns."""
    columns = [c for c in _COLUMNS if any(c.value(run.summary) is not None for run in runs)]
    several_seeds = len({run.seed for run in runs}) > 1
    incomplete = any(run.summary.completed < run.summary.requests for run in runs)
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE, padding=(0, 0, 0, 1))
    table.add_column("\nrate/s", justify="right")
    table.add_column("\npolicy", no_wrap=True)
    if several_seeds:
        table.add_column("\nseed", justify="right")
    if incomplete:
        table.add_column("\ndone", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(column.name, justify="right", no_wrap=True)
    groups: dict[tuple[float | None, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.rate_per_s, run.seed), []).append(run)
    for group in groups.values():
        for position, run in enumerate(group):
            cells: list[str | Text] = [rate_text(_shown_rate(run)) if position == 0 else "", run.policy]
            if several_seeds:
                cells.append(str(run.seed))
            if incomplete:
                cells.append(f"{run.summary.completed:,}/{run.summary.requests:,}")
            cells += [_cell(column, run.summary, group) for column in columns]
            table.add_row(*cells)
        table.add_section()
    return table


def _shown_rate(run: Run) -> float | None:
    return run.summary.offered_rate_per_s if run.rate_per_s is None else run.rate_per_s


def _cell(column: _Column, summary: Summary, group: Sequence[Run]) -> Text:
    value = column.value(summary)
    others = [v for run in group if (v := column.value(run.summary)) is not None]
    text = Text("–" if value is None else column.show(value))
    if value is not None and column.lower_is_better is not None and len(others) > 1 and min(others) < max(others):
        best = min(others) if column.lower_is_better else max(others)
        if value == best:
            text.stylize("bold green")
    return text


def capacity_table(found: Sequence[InterpolatedCapacity]) -> Table:
    """Requests per second per policy and P99-TTFT limit."""
    limits = list(dict.fromkeys(capacity.limit_s for capacity in found))
    table = Table(title="requests/s at a P99 TTFT of", title_justify="left", header_style="bold", box=box.SIMPLE)
    table.add_column("policy", no_wrap=True)
    for limit_s in limits:
        table.add_column(f"{limit_s:g} s", justify="right")
    for policy in dict.fromkeys(capacity.policy for capacity in found):
        own = {c.limit_s: c for c in found if c.policy == policy}
        table.add_row(policy, *(_capacity(own[limit_s]) for limit_s in limits))
    return table


def _capacity(capacity: InterpolatedCapacity) -> str:
    if capacity.rate_per_s is None:
        return "below the lowest rate"
    return f"≥ {capacity.rate_per_s:.1f}" if capacity.is_bound else f"{capacity.rate_per_s:.1f}"


def forecast_table(runs: Sequence[Run]) -> Table:
    """Forecasts at the dispatch against what happened, for the runs that had any."""
    table = Table(
        title="forecast at the dispatch against what happened, in percent",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("policy", "rate", "seed"):
        table.add_column(name, no_wrap=True)
    for name in ("TTFT error\nP50 / P90", "under\np90", "E2E error\nP50 / P90", "bias", "under\np90"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        errors = run.summary.forecasts
        if errors is None or errors.ttft is None or errors.e2e is None:
            continue
        table.add_row(
            run.policy,
            rate_text(run.rate_per_s),
            str(run.seed),
            f"{_percent(errors.ttft.error_p50)} / {_percent(errors.ttft.error_p90)}",
            _percent(errors.ttft.under_p90),
            f"{_percent(errors.e2e.error_p50)} / {_percent(errors.e2e.error_p90)}",
            _percent(errors.e2e.bias),
            _percent(errors.e2e.under_p90),
        )
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"

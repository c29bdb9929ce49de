"""Results as tables for people. Renders, computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from rich.table import Table
from rich.text import Text

from bench.results import Spread, Summary


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One policy at one rate: what a comparison lines up."""

    policy: str
    rate_per_s: float | None
    """As asked for; None when the data set's own arrivals were used."""
    seed: int
    summary: Summary


def seconds(value: float | None) -> str:
    """`12.3 ms`, `0.45 s`, `67.8 s`; a dash for None."""
    if value is None:
        return "–"
    if value < 0.0995:
        return f"{value * 1e3:.3g} ms" if value < 0.01 else f"{value * 1e3:.1f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def rate(value: float | None) -> str:
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
        f"rate offered {rate(summary.offered_rate_per_s)}/s, achieved {rate(summary.achieved_rate_per_s)}/s; "
        f"throughput {summary.throughput_requests_per_s:.2f} answers/s, {summary.output_tokens_per_s:,.0f} output "
        f"tokens/s, {summary.total_tokens_per_s:,.0f} tokens/s in all",
        "preemptions: " + ("unknown" if summary.preemptions is None else f"{summary.preemptions:,}"),
    ]
    if summary.nodes:
        lines.append("per node: " + ", ".join(f"{node} {count:,}" for node, count in summary.nodes.items()))
    return lines


class _Column(msgspec.Struct, frozen=True):
    name: str
    value: Callable[[Summary], float | None]
    show: Callable[[float | None], str]
    lower_is_better: bool | None = True
    """None: no side is better."""


def _of(field: str, statistic: str) -> Callable[[Summary], float | None]:
    def value(summary: Summary) -> float | None:
        spread: Spread | None = getattr(summary, field)
        return None if spread is None else getattr(spread, statistic)

    return value


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


_COLUMNS = (
    _Column("TTFT mean", _of("ttft_s", "mean"), seconds),
    _Column("TTFT P50", _of("ttft_s", "p50"), seconds),
    _Column("TTFT P99", _of("ttft_s", "p99"), seconds),
    _Column("TPOT mean", _of("tpot_s", "mean"), seconds),
    _Column("E2E mean", _of("e2e_s", "mean"), seconds),
    _Column("E2E P99", _of("e2e_s", "p99"), seconds),
    _Column("tokens/s out", lambda s: s.output_tokens_per_s, _count, lower_is_better=False),
    _Column("preempted", lambda s: s.preemptions, _count),
    _Column("decision P50", _of("decision_s", "p50"), seconds, lower_is_better=None),
)


def comparison_table(runs: Sequence[Run], *, title: str) -> Table:
    """All runs, grouped by rate, the best value of each group in bold green."""
    columns = [c for c in _COLUMNS if any(c.value(run.summary) is not None for run in runs)]
    several_seeds = len({run.seed for run in runs}) > 1
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("rate/s", justify="right")
    table.add_column("policy", no_wrap=True)
    if several_seeds:
        table.add_column("seed", justify="right")
    table.add_column("done", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(column.name, justify="right")
    groups: dict[tuple[float | None, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.rate_per_s, run.seed), []).append(run)
    for group in groups.values():
        for position, run in enumerate(group):
            cells: list[str | Text] = [rate(_shown_rate(run)) if position == 0 else "", run.policy]
            if several_seeds:
                cells.append(str(run.seed))
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
    text = Text(column.show(value))
    if value is not None and column.lower_is_better is not None and len(others) > 1 and min(others) < max(others):
        best = min(others) if column.lower_is_better else max(others)
        if value == best:
            text.stylize("bold green")
    return text

"""A fleet's results by group, for people. Renders, computes nothing but means over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from bench.measure.results import FleetPrice, GroupSummary, Run
from bench.show.tables import print_table, rate_text, three_digits


def show_groups(console: Console, runs: Sequence[Run]) -> None:
    """The table by group and the prices, if there is a fleet."""
    if not any(run.groups for run in runs):
        return
    print_table(console, group_table(runs))
    for line in price_lines(runs):
        console.print(line, highlight=False)


def group_table(runs: Sequence[Run]) -> Table:
    """A row per rate, policy and group; means over the seeds."""
    groups = [group for run in runs for group in run.groups]
    several = len({group.model for group in groups}) > 1
    table = Table(
        title="by group",
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    table.add_column("\nrate/s", justify="right")
    for name in ("\npolicy", "\ngroup"):
        table.add_column(name, no_wrap=True)
    if several:
        table.add_column("\nmodel", overflow="fold")
    columns = [(name, value) for name, value in _COLUMNS if any(value(group) is not None for group in groups)]
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    shown_rate: object = ...
    for rate, policy in dict.fromkeys((run.rate_per_s, run.policy) for run in runs):
        own = [run.groups for run in runs if (run.rate_per_s, run.policy) == (rate, policy)]
        for index, over_seeds in enumerate(zip(*own, strict=True)):
            group = over_seeds[0]
            head = [
                rate_text(rate) if index == 0 and rate != shown_rate else "",
                policy if index == 0 else "",
                f"{group.nodes} × {group.name}",
            ]
            cells = [_mean([value(one) for one in over_seeds]) for _, value in columns]
            table.add_row(*head, *([group.model] if several else []), *cells)
        shown_rate = rate
        table.add_section()
    return table


def price_lines(runs: Sequence[Run]) -> list[str]:
    """What the fleet costs, and what each policy makes of it; nothing without prices."""
    priced = [(run, run.price) for run in runs if run.price is not None]
    if not priced:
        return []
    first = priced[0][1]
    note = f" ({first.note})" if first.note else ""
    lines = [f"the fleet costs {first.per_hour:.2f} {first.currency} an hour{note}"]
    for rate, policy in dict.fromkeys((run.rate_per_s, run.policy) for run, _ in priced):
        own = [price for run, price in priced if (run.rate_per_s, run.policy) == (rate, policy)]
        at = "" if rate is None else f" at {rate:g}/s"
        lines.append(
            f"  {policy}{at}: {_price(own, lambda p: p.per_1000_good_answers)} a 1,000 good answers, "
            f"{_price(own, lambda p: p.per_million_output_tokens)} a million output tokens"
        )
    return lines


_COLUMNS: tuple[tuple[str, Callable[[GroupSummary], float | None]], ...] = (
    ("requests\n%", lambda group: 100.0 * group.share),
    ("TTFT\nP99 s", lambda group: None if group.ttft_s is None else group.ttft_s.p99),
    ("E2E\nmean s", lambda group: None if group.e2e_s is None else group.e2e_s.mean),
    ("E2E\nP99 s", lambda group: None if group.e2e_s is None else group.e2e_s.p99),
    ("KV in\nuse %", lambda group: None if group.kv_share is None else 100.0 * group.kv_share),
    ("price\nan hour", lambda group: group.price_per_hour),
)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return three_digits(sum(known) / len(known)) if known else "–"


def _price(prices: Sequence[FleetPrice], value: Callable[[FleetPrice], float | None]) -> str:
    return f"{_mean([value(price) for price in prices])} {prices[0].currency}"

"""Policies against the first of them, seed by seed: how much, how sure, and "no difference" where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from rich import box
from rich.table import Table

from bench.measure.results import Run, Summary, statistic_of
from bench.measure.statistics import Difference, compare_paired

COMPARED: tuple[tuple[str, Callable[[Summary], float | None]], ...] = (
    ("TTFT mean", statistic_of("ttft_s", "mean")),
    ("TTFT P99", statistic_of("ttft_s", "p99")),
    ("TPOT mean", statistic_of("tpot_s", "mean")),
    ("E2E mean", statistic_of("e2e_s", "mean")),
    ("E2E P99", statistic_of("e2e_s", "p99")),
)
"""What is compared; less is better in all."""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One policy against the baseline in one measure at one rate."""

    rate_per_s: float | None
    baseline: str
    policy: str
    measure: str
    difference: Difference
    verdict: str


def differences(runs: Sequence[Run]) -> list[Compared]:
    """Every policy against the first, at every rate, over the seeds that both have."""
    policies = list(dict.fromkeys(run.policy for run in runs))
    found: list[Compared] = []
    for rate in dict.fromkeys(run.rate_per_s for run in runs):
        here = {(run.policy, run.seed): run.summary for run in runs if run.rate_per_s == rate}
        for policy in policies[1:]:
            seeds = sorted(seed for name, seed in here if name == policy and (policies[0], seed) in here)
            for measure, value in COMPARED:
                pairs = [(value(here[policies[0], seed]), value(here[policy, seed])) for seed in seeds]
                known = [(a, b) for a, b in pairs if a is not None and b is not None]
                if not known:
                    continue
                difference = compare_paired([a for a, _ in known], [b for _, b in known])
                found.append(
                    Compared(
                        rate_per_s=rate,
                        baseline=policies[0],
                        policy=policy,
                        measure=measure,
                        difference=difference,
                        verdict=verdict(difference),
                    )
                )
    return found


def verdict(difference: Difference) -> str:
    """For people: `better`, `worse`, `no difference`, or that one seed cannot tell."""
    if difference.relative.low is None:
        return "one seed cannot tell"
    if not difference.is_different:
        return "no difference"
    return "better" if difference.relative.mean < 0 else "worse"


def difference_table(found: Sequence[Compared]) -> Table:
    """As a table that fits 80 columns."""
    baseline = found[0].baseline
    seeds = max(one.difference.count for one in found)
    table = Table(
        title=f"against {baseline}, {seeds} paired seeds: difference, its 95 % interval, effect size (Cohen's d)",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for title in ("rate/s", "policy", "measure", "difference", "95 % interval", "d", "verdict"):
        table.add_column(title, no_wrap=title != "verdict", justify="right" if title in ("difference", "d") else "left")
    last: tuple[float | None, str] | None = None
    for one in found:
        place = (one.rate_per_s, one.policy)
        first = place != last
        last = place
        d = one.difference
        low, high = d.relative.low, d.relative.high
        table.add_row(
            ("–" if one.rate_per_s is None else f"{one.rate_per_s:g}") if first else "",
            one.policy if first else "",
            one.measure,
            f"{d.relative.mean:+.1%}",
            "–" if low is None or high is None else f"{low:+.1%} to {high:+.1%}",
            "–" if d.effect is None else f"{d.effect:+.1f}",
            one.verdict,
        )
    return table

"""The worth of length beliefs as tables and a plot. Renders, computes nothing but means over seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from bench.experiments.length_worth import Scheme, Study

TITLES: dict[Scheme, str] = {
    "min_new_request_latency": "min_new_request_latency",
    "min_total_latency": "min_total_latency",
    "shortest_first": "min_total_latency, held in the gateway, shortest forecast first",
}

_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("P99 TTFT s", "ttft_p99_s", lambda v: f"{v:.2f}"),
    ("mean E2E s", "e2e_mean_s", lambda v: f"{v:.2f}"),
    ("preempted", "preemptions", lambda v: f"{v:.0f}"),
    ("good %", "goodput_share", lambda v: f"{100 * v:.1f}"),
)


def values(study: Study, scheme: Scheme, knowledge: str, load: float, measure: str) -> list[float]:
    """One per seed, in their order."""
    return [
        cell.measures[measure]
        for cell in study.cells
        if (cell.scheme, cell.knowledge, cell.load) == (scheme, knowledge, load)
    ]


def share_of_oracle(study: Study, scheme: Scheme, knowledge: str, measure: str) -> float | None:
    """How much of what the oracle gains over no knowledge this one gains, all loads and seeds together, in the mean;
    None when the oracle gains nothing."""
    loads = loads_of(study)

    def total(name: str) -> float:
        return sum(float(np.mean(values(study, scheme, name, load, measure))) for load in loads)

    gain = total("none") - total("oracle")
    return (total("none") - total(knowledge)) / gain if gain > 0 else None


def schemes_of(study: Study) -> list[Scheme]:
    return list(dict.fromkeys(cell.scheme for cell in study.cells))


def knowledges_of(study: Study) -> list[str]:
    return list(dict.fromkeys(cell.knowledge for cell in study.cells))


def loads_of(study: Study) -> list[float]:
    return list(dict.fromkeys(cell.load for cell in study.cells))


def header(study: Study) -> list[str]:
    loads = [f"{name}, {load:.0%}" for name, _, _ in _COLUMNS for load in loads_of(study)]
    return ["lengths", *loads, "of the oracle's gain, P99 TTFT", "of the oracle's gain, mean E2E"]


def rows(study: Study, scheme: Scheme) -> list[list[str]]:
    """Per knowledge: every measure at every load, the mean over seeds; then its share of the oracle's gain."""
    found = []
    for knowledge in knowledges_of(study):
        cells = [
            show(float(np.mean(values(study, scheme, knowledge, load, measure))))
            for _, measure, show in _COLUMNS
            for load in loads_of(study)
        ]
        shares = [share_of_oracle(study, scheme, knowledge, measure) for measure in ("ttft_p99_s", "e2e_mean_s")]
        found.append([knowledge, *cells, *("-" if s is None else f"{s:.0%}".replace("%", " %") for s in shares)])
    return found


def tables(study: Study) -> list[Any]:
    """One per scheme."""
    found = []
    for scheme in schemes_of(study):
        table = Table(title=TITLES[scheme], title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i, name in enumerate(header(study)):
            table.add_column(name.replace(", ", "\n"), justify="right" if i else "left")
        for row in rows(study, scheme):
            table.add_row(*row)
        found.append(table)
    return found


def caption(study: Study) -> str:
    seeds = len({cell.seed for cell in study.cells})
    return (
        f"{study.nodes} simulated nodes, {study.requests:,} requests a run, {seeds} seeds (means); 100 % is "
        f"{study.capacity_per_s:.2f} requests/s, the highest rate at which min_total_latency with known lengths keeps "
        f"P99 TTFT at {study.slo.ttft_s:g} s. Good: TTFT within {study.slo.ttft_s:g} s and "
        f"{study.slo.tpot_s:g} s a token."
    )


def markdown(study: Study) -> str:
    """All tables, for a document."""
    lines = [caption(study)]
    head = header(study)
    for scheme in schemes_of(study):
        lines += ["", f"**{TITLES[scheme]}**", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        lines += [f"| {' | '.join(row)} |" for row in rows(study, scheme)]
    return "\n".join(lines) + "\n"


def write_plot(path: Path, study: Study) -> None:
    """Mean E2E and P99 TTFT over load, one column per scheme, one line per knowledge."""
    from matplotlib.figure import Figure

    schemes, loads = schemes_of(study), loads_of(study)
    figure = Figure(figsize=(4.2 * len(schemes), 6.5), layout="constrained")
    axes = figure.subplots(2, len(schemes), squeeze=False, sharex=True, sharey="row")
    shown = (("ttft_p99_s", "P99 TTFT, s"), ("e2e_mean_s", "mean E2E, s"))
    for column, scheme in enumerate(schemes):
        for line, (measure, label) in enumerate(shown):
            ax = axes[line][column]
            for knowledge in knowledges_of(study):
                means = [float(np.mean(values(study, scheme, knowledge, load, measure))) for load in loads]
                ax.plot([100 * x for x in loads], means, marker="o", markersize=3, linewidth=1, label=knowledge,
                        **_style(knowledge))  # fmt: skip
            if column == 0:
                ax.set_ylabel(label)
            if line == 0:
                ax.set_title(TITLES[scheme].replace(", held", "\nheld"), loc="left", fontsize=9)
            else:
                ax.set_xlabel("load, % of capacity")
    axes[0][0].legend(frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _style(knowledge: str) -> dict[str, Any]:
    """Known lengths in black, their spoilt copies in grey, models in colour."""
    if knowledge == "oracle":
        return {"color": "black"}
    if knowledge.startswith("oracle"):
        return {"color": "#999999", "linestyle": _DASHES[_error(knowledge)]}
    return {"color": "#cc3311", "linestyle": ":"} if knowledge == "none" else {}


def _error(knowledge: str) -> int:
    return int(knowledge.split()[1].rstrip("%"))


_DASHES: dict[int, Any] = {25: (0, (4, 1)), 50: (0, (4, 3)), 100: (0, (1, 3))}

"""Scaled fleets over time as pictures: nodes, load and latency, a column per run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import ticker
from matplotlib.figure import Figure

from bench.measure.scaling import ScalingCourse
from bench.run.simulated import RunLine
from bench.show.plots import DPI, LOG_FROM, STYLE, frame, name_line, save

MOST_RUNS = 6
"""In one picture."""
_STATES = (("serving", "#0b62c4"), ("draining", "#8c8c8c"), ("starting", "#e69f00"))
_INK, _LOAD, _TTFT, _E2E, _MISSED = "#222222", "#009e73", "#0b62c4", "#7a5195", "#d1495b"


def plot_courses(path: Path, lines: Sequence[RunLine], *, title: str, caption: str) -> None:
    """The first runs that have a scaler, of the first seed of each. Creates the folder. Raises OSError."""
    scaled = [line for line in lines if line.scaling is not None]
    first = min((line.spec.seed for line in scaled), default=0)
    shown = [line for line in scaled if line.spec.seed == first][:MOST_RUNS]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(7.0, 5.2 * len(shown)), 8.4), dpi=DPI, layout="constrained")
        panels: Any = figure.subplots(3, max(1, len(shown)), sharex="col", sharey="row", squeeze=False)
        for column, line in enumerate(shown):
            assert line.scaling is not None, "those without a scaler are left out"
            _nodes(panels[0][column], line.scaling, f"{line.variant}: {_told(line)}")
            _load(panels[1][column], line.scaling)
            _latency(panels[2][column], line.scaling, line.spec.slo_ttft_s)
        handles = [entry for row in range(3) for entry in zip(*panels[row][0].get_legend_handles_labels(), strict=True)]
        figure.legend(
            [handle for handle, _ in handles], [label for _, label in handles], loc="outside lower center", ncols=5
        )
        frame(figure, title, caption)
        save(figure, path)


def _told(line: RunLine) -> str:
    measures = line.measures
    return f"{measures['nodes_mean']:.2f} nodes, {100 * measures['slo_missed_share']:.1f} % missed"


def _minutes(course: ScalingCourse) -> list[float]:
    at_s = course.timeline.at_s
    return [(at - at_s[0]) / 60.0 for at in at_s]


def _nodes(panel: Any, course: ScalingCourse, title: str) -> None:
    minutes, timeline = _minutes(course), course.timeline
    stacked = [timeline.total(state) for state, _ in _STATES]
    below = [0] * len(minutes)
    for (state, colour), counts in zip(_STATES, stacked, strict=True):
        above = [low + n for low, n in zip(below, counts, strict=True)]
        panel.fill_between(minutes, below, above, step="post", color=colour, alpha=0.75, linewidth=0, label=state)
        below = above
    panel.step(minutes, timeline.total("wanted"), where="post", color=_INK, linewidth=1.2, label="wanted")
    panel.set_title(title)
    panel.set_ylabel("nodes")
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))


def _load(panel: Any, course: ScalingCourse) -> None:
    minutes = _minutes(course)
    panel.step(minutes, course.offered_per_s, where="pre", color=_LOAD, linewidth=1.2, label="requests/s offered")
    missed = [rate * (share or 0.0) for rate, share in zip(course.offered_per_s, course.missed_share, strict=True)]
    panel.fill_between(
        minutes, 0, missed, step="pre", color=_MISSED, alpha=0.6, linewidth=0, label="of them beyond the objective"
    )
    panel.set_ylabel("requests/s")
    panel.set_ylim(bottom=0)


def _latency(panel: Any, course: ScalingCourse, limit_s: float) -> None:
    minutes = _minutes(course)
    values: list[float] = []
    for what, series, colour in (("TTFT, P90", course.ttft_p90_s, _TTFT), ("E2E, P90", course.e2e_p90_s, _E2E)):
        known = [(minute, value) for minute, value in zip(minutes, series, strict=True) if value is not None]
        panel.plot([m for m, _ in known], [v for _, v in known], color=colour, linewidth=1.3, label=what)
        values += [value for _, value in known if value > 0]
    if values and max(values) > LOG_FROM * min(values):
        panel.set_yscale("log")
    panel.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _pos: f"{y:g} s"))
    low, high = panel.get_ylim()
    if low < limit_s < high:
        panel.axhline(limit_s, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        name_line(panel, limit_s, f"TTFT limit {limit_s:g} s")
    panel.set_xlabel("minutes")

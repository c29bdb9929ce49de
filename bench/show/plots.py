"""Comparisons as pictures.

Only this, `plots_calibration` and `plots_scaling` import matplotlib; they compute nothing but positions.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import msgspec
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bench.measure.results import Run, Summary, statistic_of
from bench.show.tables import seconds

DPI = 150
SLO_S = (3.0, 10.0)
"""P99 TTFT limits under which the reference systems report capacity."""
LOG_FROM = 6.0
"""Ratio of largest to smallest value from which an axis is logarithmic."""

_COLOURS = {
    "min_total_latency": "#0b62c4",
    "min_new_request_latency": "#56b4e9",
    "llumnix_freeness": "#e69f00",
    "min_total_unprocessed_tokens": "#009e73",
    "infaas": "#cc79a7",
    "least_requests": "#7a5195",
    "power_of_two": "#a05d2c",
    "min_qpm": "#8c8c8c",
    "session": "#5f6b6d",
    "random": "#b0b0b0",
    "round_robin": "#d1495b",
}
"""One colour per policy in every picture; the last resort is grey."""
_GROUP_COLOURS = ("#3b528b", "#21918c", "#5ec962", "#b8860b", "#7a5195", "#8c8c8c")
_MARKERS = "osD^vPX<>*h"
_INK, _FAINT = "#222222", "#d9d9d9"

TITLE_CHARS_PER_INCH = 7
CAPTION_CHARS_PER_INCH = 15
CAPTION_LINE_INCHES = 0.14
"""Of the fonts of titles and captions, on the safe side."""
CAPTION_INCHES, LEGEND_ROW_INCHES = 0.28, 0.32
"""Strips at the bottom that no axes may use."""
LEGEND_COLUMNS = 5
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": _INK,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


class Measure(msgspec.Struct, frozen=True):
    """One panel: what is shown of a summary."""

    title: str
    value: Callable[[Summary], float | None]
    slo: bool = False
    """Whether the P99-TTFT limits belong in the panel."""


MEASURES = (
    Measure("TTFT, 99th percentile", statistic_of("ttft_s", "p99"), slo=True),
    Measure("TTFT, mean", statistic_of("ttft_s", "mean")),
    Measure("E2E, 99th percentile", statistic_of("e2e_s", "p99")),
    Measure("E2E, mean", statistic_of("e2e_s", "mean")),
)


def plot_comparison(path: Path, runs: Sequence[Run], *, title: str, caption: str) -> None:
    """Bars for one rate, curves over several. Creates the folder. Raises OSError."""
    several = len({run.rate_per_s for run in runs}) > 1
    with mpl.rc_context(STYLE):
        if several:
            figure = Figure(figsize=(11, 7.6), dpi=DPI, layout="constrained")
            panels = figure.subplots(2, 2)
            _curves(figure, list(panels.flat), runs)
        else:
            policies = len({run.policy for run in runs})
            figure = Figure(figsize=(11, 1.9 + 0.85 * policies), dpi=DPI, layout="constrained")
            panels = figure.subplots(2, 2, sharey=True)
            _bars(list(panels.flat), runs)
        frame(figure, title, caption)
        save(figure, path)


def plot_demo(path: Path, live: Sequence[Run], simulated: Sequence[Run], *, title: str, caption: str) -> None:
    """The live comparison above, by group below it, then the simulated one."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 12.6), dpi=DPI, layout="constrained")
        parts: Any = figure.subfigures(3, 1, height_ratios=[0.62, 0.36, 1.0])
        above, between, below = parts
        above.suptitle(f"Live: {_scene(live)}", x=0.01, ha="left", fontsize=11, color=_INK)
        between.suptitle("Live, by group", x=0.01, ha="left", fontsize=11, color=_INK)
        _by_group(between, list(between.subplots(1, 2, sharey=True).flat), live)
        below.suptitle(f"Simulated: {_scene(simulated)}", x=0.01, ha="left", fontsize=11, color=_INK)
        _bars(list(above.subplots(2, 2, sharey=True).flat), live)
        _curves(below, list(below.subplots(2, 2).flat), simulated)
        frame(figure, title, caption)
        save(figure, path)


def _scene(runs: Sequence[Run]) -> str:
    nodes = max(len(run.summary.nodes) for run in runs)
    rates = sorted({run.rate_per_s for run in runs if run.rate_per_s is not None})
    at = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}" if rates else "recorded"
    return f"{nodes} nodes, {runs[0].summary.requests:,} requests a run, {at} requests/s"


def _bars(panels: list[Any], runs: Sequence[Run]) -> None:
    """One horizontal bar per policy and panel, the mean over the seeds, with its value written beside it."""
    policies = _policies(runs)
    for panel, measure in zip(panels, MEASURES, strict=True):
        values = [_mean(measure, [r for r in runs if r.policy == policy]) for policy in policies]
        shown = [value or 0.0 for value in values]
        panel.barh(range(len(policies)), shown, color=[_colour(p) for p in policies], height=0.62)
        for position, value in enumerate(values):
            panel.annotate(
                seconds(value), (shown[position], position), xytext=(5, 0), textcoords="offset points", va="center"
            )
        panel.set_yticks(range(len(policies)), policies)
        panel.set_xlim(0, max(shown, default=1.0) * 1.18 or 1.0)
        panel.set_ylim(len(policies) - 0.45, -0.55)
        panel.grid(visible=False, axis="y")
        panel.tick_params(axis="y", length=0)
        panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _pos: f"{x:g} s"))
        panel.set_title(measure.title)


def _by_group(figure: Any, panels: list[Any], runs: Sequence[Run]) -> None:
    """Where each policy sends the requests, and how long they take there; a colour per group."""
    shares, times = panels
    names = [f"{group.nodes} × {group.name}" for group in runs[0].groups]
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        colour = _GROUP_COLOURS[index % len(_GROUP_COLOURS)]
        groups = [run.groups[index] for run in runs]
        before = [sum(group.share for group in run.groups[:index]) for run in runs]
        own = [group.share for group in groups]
        shares.barh(range(len(runs)), own, left=before, color=colour, height=0.62, label=name)
        for position, (left, share) in enumerate(zip(before, own, strict=True)):
            shares.annotate(f"{share:.0%}", (left + share / 2, position), ha="center", va="center", color="white")
        means = [0.0 if group.e2e_s is None else group.e2e_s.mean for group in groups]
        places = [position + (index - (len(names) - 1) / 2) * height for position in range(len(runs))]
        times.barh(places, means, color=colour, height=0.9 * height)
    shares.set_title("share of the requests")
    shares.xaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    times.set_title("E2E, mean")
    times.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _pos: f"{x:g} s"))
    for panel in panels:
        panel.set_yticks(range(len(runs)), [run.policy for run in runs])
        panel.set_ylim(len(runs) - 0.45, -0.55)
        panel.grid(visible=False, axis="y")
        panel.tick_params(axis="y", length=0)
    figure.legend(loc="outside right center")


def _curves(figure: Any, panels: list[Any], runs: Sequence[Run]) -> None:
    """One line per policy over the rate (mean over the seeds), a legend for all panels."""
    policies = _policies(runs)
    for panel, measure in zip(panels, MEASURES, strict=True):
        for index, policy in enumerate(policies):
            own = [r for r in runs if r.policy == policy and r.rate_per_s is not None]
            rates = sorted({r.rate_per_s for r in own if r.rate_per_s is not None})
            points = [(rate, _mean(measure, [r for r in own if r.rate_per_s == rate])) for rate in rates]
            known = [(rate, value) for rate, value in points if value is not None]
            ours = policy == "min_total_latency"
            panel.plot(
                [rate for rate, _ in known],
                [value for _, value in known],
                label=policy,
                color=_colour(policy),
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=5,
                linewidth=2.4 if ours else 1.6,
                zorder=3 if ours else 2,
            )
        _seconds_axis(panel, measure, [value for line in panel.lines for value in line.get_ydata()])
        panel.set_title(measure.title)
        panel.set_xticks(sorted({run.rate_per_s for run in runs if run.rate_per_s is not None}))
        panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _pos: f"{x:g}"))
        panel.set_xlabel("offered requests per second")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(LEGEND_COLUMNS, len(policies)))


def _seconds_axis(panel: Any, measure: Measure, values: Sequence[float]) -> None:
    above_zero = [value for value in values if value > 0]
    if above_zero and max(above_zero) > LOG_FROM * min(above_zero):
        panel.set_yscale("log")
        steps = (1.0, 3.0) if max(above_zero) > 50 * min(above_zero) else (1.0, 2.0, 5.0)
        panel.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=steps, numticks=12))
        panel.yaxis.set_minor_locator(ticker.NullLocator())
    panel.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _pos: f"{y:g} s"))
    if measure.slo:
        low, high = panel.get_ylim()
        for slo_s in SLO_S:
            if low < slo_s < high:
                panel.axhline(slo_s, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
                name_line(panel, slo_s, f"limit {slo_s:g} s")


def name_line(panel: Any, y: float, text: str) -> None:
    """Words at the left end of a horizontal line."""
    panel.annotate(
        text,
        (0.0, y),
        xycoords=panel.get_yaxis_transform(),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=8,
        color=_INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )


def _policies(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.policy for run in runs))


def _colour(policy: str) -> str:
    return _COLOURS.get(policy, "#9a9a9a")


def _mean(measure: Measure, runs: Sequence[Run]) -> float | None:
    values = [value for run in runs if (value := measure.value(run.summary)) is not None]
    return sum(values) / len(values) if values else None


def frame(figure: Figure, title: str, caption: str) -> None:
    """Title, caption and, above the caption, the figure's legend if it has one; nothing goes over the edge."""
    width_inches, height_inches = float(figure.get_figwidth()), float(figure.get_figheight())
    title = textwrap.fill(title, int(width_inches * TITLE_CHARS_PER_INCH))
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", color=_INK)
    lines = textwrap.wrap(caption, int(width_inches * CAPTION_CHARS_PER_INCH))
    foot = 0.2 * CAPTION_INCHES / height_inches
    bottom = (CAPTION_INCHES + CAPTION_LINE_INCHES * max(0, len(lines) - 1)) / height_inches
    figure.text(0.01, foot, "\n".join(lines), ha="left", va="bottom", fontsize=8, color="#666666")
    for legend in figure.legends:
        legend.set_loc("lower center")
        legend.set_bbox_to_anchor((0.5, bottom), transform=figure.transFigure)
        bottom += math.ceil(len(legend.get_texts()) / LEGEND_COLUMNS) * LEGEND_ROW_INCHES / height_inches
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine), "every figure here has a constrained layout"
    engine.set(rect=(0.0, bottom, 1.0, 1.0 - bottom))


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)

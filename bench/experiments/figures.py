"""Figures of experiments, each as PNG and PDF. Computes nothing but positions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure as Canvas

from bench.experiments.fronts import FrontSystem
from bench.experiments.matrix import matrix_of
from bench.experiments.schema import Experiment, Figure, Front, MatrixSpec, Panel, PublishedFile
from bench.experiments.series import by_seed, capacity, curve, select, value_of
from bench.measure.statistics import estimate
from bench.run.simulated import RunLine
from bench.show.plots import DPI, LEGEND_COLUMNS, STYLE, frame

COLOURS = (
    "#0b62c4", "#e69f00", "#d1495b", "#009e73", "#cc79a7", "#56b4e9", "#8c8c8c", "#7a5195", "#a05d2c", "#444444",
    "#9acd32", "#2f4f4f",
)  # fmt: skip
MARKERS = "osD^vPX<>*hd"
DARK_FROM = 0.22
"""Share from which a cell of a heat map is so dark that its text is white."""
WHITE_FROM_RATIO = 1.75
"""The same for a map of settings, as a ratio to the best."""
WIDTH_OF_PANEL, HEIGHT_OF_PANEL = 3.9, 2.9
TITLE_LETTERS, LABEL_LETTERS = 32, 18
"""Letters of a line of a panel's title, and of a bar's name."""


def draw(
    figure: Figure,
    experiment: Experiment,
    lines: Sequence[RunLine],
    folder: Path,
    *,
    caption: str,
    published: PublishedFile | None = None,
) -> list[Path]:
    """Writes NAME.png and NAME.pdf; returns their paths, none when nothing was run for it. Raises OSError."""
    names = figure.variants or [variant.name for variant in experiment.variants]
    names = [name for name in names if select(lines, variant=name, grid=figure.grid)]
    if not names:
        return []
    with mpl.rc_context(STYLE):
        canvas = {
            "curves": _curves,
            "heatmap": _heatmap,
            "course": _courses,
            "settings": _settings,
            "tradeoff": _tradeoff,
        }[figure.kind](figure, experiment, lines, names, published)
        frame(canvas, figure.title, caption)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{figure.name}.png", folder / f"{figure.name}.pdf"]
        for path in paths:
            canvas.savefig(path)
    return paths


def draw_front(front: Front, systems: Sequence[FrontSystem], folder: Path, *, caption: str) -> list[Path]:
    """Writes NAME.png and NAME.pdf of one front, a line per system; what was published is dotted. Raises OSError."""
    if not systems:
        return []
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 4.6), dpi=DPI, layout="constrained")
        axes: Any = canvas.subplots()
        for index, system in enumerate(systems):
            xs, ys = zip(*system.points, strict=True)
            axes.plot(
                xs, ys, label=system.name, color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
                markersize=5, linewidth=2.4 if system.ours else 1.3, linestyle=":" if system.published else "-",
            )  # fmt: skip
        if front.log:
            axes.set_yscale("log")
        axes.set_xlabel(front.x_title)
        axes.set_ylabel(front.y_title)
        axes.legend(fontsize=8)
        frame(canvas, front.title, caption)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{front.name}.png", folder / f"{front.name}.pdf"]
        for path in paths:
            canvas.savefig(path)
    return paths


def _curves(
    figure: Figure,
    experiment: Experiment,
    lines: Sequence[RunLine],
    names: Sequence[str],
    published: PublishedFile | None,
) -> Canvas:
    columns = min(figure.columns, len(figure.panels))
    rows = math.ceil(len(figure.panels) / columns)
    canvas = Canvas(figsize=(WIDTH_OF_PANEL * columns, HEIGHT_OF_PANEL * rows + 0.9), dpi=DPI, layout="constrained")
    panels: list[Any] = list(np.atleast_1d(canvas.subplots(rows, columns)).flat)
    looks = {v.name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, v in enumerate(experiment.variants)}
    ours = {variant.name for variant in experiment.variants if variant.ours}
    for axes, panel in zip(panels, figure.panels, strict=False):
        grid = panel.grid or figure.grid
        if panel.capacity:
            _capacity_bars(axes, panel, lines, names, looks, grid)
            continue
        for name in names:
            points = curve(select(lines, variant=name, grid=grid, at=panel.at), panel.measure, figure.x)
            colour, marker = looks[name]
            xs, ys = [p.x for p in points], [p.value.mean * panel.scale for p in points]
            axes.plot(
                xs, ys, label=name, color=colour, marker=marker, markersize=4, linewidth=2.4 if name in ours else 1.4,
                zorder=3 if name in ours else 2,
            )  # fmt: skip
            low = [(p.value.low if p.value.low is not None else p.value.mean) * panel.scale for p in points]
            high = [(p.value.high if p.value.high is not None else p.value.mean) * panel.scale for p in points]
            if any(a < b for a, b in zip(low, high, strict=True)):
                axes.fill_between(xs, np.maximum(low, 1e-9), high, color=colour, alpha=0.15, linewidth=0)
            _published_points(axes, panel, name, grid, colour, published)
        for other in sorted({p.variant for p in (published.points if published else [])} - set(looks)):
            _published_points(axes, panel, other, grid, "#222222", published)
        _finish(axes, panel, figure.x_title)
    for axes in panels[len(figure.panels) :]:
        axes.set_visible(False)
    drawn = next((axes for axes in panels if axes.get_legend_handles_labels()[0]), None)
    if drawn is not None:
        handles, labels = drawn.get_legend_handles_labels()
        canvas.legend(handles, labels, ncols=min(LEGEND_COLUMNS, columns + 1, len(labels)))
    return canvas


def _published_points(
    axes: Any, panel: Panel, name: str, grid: str, colour: str, published: PublishedFile | None
) -> None:
    theirs = [
        p
        for p in (published.points if published else [])
        if (p.variant, p.measure, p.grid) == (name, panel.measure, grid)
    ]
    if theirs:
        axes.plot(
            [p.x for p in theirs], [p.value * panel.scale for p in theirs], label=f"{name}, published", color=colour,
            linestyle=":", marker="x", markersize=5, linewidth=1.2,
        )  # fmt: skip


def _finish(axes: Any, panel: Panel, x_title: str) -> None:
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1.0, 3.0), numticks=12))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _pos: f"{y:g}"))
        # An interval that reaches below zero has no end on this axis.
        drawn = [y for line in axes.lines for y in line.get_ydata() if y > 0]
        axes.set_ylim(bottom=max(axes.get_ylim()[0], min(drawn, default=1.0) / 2))
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if panel.limit is not None:
        axes.axhline(panel.limit * panel.scale, color="#d1495b", linestyle="--", linewidth=1.0)
    axes.set_title(_wrapped(panel.title))
    axes.set_xlabel(x_title)


def _wrapped(title: str) -> str:
    """On as many lines as the panel's width wants."""
    return textwrap.fill(title, TITLE_LETTERS)


def _capacity_bars(
    axes: Any, panel: Panel, lines: Sequence[RunLine], names: Sequence[str], looks: Any, grid: str
) -> None:
    assert panel.limit is not None, "a capacity is reached at a limit"
    for place, name in enumerate(names):
        found = capacity(select(lines, variant=name, grid=grid, at=panel.at), panel.measure, panel.limit)
        if found is None:
            axes.annotate("none", (0, place), va="center", fontsize=8)
            continue
        errors = None if found.low is None else [[found.mean - found.low], [(found.high or found.mean) - found.mean]]
        axes.barh(place, found.mean, color=looks[name][0], height=0.66, xerr=errors)
        axes.annotate(f"{'≥ ' if found.is_bound else ''}{found.mean:.1f}", (found.mean, place), xytext=(3, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(names)), [textwrap.fill(name, LABEL_LETTERS) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.15)
    axes.set_title(_wrapped(panel.title))


def _heatmap(
    figure: Figure, experiment: Experiment, lines: Sequence[RunLine], names: Sequence[str], _: PublishedFile | None
) -> Canvas:
    """One map per panel and variant; cells are relative to the cell with the least errors."""
    wanted = [(panel, name) for name in names for panel in figure.panels]
    columns = min(figure.columns, len(wanted))
    rows = math.ceil(len(wanted) / columns)
    canvas = Canvas(figsize=(4.2 * columns, 3.6 * rows + 0.8), dpi=DPI, layout="constrained")
    axes_list: list[Any] = list(np.atleast_1d(canvas.subplots(rows, columns)).flat)
    for axes, (panel, name) in zip(axes_list, wanted, strict=False):
        own = select(lines, variant=name, grid=panel.grid or figure.grid, at=panel.at)
        xs = sorted({float(value_of(line, figure.x)) for line in own})
        ys = sorted({float(value_of(line, figure.y)) for line in own})
        table = np.full((len(ys), len(xs)), np.nan)
        for row, y in enumerate(ys):
            for column, x in enumerate(xs):
                here = [li for li in own if value_of(li, figure.x) == x and value_of(li, figure.y) == y]
                values = by_seed(here, panel.measure)
                if values:
                    table[row, column] = estimate(list(values.values())).mean * panel.scale
        shares = table / table[0, 0] - 1.0
        axes.imshow(shares, cmap="RdYlGn_r", vmin=-0.3, vmax=0.3, origin="lower", aspect="auto")
        axes.set_xticks(range(len(xs)), [f"{x:.0%}" for x in xs])
        axes.set_yticks(range(len(ys)), [f"{y:.0%}" for y in ys])
        for row in range(len(ys)):
            for column in range(len(xs)):
                if np.isfinite(table[row, column]):
                    text = f"{table[row, column]:.3g}\n{shares[row, column]:+.1%}"
                    ink = "white" if abs(shares[row, column]) > DARK_FROM else "black"
                    axes.annotate(text, (column, row), ha="center", va="center", fontsize=8, color=ink)
        axes.grid(visible=False)
        axes.set_xlabel(figure.x.replace("_", " "))
        axes.set_ylabel(figure.y.replace("_", " "))
        axes.set_title(f"{panel.title}\n{name}", fontsize=9)
    for axes in axes_list[len(wanted) :]:
        axes.set_visible(False)
    return canvas


def _tradeoff(
    figure: Figure, experiment: Experiment, lines: Sequence[RunLine], names: Sequence[str], _: PublishedFile | None
) -> Canvas:
    """In each panel one marker per variant: the figure's x, a measure, against the panel's."""
    columns = min(figure.columns, len(figure.panels))
    rows = math.ceil(len(figure.panels) / columns)
    canvas = Canvas(figsize=(4.3 * columns, 3.3 * rows + 1.1), dpi=DPI, layout="constrained")
    panels: list[Any] = list(np.atleast_1d(canvas.subplots(rows, columns)).flat)
    for axes, panel in zip(panels, figure.panels, strict=False):
        for index, variant in enumerate(experiment.variants):
            own = select(lines, variant=variant.name, grid=panel.grid or figure.grid, at=panel.at)
            xs, ys = by_seed(own, figure.x), by_seed(own, panel.measure)
            if variant.name not in names or not xs or not ys:
                continue
            axes.scatter(
                estimate(list(xs.values())).mean, estimate(list(ys.values())).mean * panel.scale, label=variant.name,
                color=COLOURS[index % len(COLOURS)], marker=MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
                s=110 if variant.ours else 45, zorder=3 if variant.ours else 2,
            )  # fmt: skip
        if panel.log:
            axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(bottom=0)
        if panel.limit is not None:
            axes.axhline(panel.limit * panel.scale, color="#d1495b", linestyle="--", linewidth=1.0)
        axes.set_title(_wrapped(panel.title))
        axes.set_xlabel(figure.x_title)
    for axes in panels[len(figure.panels) :]:
        axes.set_visible(False)
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    canvas.legend(list(found.values()), list(found), ncols=min(LEGEND_COLUMNS, max(1, len(found))))
    return canvas


def _settings(
    figure: Figure, experiment: Experiment, lines: Sequence[RunLine], names: Sequence[str], _: PublishedFile | None
) -> Canvas:
    """One map per panel; colours go from the best of a column to twice as bad."""
    matrices = [
        matrix_of(experiment, MatrixSpec(title=p.title, measure=p.measure, scale=p.scale, variants=[*names]), lines)
        for p in figure.panels
    ]
    rows, columns = len(matrices[0].rows), len(matrices[0].settings)
    size = (2.4 + 0.72 * columns, (0.9 + 0.26 * rows) * len(matrices) + 1.8)
    canvas = Canvas(figsize=size, dpi=DPI, layout="constrained")
    for axes, matrix in zip(np.atleast_1d(canvas.subplots(len(matrices), 1, sharex=True)), matrices, strict=True):
        ratios = np.array([[c.ratio if c.ratio is not None else np.nan for c in row.cells] for row in matrix.rows])
        axes.imshow(np.log2(ratios), cmap="RdYlGn_r", vmin=-0.15, vmax=1.0, aspect="auto")
        for y, row in enumerate(matrix.rows):
            for x, cell in enumerate(row.cells):
                if cell.value is not None:
                    ink = "white" if (cell.ratio or 1.0) > WHITE_FROM_RATIO else "black"
                    weight = "bold" if cell.is_best else "normal"
                    text = f"{cell.value.mean:.3g}"
                    axes.annotate(text, (x, y), ha="center", va="center", fontsize=7.5, color=ink, weight=weight)
        axes.set_yticks(range(rows), [row.variant for row in matrix.rows], fontsize=8)
        for label, row in zip(axes.get_yticklabels(), matrix.rows, strict=True):
            label.set_fontweight("bold" if row.ours else "normal")
        titles = [textwrap.fill(title, 12) for title in matrix.settings]
        axes.set_xticks(range(columns), titles, fontsize=7.5)
        axes.grid(visible=False)
        axes.set_title(matrix.title)
    return canvas


def _courses(
    figure: Figure, experiment: Experiment, lines: Sequence[RunLine], names: Sequence[str], _: PublishedFile | None
) -> Canvas:
    """Rows: panels, whose measure names a field of `Course`; columns: values of x. One seed, the first."""
    wanted = [line for line in lines if line.variant in names and line.course.request]
    if figure.grid:
        wanted = [line for line in wanted if line.group.partition("/")[2] == figure.grid]
    chosen = figure.panels[0].at.get(figure.x)
    xs = sorted({float(value_of(line, figure.x)) for line in wanted})
    xs = [x for x in xs if chosen is None or x in chosen]
    canvas = Canvas(figsize=(3.2 * max(1, len(xs)), 2.3 * len(figure.panels) + 0.9), dpi=DPI, layout="constrained")
    grid: Any = canvas.subplots(len(figure.panels), max(1, len(xs)), squeeze=False, sharex=True)
    looks = {v.name: COLOURS[i % len(COLOURS)] for i, v in enumerate(experiment.variants)}
    for column, x in enumerate(xs):
        for row, panel in enumerate(figure.panels):
            axes = grid[row, column]
            for name in names:
                here = [line for line in wanted if line.variant == name and float(value_of(line, figure.x)) == x]
                if here:
                    first = min(here, key=lambda line: line.spec.seed)
                    axes.plot(
                        first.course.request, getattr(first.course, panel.measure), color=looks[name], linewidth=1.1,
                        label=name,
                    )  # fmt: skip
            axes.set_ylim(bottom=0)
            axes.set_title(f"{panel.title}, {x:g}/s" if row == 0 else panel.title, fontsize=9)
        grid[-1, column].set_xlabel("requests arrived")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, ncols=min(LEGEND_COLUMNS, max(1, len(labels))))
    return canvas

"""The calibration experiment as a picture. Renders, computes nothing but positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import ticker
from matplotlib.figure import Figure

from bench.profile.calibration import BARS, WINDOW_STEPS, LearningCurve
from bench.show.plots import DPI, STYLE, frame, name_line, save

_INK, _MUTED = "#222222", "#666666"
_COLOURS = ("#0b62c4", "#e69f00", "#d1495b", "#009e73", "#7a5195", "#56b4e9")
_DASHES: tuple[Any, ...] = ("solid", (0, (4, 2)), "solid", (0, (1, 1)), (0, (5, 1, 1, 1)), "solid")
"""Priors that differ in speed only are learned alike: their lines lie on each other and must show through."""
_FIRST_STEP = 1
LEAST_ERROR = 0.01
"""Bottom of the axis unless an error is smaller."""


def plot_calibration(
    path: Path,
    courses: Sequence[LearningCurve],
    *,
    change_at_step: int,
    change: str,
    noise: float,
    title: str,
    caption: str,
) -> None:
    """Error against steps, one line per prior: the first steps on a logarithmic axis, then the change of speed.

    `noise` is the error that no model can get below. Creates the folder. Raises OSError.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 5.6), dpi=DPI, layout="constrained")
        if change_at_step:
            left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.7, 1.0])
            _axis(right, courses)
            _again(right, courses, change_at_step, change)
        else:
            left = figure.subplots()
        _axis(left, courses)
        _from_the_start(left, courses, change_at_step)
        if noise > 0:
            left.axhline(noise, color=_MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
            left.annotate(
                f"{noise:.0%}: the noise itself",
                (0.0, noise),
                xycoords=left.get_yaxis_transform(),
                xytext=(4, -11),
                textcoords="offset points",
                fontsize=8,
                color=_MUTED,
            )
        left.set_ylabel(f"step-time error: median over the next {WINDOW_STEPS} steps")
        left.legend(loc="upper right", title="taken for", alignment="left")
        frame(figure, title, caption)
        save(figure, path)


def _axis(panel: Any, courses: Sequence[LearningCurve]) -> None:
    errors = [e for course in courses for e in course.error if e > 0]
    panel.set_yscale("log")
    panel.set_ylim(min(LEAST_ERROR, 0.9 * min(errors)), 1.4 * max(errors))
    panel.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=20))
    panel.yaxis.set_minor_locator(ticker.NullLocator())
    panel.yaxis.set_major_formatter(ticker.PercentFormatter(xmax=1.0, decimals=0))


def _from_the_start(panel: Any, courses: Sequence[LearningCurve], change_at_step: int) -> None:
    end = (change_at_step or len(courses[0].error)) - WINDOW_STEPS
    panel.set_xscale("log")
    panel.set_xlim(_FIRST_STEP, end)
    for error, within in BARS:
        _bar(panel, error, (_FIRST_STEP, end))
        # What is asked: under the line from this step on.
        if within < end:
            panel.plot([within], [error], marker="v", color=_INK, markersize=7, zorder=4, clip_on=False)
            panel.annotate(
                f"asked by step {within:,}",
                (within, error),
                xytext=(-4, 8),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=_INK,
            )
    for index, course in enumerate(courses):
        # Step n of a line is the model after n steps; a logarithmic axis has no 0.
        steps = range(_FIRST_STEP, min(end, len(course.error)))
        panel.plot(
            steps,
            [course.error[n] for n in steps],
            label=course.prior,
            **_line(index),
        )
    panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _pos: f"{x:,.0f}"))
    panel.set_xlabel("steps learned from")
    panel.set_title("From a wrong prior")


def _again(panel: Any, courses: Sequence[LearningCurve], change_at_step: int, change: str) -> None:
    before = 150
    longest = min(max(len(course.error) for course in courses) - change_at_step, 800)
    panel.set_xlim(-before, longest)
    for error, _ in BARS:
        _bar(panel, error, (-before, longest), named=False)
    panel.axvline(0, color=_INK, linewidth=0.9, linestyle=(0, (1, 2)))
    # The windows before the change look beyond it.
    panel.axvspan(-WINDOW_STEPS, 0, color="#eeeeee", zorder=0, linewidth=0)
    panel.annotate(
        "the next 100 steps of the grey ones\nreach beyond the change".replace("100", str(WINDOW_STEPS)),
        (0, 0.97),
        xycoords=panel.get_xaxis_transform(),
        xytext=(6, 0),
        textcoords="offset points",
        va="top",
        fontsize=8,
        color=_MUTED,
    )
    for index, course in enumerate(courses):
        steps = range(-before, min(longest, len(course.error) - change_at_step))
        panel.plot(
            steps,
            [course.error[change_at_step + n] for n in steps],
            **_line(index),
        )
    panel.set_xlabel("steps since the change")
    panel.set_title(change)


def _line(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "linewidth": 3.0 if index == 0 else 1.7,
        "zorder": 3 if index == 0 else 4,
    }


def _bar(panel: Any, error: float, reach: tuple[float, float], *, named: bool = True) -> None:
    panel.plot(reach, (error, error), color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    if named:
        name_line(panel, error, f"{error:.0%}")

"""Variants in settings: one measure of every variant in every setting, with the best of each column. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bench.experiments.schema import Experiment, MatrixSpec
from bench.experiments.series import by_seed, select
from bench.measure.statistics import Estimate, estimate, text_of
from bench.run.simulated import RunLine

NOTHING = "–"
INCOMPLETE = "†"
NOTE = f"{INCOMPLETE} more than 1 % of the requests got no answer, so this is of the lucky ones and not compared"
COMPLETED_SHARE = 0.99
COUNTS_ALL = frozenset({"goodput_share", "slo_missed_share", "completed_share", "goodput_requests_per_s"})
"""Measures that requests without an answer are part of."""


class MatrixCell(msgspec.Struct, frozen=True, kw_only=True):
    """One variant in one setting."""

    value: Estimate | None
    """Over the seeds, scaled; None when it was not run."""
    text: str
    is_best: bool = False
    """Nobody in this setting is better, as far as the text shows."""
    ratio: float | None = None
    """To the best of the column: above 1 is worse. None where one of the two is 0 or missing."""


class MatrixRow(msgspec.Struct, frozen=True, kw_only=True):
    """One variant in all settings."""

    variant: str
    ours: bool
    cells: list[MatrixCell]


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """A measure of everybody everywhere."""

    title: str
    measure: str
    settings: list[str]
    rows: list[MatrixRow]

    @property
    def note(self) -> str:
        """What a mark in it means; empty when there is none."""
        return NOTE if any(cell.text.endswith(INCOMPLETE) for row in self.rows for cell in row.cells) else ""


def matrix_of(experiment: Experiment, spec: MatrixSpec, lines: Sequence[RunLine]) -> Matrix:
    """Variants and settings without any run are left out."""
    settings = [s for s in experiment.settings if not spec.settings or s.title in spec.settings]
    names = spec.variants or [variant.name for variant in experiment.variants]
    runs = {
        (name, setting.title): select(lines, variant=name, grid=setting.grid, at=setting.at)
        for name in names
        for setting in settings
    }
    values = {place: _value(spec, own) for place, own in runs.items()}
    compared = {place: value if _is_complete(spec, runs[place]) else None for place, value in values.items()}
    shown = [s.title for s in settings if any(values[name, s.title] is not None for name in names)]
    rows = []
    for name in names:
        cells = [
            _cell(spec, values[name, title], compared[name, title], [compared[other, title] for other in names])
            for title in shown
        ]
        if any(cell.value is not None for cell in cells):
            rows.append(MatrixRow(variant=name, ours=experiment.variant(name).ours, cells=cells))
    return Matrix(title=spec.title, measure=spec.measure, settings=shown, rows=rows)


def _value(spec: MatrixSpec, lines: Sequence[RunLine]) -> Estimate | None:
    values = by_seed(lines, spec.measure)
    return estimate([value * spec.scale for value in values.values()]) if values else None


def _is_complete(spec: MatrixSpec, lines: Sequence[RunLine]) -> bool:
    """Whether the measure is of all requests: times are of those that were answered."""
    shares = by_seed(lines, "completed_share").values()
    return spec.measure in COUNTS_ALL or not shares or min(shares) >= COMPLETED_SHARE


def _cell(
    spec: MatrixSpec, value: Estimate | None, compared: Estimate | None, column: Sequence[Estimate | None]
) -> MatrixCell:
    if value is None:
        return MatrixCell(value=None, text=NOTHING)
    text = text_of(value, digits=spec.digits)
    means = [one.mean for one in column if one is not None]
    if compared is None or not means:
        return MatrixCell(value=value, text=f"{text} {INCOMPLETE}")
    best = min(means) if spec.best == "least" else max(means)
    ratio = None
    if value.mean > 0 and best > 0:
        ratio = value.mean / best if spec.best == "least" else best / value.mean
    is_best = f"{value.mean:.{spec.digits}f}" == f"{best:.{spec.digits}f}"
    return MatrixCell(value=value, text=text, is_best=is_best, ratio=ratio)

"""The tables of an experiment: a row per variant, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from bench.experiments.matrix import NOTHING, Matrix
from bench.experiments.schema import Column, Experiment, TableSpec
from bench.experiments.series import by_seed, capacity, select
from bench.measure.statistics import Estimate, estimate, text_of
from bench.run.simulated import RunLine


def cells(experiment: Experiment, table: TableSpec, lines: Sequence[RunLine]) -> list[list[str]]:
    """Rows of text, the first column being the variant; variants that were not run are left out."""
    names = table.variants or [variant.name for variant in experiment.variants]
    rows = []
    for name in names:
        own = [_cell(column, name, lines) for column in table.columns]
        if any(cell != NOTHING for cell in own):
            rows.append([name, *own])
    return rows


def as_markdown(experiment: Experiment, table: TableSpec, lines: Sequence[RunLine]) -> str:
    """One table."""
    head = ["", *(column.title for column in table.columns)]
    out = [f"**{table.title}**", "", _row(head), _row(["---"] * len(head))]
    out += [_row(row) for row in cells(experiment, table, lines)]
    return "\n".join(out) + "\n"


def matrix_as_markdown(matrix: Matrix) -> str:
    """One matrix; the best of each column is bold."""
    out = [f"**{matrix.title}**", "", _row(["", *matrix.settings]), _row(["---"] * (len(matrix.settings) + 1))]
    for row in matrix.rows:
        name = f"**{row.variant}**" if row.ours else row.variant
        out.append(_row([name, *(f"**{cell.text}**" if cell.is_best else cell.text for cell in row.cells)]))
    if matrix.note:
        out += ["", matrix.note]
    return "\n".join(out) + "\n"


def matrix_as_rich(matrix: Matrix) -> Table:
    """The same for a terminal, where the best are bold and green."""
    shown = Table(title=matrix.title, title_justify="left", header_style="bold", box=box.SIMPLE, padding=(0, 1, 0, 0))
    shown.caption, shown.caption_justify = matrix.note or None, "left"
    shown.add_column("", no_wrap=True)
    for setting in matrix.settings:
        shown.add_column(setting, justify="right")
    for row in matrix.rows:
        texts = [Text(cell.text, style="bold green" if cell.is_best else "") for cell in row.cells]
        shown.add_row(Text(row.variant, style="bold" if row.ours else ""), *texts)
    return shown


def as_rich(experiment: Experiment, table: TableSpec, lines: Sequence[RunLine]) -> Table:
    """The same for a terminal."""
    shown = Table(title=table.title, title_justify="left", header_style="bold", box=box.SIMPLE, padding=(0, 1, 0, 0))
    shown.add_column("", no_wrap=True)
    for column in table.columns:
        shown.add_column(column.title, justify="right")
    for row in cells(experiment, table, lines):
        shown.add_row(*row)
    return shown


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _cell(column: Column, variant: str, lines: Sequence[RunLine]) -> str:
    own = select(lines, variant=variant, grid=column.grid, at=column.at)
    if not own:
        return NOTHING
    found: Estimate | None
    if column.limit is not None:
        found = capacity(own, column.measure, column.limit)
        # The limit is passed at the lowest rate that was run already.
        return f"< {_lowest_rate(own):g}" if found is None else text_of(found, digits=column.digits)
    values = by_seed(own, column.measure)
    if not values:
        return NOTHING
    found = estimate([value * column.scale for value in values.values()])
    return text_of(found, digits=column.digits)


def _lowest_rate(lines: Sequence[RunLine]) -> float:
    return min(line.spec.rate_per_s or 0.0 for line in lines)

"""What commands print for people: wide enough for their numbers."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

PLAIN_WIDTH = 100
"""Columns when the output is no terminal."""
_WIDEST = 10_000


def out_console() -> Console:
    """Standard output for people: as wide as the terminal, or PLAIN_WIDTH into files and pipes."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def print_table(console: Console, table: Table, *, prose: bool = False) -> None:
    """A table of numbers in its natural width, wider than the terminal if need be: a number is never cut or folded.

    With `prose` columns that may wrap do, between words, as far as the terminal asks for it.
    """
    needed = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
    if prose:
        needed -= sum(_shrinks_by(column) for column in table.columns if not column.no_wrap)
    width = console.width
    console.width = max(width, needed)
    console.print(table)
    console.width = width


def _shrinks_by(column: Column) -> int:
    """Cells between the longest line of a column and its longest word."""
    texts = [str(Text.from_markup(c) if isinstance(c, str) else c) for c in (column.header, *column.cells)]
    lines = [line for text in texts for line in text.splitlines()]
    words = [word for line in lines for word in line.split()]
    return max(map(cell_len, lines), default=0) - max(map(cell_len, words), default=0)

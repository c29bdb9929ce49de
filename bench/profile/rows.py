"""Reading profile tables: CSV, plain or gzipped, with errors that name file, row and reason."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec


class ProfileTableError(ValueError):
    """A table that cannot be used. The message names file, row (of the file, the header is row 1) and reason."""


class ProfileRow(msgspec.Struct, frozen=True):
    """One data row."""

    file: str
    number: int
    """Line in the file; the header is 1."""
    cells: dict[str, str]

    def fail(self, reason: str) -> ProfileTableError:
        return ProfileTableError(f"{self.file}: row {self.number}: {reason}")

    def integer(self, column: str) -> int:
        """The cell as a whole number; `4096.0` counts as one. Raises `ProfileTableError`."""
        text = self.cells[column]
        try:
            value = float(text)
            if value == int(value):
                return int(value)
        except (ValueError, OverflowError):
            pass
        raise self.fail(f"column {column!r} must be a whole number, found {text!r}")

    def number_or_nan(self, column: str) -> float:
        """The cell as a float; an empty cell is NaN. Raises `ProfileTableError` for other text."""
        text = self.cells[column]
        try:
            return float(text) if text else float("nan")
        except ValueError:
            raise self.fail(f"column {column!r} must be a number, found {text!r}") from None


def read_rows(path: Path, needed: Sequence[str]) -> list[ProfileRow]:
    """All rows of a table that must have the columns `needed` and at least two rows.

    Raises `ProfileTableError` for a file that is missing, empty, cut off, of another layout, or of one row.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    except FileNotFoundError:
        raise ProfileTableError(f"{path}: no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ProfileTableError(f"{path}: cut off or not a CSV ({error})") from None
    except OSError as error:
        raise ProfileTableError(f"{path}: cannot be read ({error.strerror})") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [c for c in needed if c not in (reader.fieldnames or ())]
    if missing:
        found = ", ".join((reader.fieldnames or ["nothing"])[:6])
        raise ProfileTableError(f"{path}: row 1: missing columns {', '.join(missing)} (the header begins: {found})")
    rows = []
    for cells in reader:
        row = ProfileRow(str(path), reader.line_num, cells)
        if None in cells or None in cells.values():
            raise row.fail(f"has not the {len(reader.fieldnames or ())} cells of the header")
        rows.append(row)
    if len(rows) < 2:
        raise ProfileTableError(
            f"{path}: row 2: a table of {len(rows)} row(s) cannot be fitted; two or more are needed"
        )
    return rows

"""What every data set parser yields, and the checks that they share. Pure."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """A data set's usable rows and an account of the others."""

    rows: list[DataRow]
    counts: dict[str, int]
    """What was found, kept, changed and left out: numbers by name, for tests and provenance."""
    notes: list[str]
    """The same for people."""


class BadRows:
    """Decides what becomes of a row that cannot be read: `with bad:` around its reading passes over it, or not."""

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self._found: list[DatasetError] = []

    def __enter__(self) -> BadRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not (self._skip and isinstance(error, DatasetError) and error.row is not None):
            return False
        self._found.append(error)
        return True

    def account(self, parsed: Parsed) -> Parsed:
        """With the rows that were passed over in its notes and counts, if there are any."""
        if not self._found:
            return parsed
        first = self._found[0]
        note = (
            f"{plural(len(self._found), 'row')} that cannot be read left out; the first is row {first.row:,}: "
            f"{first.reason}"
        )
        return msgspec.structs.replace(
            parsed, counts={**parsed.counts, "bad": len(self._found)}, notes=[*parsed.notes, note]
        )


STRICT = BadRows(skip=False)
"""The first row that cannot be read ends the reading."""


def table_rows(lines: Iterable[str], source: str) -> Iterator[tuple[int, list[str]]]:
    """(file row, fields) of a CSV, header included; rows count from 1 and empty lines are passed over."""
    reader = csv.reader(lines)
    try:
        for fields in reader:
            if fields and any(field.strip() for field in fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise DatasetError(
            source, f"not readable as CSV ({error})", row=reader.line_num, mend="Is it a text file with commas?"
        ) from error


def header_of(table: Iterator[tuple[int, list[str]]], source: str, *, expected: str) -> list[str]:
    """The stripped names of the first row. Raises DatasetError on an empty file."""
    first = next(table, None)
    if first is None:
        raise DatasetError(source, "the file is empty", mend=f"Expected a header `{expected}` and rows below it.")
    return [name.strip().lstrip("\ufeff") for name in first[1]]


def check_width(fields: Sequence[str], width: int, source: str, row: int) -> None:
    """Raises DatasetError unless the row has as many fields as the header."""
    if len(fields) != width:
        raise DatasetError(
            source,
            f"{len(fields)} fields where the header has {width}",
            row=row,
            mend="If it is the last row, the file was cut off: fetch it again or delete that row.",
        )


def whole_number(text: str, column: str, source: str, row: int) -> int:
    """A count >= 0; `12.0` is accepted as 12, since some exports write floats."""
    number = finite_number(text, column, source, row)
    if number < 0 or number != int(number):
        raise DatasetError(
            source, f"column `{column}` holds `{text.strip()}`", row=row, mend="It must be a whole number >= 0."
        )
    return int(number)


def finite_number(text: str, column: str, source: str, row: int) -> float:
    """A finite float."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DatasetError(source, f"column `{column}` holds `{text.strip()}`", row=row, mend="It must be a number.")
    return number


def plural(count: int, what: str) -> str:
    """`1 row`, `2 rows`, `1,000 rows`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"

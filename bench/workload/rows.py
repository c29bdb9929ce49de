"""What every data set parser yields: rows, and an account of what became of every row of the file. Pure."""

from __future__ import annotations

import csv
import functools
import itertools
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow

SKIP_BAD = "Or leave such rows out with --skip-bad."
_NOT_UTF8 = "Save it as UTF-8, for example with `iconv -f WINDOWS-1252 -t UTF-8`."
_FOREIGN = re.compile("[\udc80-\udcff]")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)
_LINES_OF_A_CELL = 100
"""A quoted cell that goes on for longer is a stray quote."""
_LARGEST = 2**53
_SAFE_DIGITS = 16
_DATE = re.compile(
    r"(\d{4})[-/](\d\d)[-/](\d\d)[ T](\d\d):(\d\d):(\d\d)([.,]\d+)?\s*(Z|UTC|GMT|([+-])(\d\d):?(\d\d)?)?", re.IGNORECASE
)


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """A data set's usable rows and an account of the others."""

    rows: list[DataRow]
    counts: dict[str, int]
    """What was found, kept, changed and left out: numbers by name, for tests and provenance."""
    notes: list[str]
    """The same for people."""


class Tally:
    """The account of a file: every row of it is kept, left out for a reason, or bad. `with tally:` reads one.

    A bad row (a DatasetError that names its row) ends the reading, or with `skip_bad` is passed over and counted.
    """

    def __init__(self, source: str, *, skip_bad: bool = False) -> None:
        self.source = source
        self.seen = 0
        """Rows of the file so far."""
        self._skip_bad = skip_bad
        self._bad = 0
        self._first_bad: DatasetError | None = None
        self._left_out: dict[str, tuple[int, str, str]] = {}
        self._changed: dict[str, tuple[int, str, str]] = {}

    def __enter__(self) -> Tally:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, DatasetError) or error.row is None:
            return False
        self.bad(error)
        return True

    def bad(self, error: DatasetError) -> None:
        """Counts a row that cannot be read; raises it where such rows are not to be skipped."""
        if not self._skip_bad:
            raise DatasetError(self.source, error.reason, row=error.row, mend=f"{error.mend} {SKIP_BAD}") from error
        self._bad += 1
        self._first_bad = self._first_bad or error

    def leave_out(self, name: str, what: str, *, detail: str = "", rows: int = 1) -> None:
        """Counts rows that could be read and are not used. `what` in the singular: `failed request`."""
        if rows:
            self._left_out[name] = (self._left_out.get(name, (0,))[0] + rows, what, detail)

    def change(self, name: str, what: str, *, detail: str = "", rows: int = 1) -> None:
        """Counts rows that are used otherwise than the file has them."""
        if rows:
            self._changed[name] = (self._changed.get(name, (0,))[0] + rows, what, detail)

    def at_least_one_token(self, prompt_tokens: int) -> int:
        """An engine cannot run an empty prompt: 0 becomes 1, and is counted."""
        if prompt_tokens == 0:
            self.change("prompt_raised_to_1", "prompt", detail="of 0 tokens counted as 1 token")
        return max(1, prompt_tokens)

    def order(self, times_s: Sequence[float]) -> list[int]:
        """Positions of the rows in time order; those that were out of it are counted."""
        latest_s = itertools.accumulate(times_s, max)
        disordered = sum(at_s < latest for at_s, latest in zip(times_s, latest_s, strict=True))
        if not disordered:
            return list(range(len(times_s)))
        self.change("out_of_order", "row", detail="out of time order: sorted", rows=disordered)
        return sorted(range(len(times_s)), key=times_s.__getitem__)

    def timed(self, rows: Sequence[DataRow], row_numbers: Sequence[int], key: str) -> list[DataRow]:
        """In time order, counted from the earliest; as they are where none has an arrival.

        Where some have and others not, those without are bad rows.
        """
        if all(row.arrival_s is None for row in rows):
            return list(rows)
        with_time: list[DataRow] = []
        for row, number in zip(rows, row_numbers, strict=True):
            with self:
                if row.arrival_s is None:
                    mend = f"Others have one: give it to all or to none, or run at a --rate without `{key}`."
                    raise DatasetError(self.source, f"no `{key}`", row=number, mend=mend)
                with_time.append(row)
        times_s = [row.arrival_s or 0.0 for row in with_time]
        first_s = min(times_s)
        return [msgspec.structs.replace(with_time[at], arrival_s=times_s[at] - first_s) for at in self.order(times_s)]

    def account(self) -> list[str]:
        """What became of the rows that are not used as they are, for people."""
        lines = [
            *(f"{plural(n, what)} {detail}".strip() + " left out" for n, what, detail in self._left_out.values()),
            *(f"{plural(n, what)} {detail}".strip() for n, what, detail in self._changed.values()),
        ]
        if self._first_bad is not None:
            first = self._first_bad
            lines.append(
                f"{plural(self._bad, 'row')} that cannot be read left out; the first is row {first.row or 0:,}: "
                f"{first.reason}"
            )
        return lines

    def parsed(self, rows: list[DataRow], *titles: str, empty: str, mend: str, **counts: int) -> Parsed:
        """The rows with their account. Raises DatasetError, with `empty` or the account in it, when there are none."""
        account = self.account()
        left_out = sum(n for n, _, _ in self._left_out.values())
        assert self.seen == len(rows) + left_out + self._bad, "a row left without a reason"
        if not rows:
            reason = f"there are no usable rows: {'; '.join(account)}" if self.seen else empty
            raise DatasetError(self.source, reason, mend=mend)
        numbers = {name: n for name, (n, _, _) in (self._left_out | self._changed).items()}
        if self._bad:
            numbers["bad"] = self._bad
        return Parsed(
            rows=rows,
            counts={**counts, "rows": self.seen, "kept": len(rows), **numbers},
            notes=[*(title for title in titles if title), *account],
        )


class Table:
    """A CSV with a header: fields separated by commas, semicolons, tabs or bars, as its header has them.

    Iterating gives (line, fields) with as many fields as the header. Short rows, and those with a quote that does not
    end, are bad rows of the tally; empty ones are counted too.
    """

    def __init__(self, lines: Iterable[str], tally: Tally, *, expected: str) -> None:
        self._tally = tally
        self._lines = enumerate(lines, start=1)
        self._waiting: deque[tuple[int, str]] = deque()
        first = self._next_line()
        said = None if first is None else _SEPARATOR_LINE.fullmatch(first[1].lstrip("\ufeff"))
        if said is not None:
            first = self._next_line()
        if first is None:
            mend = f"Expected a header `{expected}` and rows below it."
            raise DatasetError(tally.source, "the file is empty", mend=mend)
        line = first[1].lstrip("\ufeff")
        check_utf8(line, tally.source, None)
        self._separator = said[1] if said is not None else _separator_of(line)
        self.header = [name.strip() for name in self._fields(line, tally.source, first[0])]
        """The names as the file has them."""
        self._at = {_plain(name): index for index, name in reversed(list(enumerate(self.header)))}
        name = _SEPARATORS.get(self._separator, f"`{self._separator}`")
        self.note = "" if self._separator == "," else f"its fields are separated by {name}"
        """What is unusual about the layout; empty when nothing is."""

    def find(self, *names: str) -> int | None:
        """Where the column of the first of these names is that there is; case, spaces and `_` do not matter."""
        return next((self._at[_plain(name)] for name in names if _plain(name) in self._at), None)

    def need(self, *names: str, expected: str) -> int:
        """The same, for a column that must be there. Raises DatasetError."""
        at = self.find(*names)
        if at is None:
            shown = self._separator.join(self.header)
            raise DatasetError(
                self._tally.source, f"no column `{names[0]}` in its header `{shown}`", mend=f"Expected `{expected}`."
            )
        return at

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        width, source = len(self.header), self._tally.source
        while (entry := self._next_line()) is not None:
            row, line = entry
            self._tally.seen += 1
            if line.isascii() and '"' not in line:
                # Nearly every row of a million: nothing in it needs a closer look.
                fields = line.rstrip("\r\n").split(self._separator)
                if len(fields) == width and fields[0].strip():
                    yield row, fields
                    continue
            with self._tally:
                check_utf8(line, source, row)
                fields = self._fields(line, source, row)
                if len(fields) > width and not any(field.strip() for field in fields[width:]):
                    fields = fields[:width]
                if not any(field.strip() for field in fields):
                    self._tally.leave_out("empty", "empty row")
                    continue
                if len(fields) != width:
                    raise DatasetError(
                        source,
                        f"{len(fields)} fields where the header has {width}",
                        row=row,
                        mend="If it is the last row, the file was cut off: fetch it again or delete that row.",
                    )
                yield row, fields

    def _next_line(self) -> tuple[int, str] | None:
        while True:
            entry = self._waiting.popleft() if self._waiting else next(self._lines, None)
            if entry is None or entry[1].strip(" \r\n\ufeff"):
                return entry

    def _fields(self, line: str, source: str, row: int) -> list[str]:
        line = line.rstrip("\r\n")
        if '"' not in line:
            return line.split(self._separator)
        try:
            return self._quoted(line)
        except csv.Error as error:
            if joined := self._joined(line):
                return joined
            raise DatasetError(
                source, f"not readable as CSV ({error})", row=row, mend="Is there a quote too many or too few?"
            ) from error

    def _quoted(self, text: str) -> list[str]:
        return next(csv.reader([text], delimiter=self._separator, skipinitialspace=True, strict=True))

    def _joined(self, line: str) -> list[str]:
        """The fields of a row with line breaks in a quoted cell; empty when the quote is a stray one."""
        if line.count('"') % 2 == 0:
            return []
        taken: list[tuple[int, str]] = []
        text = line + "\n"
        while len(taken) < _LINES_OF_A_CELL:
            entry = self._waiting.popleft() if self._waiting else next(self._lines, None)
            if entry is None:
                break
            taken.append(entry)
            text += entry[1]
            if entry[1].count('"') % 2:
                try:
                    fields = self._quoted(text.rstrip("\r\n"))
                except csv.Error:
                    break
                if len(fields) == len(self.header):
                    return fields
                break
        self._waiting.extendleft(reversed(taken))
        return []


class Moments:
    """Reads times, as seconds or as dates, and knows which dates had a time zone."""

    def __init__(self) -> None:
        self._zoned = self._unzoned = 0

    def read_s(self, text: str, column: str, source: str, row: int) -> float:
        """Seconds: as written, or of a date since 1970. A date without a zone is taken as UTC."""
        try:
            number = float(text)
            if math.isfinite(number):
                return number
        except ValueError:
            pass
        match = _DATE.fullmatch(text.strip())
        if match is None:
            if any(mark in text for mark in ":/") or re.match(r"\s*\d{4}-\d", text):
                mend = "It must be a number of seconds or a date like 2023-11-16 18:15:46.6805900."
                raise DatasetError(source, f"column `{column}` holds `{text.strip()}`", row=row, mend=mend)
            return finite_number(text, column, source, row, wanted="a number of seconds, or a date")
        year, month, day, hours, minutes, seconds, fraction, zone, sign, offset_h, offset_min = match.groups()
        try:
            day_s = _day_s(year, month, day)
            if int(hours) > 23 or int(minutes) > 59 or int(seconds) > 60:
                raise ValueError
        except ValueError:
            mend = "There is no such day or time."
            raise DatasetError(source, f"column `{column}` holds `{text.strip()}`", row=row, mend=mend) from None
        offset_s = 0
        if sign is not None:
            offset_s = (1 if sign == "+" else -1) * (3600 * int(offset_h) + 60 * int(offset_min or 0))
        if zone is None:
            self._unzoned += 1
        else:
            self._zoned += 1
        whole_s = day_s + 3600 * int(hours) + 60 * int(minutes) + int(seconds) - offset_s
        return whole_s + float((fraction or "0").replace(",", "."))

    @property
    def note(self) -> str:
        """What was assumed of time zones; empty when nothing was."""
        if not self._unzoned:
            return ""
        if not self._zoned:
            return "its times have no time zone: taken as UTC"
        return f"{self._unzoned:,} of {self._unzoned + self._zoned:,} times have no time zone: taken as UTC"


def check_utf8(text: str, source: str, row: int | None) -> None:
    """Raises DatasetError for bytes that were not UTF-8 (they come as half surrogates)."""
    if not text.isascii() and (found := _FOREIGN.search(text)):
        byte = f"0x{ord(found[0]) - 0xDC00:02x}"
        raise DatasetError(source, f"a byte that is not UTF-8 ({byte})", row=row, mend=_NOT_UTF8)


def whole_number(value: object, column: str, source: str, row: int) -> int:
    """A count >= 0 of a cell or of JSON; `12.0` is accepted as 12, since some exports write floats."""
    if type(value) is int and 0 <= value <= _LARGEST:
        return value
    if type(value) is str and value.isdecimal() and len(value) < _SAFE_DIGITS:
        return int(value)
    number = finite_number(value, column, source, row, wanted="a whole number >= 0")
    if number < 0 or number != int(number) or number > _LARGEST:
        raise DatasetError(
            source, f"column `{column}` holds `{_shown(value)}`", row=row, mend="It must be a whole number >= 0."
        )
    return int(number)


def finite_number(value: object, column: str, source: str, row: int, *, wanted: str = "a number") -> float:
    """A finite float, of a cell or of JSON."""
    number = math.nan
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        empty = value is None or (isinstance(value, str) and not value.strip())
        reason = f"column `{column}` is empty" if empty else f"column `{column}` holds `{_shown(value)}`"
        raise DatasetError(source, reason, row=row, mend=f"It must be {wanted}.")
    return number


def plural(count: int, what: str) -> str:
    """`1 row`, `2 rows`, `1,000 rows`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def plain_names(header: Iterable[str]) -> set[str]:
    """Column names as they are compared: case, spaces and `_` do not matter."""
    return {_plain(name) for name in header}


def columns_of(line: str) -> list[str]:
    """What a CSV's first line would name as its columns."""
    separator = _separator_of(line)
    return [name.strip().strip('"') for name in line.strip().lstrip("\ufeff").split(separator)]


def _shown(value: Any) -> str:
    return str(value).strip()[:60]


def _plain(name: str) -> str:
    return "".join(name.lower().replace("_", " ").split())


def _separator_of(line: str) -> str:
    counts = {mark: line.count(mark) for mark in _SEPARATORS}
    return max(counts, key=counts.__getitem__) if any(counts.values()) else ","


@functools.lru_cache(maxsize=1024)
def _day_s(year: str, month: str, day: str) -> int:
    return int(np.datetime64(f"{year}-{month}-{day}", "s").astype(np.int64))

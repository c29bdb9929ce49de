"""JSON records one by one: the elements of one array, or values one after the other (JSON lines). Pure: text goes in.

What cannot be read is a record of its own that says why, and reading goes on with the next one that can.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

MAX_RECORD_CHARS = 16 * 2**20
"""A record that does not end within this many characters is broken, not cut off. The longest of the public sets has
about 1 M."""

_FIRST_KEY = re.compile(r'\{\s*"((?:[^"\\]|\\.)*)"\s*:')
_NEXT_OBJECT = re.compile(r'[\[,]\s*(?=\{\s*")')
_SPACE = " \t\r\n\ufeff"
_FOREIGN = re.compile("[\udc80-\udcff]")


class JsonRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One record of a file."""

    row: int
    """Counted from 1: the element of the array, or the line on which it begins."""
    value: Any = None
    broken: str = ""
    """Why it cannot be read; empty when it can."""
    cut_off: bool = False
    """The file ends within it."""


class JsonRecords:
    """Feed it the file's text in pieces of any size; it hands out each record as it completes.

    Memory is bounded by one record plus one piece.
    """

    def __init__(self) -> None:
        self.begins_with = ""
        """The first character that is no space; empty until there is one."""
        self.closed = False
        """The array has ended; always for lines."""
        self._json = json.JSONDecoder()
        self._buffer = ""
        self._at = 0
        self._retry_at_chars = 1
        self._row = 0
        self._counted_at = 0
        self._first_key: str | None = None
        self._keys: frozenset[str] = frozenset()
        self._lost = False
        self._recovering = False
        self._ends_within = False

    @property
    def is_array(self) -> bool:
        """Whether the file is one array; known as soon as `begins_with` is."""
        return self.begins_with == "["

    def feed(self, text: str) -> list[JsonRecord]:
        """The records that this piece completes."""
        self._count_lines(self._at)
        self._buffer = self._buffer[self._at :] + text
        self._at = self._counted_at = 0
        # An unfinished record is decoded again only when twice as much of it is there: linear work in total.
        return self._drain(last=False) if len(self._buffer) >= self._retry_at_chars else []

    def finish(self) -> list[JsonRecord]:
        """The last records. What the end cuts off is one of them."""
        records = self._drain(last=True)
        if self.is_array:
            whole = self.closed
        else:
            whole = self._buffer.endswith("\n")
            self.closed = True
        return [msgspec.structs.replace(r, cut_off=False) if whole and r.cut_off else r for r in records]

    def _drain(self, *, last: bool) -> list[JsonRecord]:
        records: list[JsonRecord] = []
        while self._skip_space():
            if self._lost and not self._found_again(last=last):
                break
            start = self._at
            try:
                value, end = self._json.raw_decode(self._buffer, start)
            except json.JSONDecodeError as error:
                unfinished = self._could_go_on(error)
                if unfinished and not last and len(self._buffer) - start <= MAX_RECORD_CHARS:
                    self._retry_at_chars = 2 * (len(self._buffer) - start)
                    break
                self._ends_within = unfinished and last and not self._has_lost_a_quote(error)
                records.append(self._give_up(error.msg, cut_off=unfinished and last))
                continue
            except RecursionError:
                records.append(self._give_up("nested too deeply", cut_off=False))
                continue
            if end == len(self._buffer) and not last and self._buffer[end - 1] not in '}]"':
                self._retry_at_chars = len(self._buffer) - start + 1
                break
            self._retry_at_chars = 1
            if self._recovering and self._keys and not self._is_like_the_others(value):
                # Something within the broken record that begins as records do.
                self._at, self._lost = start + 1, True
                continue
            self._at, self._recovering, self._ends_within = end, False, False
            records.append(self._record(value, start, end))
        return records

    def _record(self, value: Any, start: int, end: int) -> JsonRecord:
        if isinstance(value, dict) and value:
            self._first_key = next(iter(value))
            self._keys = frozenset(value)
        broken = ""
        if not self._buffer.isascii() and (bad := _FOREIGN.search(self._buffer, start, end)):
            broken = f"a byte that is not UTF-8 (0x{ord(bad[0]) - 0xDC00:02x})"
        return JsonRecord(row=self._row_of(start), value=value, broken=broken)

    def _row_of(self, start: int) -> int:
        if self.is_array:
            self._row += 1
            return self._row
        self._count_lines(start)
        return self._row + 1

    def _count_lines(self, end: int) -> None:
        if not self.is_array:
            self._row += self._buffer.count("\n", self._counted_at, end)
            self._counted_at = end

    def _give_up(self, why: str, *, cut_off: bool) -> JsonRecord:
        """Says what is wrong with the record here and moves behind its beginning."""
        found = JsonRecord(row=self._row_of(self._at), broken=f"broken JSON ({why})", cut_off=cut_off)
        self._retry_at_chars = 1
        if self.is_array:
            if first := _FIRST_KEY.match(self._buffer, self._at):
                self._first_key = first[1]
            self._lost = True
            self._at += 1
        else:
            end = self._buffer.find("\n", self._at)
            self._at = len(self._buffer) if end < 0 else end + 1
            # The rest of a line whose end has not come yet is no record either.
            self._lost = end < 0
        return found

    def _is_like_the_others(self, value: Any) -> bool:
        return isinstance(value, dict) and len(self._keys.intersection(value)) >= min(2, len(self._keys))

    def _found_again(self, *, last: bool) -> bool:
        """Moves to the next object that begins as its neighbours do, or behind the broken line."""
        buffer = self._buffer
        if not self.is_array:
            end = buffer.find("\n", self._at)
            self._at = len(buffer) if end < 0 else end + 1
            self._lost = end < 0
            return not self._lost and self._skip_space()
        for found in _NEXT_OBJECT.finditer(buffer, self._at):
            first = _FIRST_KEY.match(buffer, found.end())
            if first is None and not last and len(buffer) - found.end() < 200:
                self._at = found.start()
                self._retry_at_chars = len(buffer) - self._at + 200
                return False
            if first is not None and self._first_key in (None, first[1]):
                self._at, self._lost, self._retry_at_chars = found.end(), False, 1
                self._recovering = True
                return True
        if not last:
            # A beginning may lie across the pieces.
            self._at = max(self._at, len(buffer) - 200)
            self._retry_at_chars = len(buffer) - self._at + 1
            return False
        self.closed = not self._ends_within and buffer.rstrip(_SPACE).endswith("]")
        self._at = len(buffer)
        return False

    def _could_go_on(self, error: json.JSONDecodeError) -> bool:
        """Whether the text is well-formed up to its end: more of it, or a cut there, explains the error.

        A decoder that runs out of text complains at the end of it, at the start of the string it is in, or at the
        start of an unfinished literal or escape (at most 8 characters).
        """
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._buffer.rstrip()) - 8

    def _has_lost_a_quote(self, error: json.JSONDecodeError) -> bool:
        """Whether the end of an array is what a string without an end has swallowed: it could be its own text too."""
        return error.msg.startswith("Unterminated string") and self._buffer.rstrip(_SPACE).endswith("}]")

    def _skip_space(self) -> bool:
        """Moves to the next record; False when there is none (yet)."""
        buffer, at = self._buffer, self._at
        if self.closed:
            self._at = len(buffer)
            return False
        if self._lost and self.is_array:
            # The comma before the next object is what it is found by.
            return at < len(buffer)
        while at < len(buffer) and (buffer[at] in _SPACE or (self.begins_with and buffer[at] == ",")):
            at += 1
        self._at = at
        if at == len(buffer):
            return False
        if not self.begins_with:
            self.begins_with = buffer[at]
            if self.is_array:
                self._at += 1
                return self._skip_space()
        if self.is_array and not self._lost and buffer[at] == "]":
            self.closed = True
            self._at = len(buffer)
            return False
        return True

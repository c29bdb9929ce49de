"""JSON records of a file as rows of an account. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bench.workload.dataset_error import DatasetError
from bench.workload.rows import Tally, finite_number, whole_number
from length_model.core.conversation import encodable
from length_model.core.json_records import JsonRecords


class JsonObject:
    """One object of a file, with checks that name its row and key. Knows which of its keys were asked for."""

    def __init__(self, values: Mapping[str, Any], row: int, source: str) -> None:
        self.row = row
        self._values = values
        self._source = source
        self._known: set[str] = set()

    def key(self, *names: str) -> str | None:
        """The first of these keys that it has with something other than null."""
        self._known.update(names)
        return next((name for name in names if self._values.get(name) is not None), None)

    def has(self, name: str) -> bool:
        """Whether the key is there, whatever it holds."""
        self._known.add(name)
        return name in self._values

    def get(self, name: str) -> Any:
        """The value of a key, None without it."""
        self._known.add(name)
        return self._values.get(name)

    def count(self, *names: str) -> int | None:
        """A whole number >= 0 under the first of these keys; None without. Raises DatasetError."""
        name = self.key(*names)
        return None if name is None else whole_number(self._values[name], name, self._source, self.row)

    def number(self, *names: str) -> float | None:
        """A finite number under the first of these keys; None without. Raises DatasetError."""
        name = self.key(*names)
        return None if name is None else finite_number(self._values[name], name, self._source, self.row)

    def text(self, *names: str) -> str | None:
        """A text under the first of these keys; None without. Raises DatasetError."""
        name = self.key(*names)
        if name is None:
            return None
        value = self._values[name]
        if not isinstance(value, str):
            raise self.error(f"`{name}` holds `{str(value)[:60]}`", mend="It must be a text.")
        return encodable(value)

    def error(self, reason: str, *, mend: str) -> DatasetError:
        """An error of this row, to be raised."""
        return DatasetError(self._source, reason, row=self.row, mend=mend)

    @property
    def unknown(self) -> set[str]:
        """Keys that nobody asked for."""
        return self._values.keys() - self._known


def objects(lines: Iterable[str], tally: Tally, *, expected: str) -> Iterator[JsonObject]:
    """The objects of one array, or of JSON lines; what is no object is a bad row of the tally.

    `lines` may end with their line breaks or without.
    """
    records = JsonRecords()

    def read() -> Iterator[Any]:
        for line in lines:
            yield from records.feed(line if line.endswith("\n") else line + "\n")
        yield from records.finish()

    for record in read():
        tally.seen += 1
        with tally:
            if record.broken or not isinstance(record.value, dict):
                why = record.broken or f"`{str(record.value)[:60]}`"
                raise DatasetError(tally.source, f"not such an object ({why})", row=record.row, mend=expected)
            yield JsonObject(record.value, record.row, tally.source)


def unused(keys: set[str]) -> str:
    """A note on keys that were not looked at; empty without any."""
    return f"keys not used: {encodable(', '.join(sorted(keys)))}" if keys else ""

"""A look at how a file begins, for whoever has to say what it is."""

from __future__ import annotations

import re

import msgspec

from bench.workload.rows import columns_of
from length_model.core.json_records import JsonRecords

_MOST_RECORDS = 50
_KEY = re.compile(r'"(\w+)"\s*:')


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of a file; at most one of the two is not empty."""

    columns: list[str]
    """What a table names in its first line."""
    keys: list[set[str]]
    """Those of its first JSON objects."""


def head_of(text: str) -> Head:
    """`text` is what the file begins with; it may end anywhere."""
    start = text.lstrip("\ufeff \t\r\n")
    if start[:1] not in ("{", "["):
        lines = (line for line in start.splitlines() if not line.lower().startswith("sep="))
        return Head(columns=columns_of(next(lines, "")), keys=[])
    found = [record.value for record in JsonRecords().feed(start)[:_MOST_RECORDS]]
    keys = [set(value) for value in found if isinstance(value, dict)]
    # Without a whole record the first is longer than the text: its own keys are among all that stand there.
    return Head(columns=[], keys=keys or [set(_KEY.findall(start))])

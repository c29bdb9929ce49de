"""JSON records one by one: an array or lines, in pieces of any size; what is broken is named and the rest goes on."""

from __future__ import annotations

from typing import Any

import pytest

from length_model.core.json_records import JsonRecord, JsonRecords

GOOD = '{"id": "%d", "turns": [{"id": "within"}, {"from": "gpt", "value": "a,{\\"id\\": 1}"}]}'


def read(text: str, piece_chars: int) -> tuple[list[JsonRecord], bool]:
    reader = JsonRecords()
    found: list[JsonRecord] = []
    for at in range(0, len(text), piece_chars):
        found += reader.feed(text[at : at + piece_chars])
    found += reader.finish()
    return found, reader.closed


def told(records: list[JsonRecord]) -> list[Any]:
    """Row and value, or `bad` or `cut`."""
    return [(r.row, "cut" if r.cut_off else "bad" if r.broken else r.value) for r in records]


@pytest.mark.parametrize("piece_chars", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize(
    ("text", "records", "closed"),
    [
        ("[1, 22]", [(1, 1), (2, 22)], True),
        ('[{"a": 1},\n {"a": 2}', [(1, {"a": 1}), (2, {"a": 2})], False),
        ('[{"a": 1}, {"a": [2, {"b', [(1, {"a": 1}), (2, "cut")], False),
        ('[{"a": 1}, {"a": [2]', [(1, {"a": 1}), (2, "cut")], False),
        ('[{"a": 1}, {"a": ["b]', [(1, {"a": 1}), (2, "cut")], False),
        ('[{"a": 1}, {"a": "b}]', [(1, {"a": 1}), (2, "bad")], True),
        ('{"a": 1}\n\n{"a": 2}\r\n', [(1, {"a": 1}), (3, {"a": 2})], True),
        ('{"a":\n 1}{"a": 2}\n{"a": 3}', [(1, {"a": 1}), (2, {"a": 2}), (3, {"a": 3})], True),
        ('{"a": 1}\n{"b\n{"a": 2}\n', [(1, {"a": 1}), (2, "bad"), (3, {"a": 2})], True),
        ('{"a": [1,\n{"a": 2}\n', [(1, "bad"), (2, {"a": 2})], True),
        ('{"a": 1}\n{"a": 2, "b', [(1, {"a": 1}), (2, "cut")], True),
        ("a,b\n1,2\n", [(1, "bad"), (2, 1), (2, 2)], True),
        ('\ufeff[{"a": "\udce9"}, {"a": 1}]', [(1, "bad"), (2, {"a": 1})], True),
        ("", [], True),
        ("[]", [], True),
        ("[", [], False),
    ],
)
def test_records_of_arrays_and_lines(text: str, records: list[Any], closed: bool, piece_chars: int) -> None:
    found, is_closed = read(text, piece_chars)
    assert told(found) == records
    assert is_closed == closed


@pytest.mark.parametrize("piece_chars", [1, 5, 10_000])
@pytest.mark.parametrize(
    "broken",
    [
        '{"id": oops}',
        '{"id": "3", "turns": [{"from": "gpt", "value": "no end}',
        '{"id": "3", "turns": [',
        '{"id": "3" "turns": [{"id": "3", "x": 1}]}',
    ],
)
def test_a_broken_element_costs_itself_alone(broken: str, piece_chars: int) -> None:
    text = f"[{GOOD % 1},\n{broken},\n{GOOD % 4}, {GOOD % 5}]"
    found, closed = read(text, piece_chars)
    assert [r.value["id"] for r in found if not r.broken and "turns" in r.value] == ["1", "4", "5"]
    assert [r.row for r in found if r.broken][:1] == [2]
    assert closed

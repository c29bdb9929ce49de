"""Azure and Mooncake traces: what is kept, and everything that can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from bench.workload.azure import parse_azure
from bench.workload.dataset_error import DatasetError
from bench.workload.mooncake import parse_mooncake
from bench.workload.rows import Parsed

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"


def mooncake(*entries: dict[str, object]) -> Parsed:
    return parse_mooncake([json.dumps(entry) for entry in entries], "m.jsonl")


def entry(timestamp: float, tokens: int = 1024, output: int = 5, ids: tuple[int, ...] = ()) -> dict[str, object]:
    return {"timestamp": timestamp, "input_length": tokens, "output_length": output, "hash_ids": ids}


def test_azure_2023_times_have_seven_digits() -> None:
    parsed = parse_azure([AZURE, "2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109"], "a.csv")
    first, second = parsed.rows
    assert (first.prompt_tokens, first.output_tokens, first.arrival_s) == (374, 44, 0.0)
    assert second.arrival_s == pytest.approx(4.3145790, abs=1e-6)


def test_azure_2024_times_have_an_offset() -> None:
    parsed = parse_azure([AZURE, "2024-05-10 00:00:00.009930+00:00,2162,5", "2024-05-10 01:00:01+01:00,7,8"], "a.csv")
    assert [row.arrival_s for row in parsed.rows] == pytest.approx([0.0, 0.99007])


def test_azure_rows_out_of_order_are_sorted_and_empty_answers_left_out() -> None:
    lines = [AZURE, "2023-11-16 18:00:09,1,1", "2023-11-16 18:00:08,2,0", "2023-11-16 18:00:07,0,3"]
    parsed = parse_azure(lines, "a.csv")
    assert [(row.prompt_tokens, row.arrival_s) for row in parsed.rows] == [(1, 0.0), (1, 2.0)]
    assert parsed.counts["no_output"] == 1


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "the file is empty"),
        ([AZURE], "no usable rows"),
        (["TIMESTAMP,ContextTokens", "1,2"], "no column `GeneratedTokens`"),
        ([AZURE, "2023-11-16 18:00:09,1,1", "yesterday,1,1"], "row 3: column `TIMESTAMP` holds `yesterday`"),
        ([AZURE, "2023-13-16 18:00:09,1,1"], "row 2: column `TIMESTAMP`"),
        ([AZURE, "2023-11-16 18:00:09,x,1"], "row 2: column `ContextTokens` holds `x`"),
        ([AZURE, "2023-11-16 18:00:09,1"], "row 2: 2 fields"),
    ],
)
def test_bad_azure_files_name_file_row_and_reason(lines: list[str], reason: str) -> None:
    with pytest.raises(DatasetError) as raised:
        parse_azure(lines, "a.csv")
    assert "a.csv" in str(raised.value)
    assert reason in str(raised.value)


def test_mooncake_rows_carry_their_shared_blocks() -> None:
    parsed = mooncake(entry(0, 1000, 7, (3, 4)), entry(1500, 600, 8, (3, 9)))
    assert parsed.rows[0].prefix_ids == (3, 4)
    assert parsed.rows[0].prefix_block_tokens == 512
    assert [row.arrival_s for row in parsed.rows] == [0.0, 1.5]


def test_requests_of_one_moment_are_spread_until_the_next() -> None:
    parsed = mooncake(*(entry(0) for _ in range(3)), entry(3000), entry(3000), entry(6000))
    assert [row.arrival_s for row in parsed.rows] == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.5, 6.0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: e.update(input_length="x"), "column `input_length` holds `x`"),
        (lambda e: e.pop("input_length"), "no `input_length`"),
        (lambda e: e.update(timestamp=-1), "a negative time"),
        (lambda e: e.update(output_length=-1), "column `output_length` holds `-1`"),
        (lambda e: e.update(hash_ids=[1, 2, 3]), "3 hash ids for a prompt of 1,024 tokens"),
        (lambda e: e.update(output_length=0), "no usable rows"),
    ],
)
def test_bad_mooncake_lines_name_the_reason(change: Callable[[dict[str, object]], object], reason: str) -> None:
    bad = entry(0)
    change(bad)
    with pytest.raises(DatasetError) as raised:
        mooncake(bad)
    assert "m.jsonl" in str(raised.value)
    assert reason in str(raised.value)

"""Data sets as people have them: no row leaves without a reason, whatever its order, layout or state."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence

import pytest

from bench.workload.azure import parse_azure
from bench.workload.burstgpt import parse_burstgpt
from bench.workload.dataset_error import DatasetError
from bench.workload.jsonl import parse_jsonl
from bench.workload.lengths import parse_lengths
from bench.workload.mooncake import parse_mooncake
from bench.workload.rows import Parsed
from bench.workload.sharegpt import ShareGptReader, ShareGptReport

BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
LENGTHS = "arrived_at,num_prefill_tokens,num_decode_tokens"


def burstgpt_row(at_s: object, prompt: object, output: object) -> str:
    return f"{at_s},ChatGPT,{prompt},{output},9,API log"


def azure_row(at_s: object, prompt: object, output: object) -> str:
    when = f"2023-11-16 18:{at_s // 60:02d}:{at_s % 60:02d}" if isinstance(at_s, int) else at_s
    return f"{when},{prompt},{output}"


def lengths_row(at_s: object, prompt: object, output: object) -> str:
    return f"{at_s},{prompt},{output}"


def mooncake_row(at_s: object, prompt: object, output: object) -> str:
    time_ms = at_s * 1000 if isinstance(at_s, int) else at_s
    return json.dumps({"timestamp": time_ms, "input_length": prompt, "output_length": output})


def jsonl_row(at_s: object, prompt: object, output: object) -> str:
    return json.dumps({"arrival_s": at_s, "prompt_tokens": prompt, "output_tokens": output})


def parse_plain_jsonl(lines: Sequence[str], source: str, *, skip_bad: bool = False) -> Parsed:
    return parse_jsonl(lines, source, count_tokens=len, default_output_tokens=7, skip_bad=skip_bad)


Row = Callable[[object, object, object], str]
KINDS: dict[str, tuple[list[str], Row, Callable[..., Parsed]]] = {
    "burstgpt": ([BURSTGPT], burstgpt_row, parse_burstgpt),
    "azure": ([AZURE], azure_row, parse_azure),
    "lengths": ([LENGTHS], lengths_row, parse_lengths),
    "mooncake": ([], mooncake_row, parse_mooncake),
    "jsonl": ([], jsonl_row, parse_plain_jsonl),
}
TABLES = [name for name, (header, _, _) in KINDS.items() if header]
NOT_LEFT_OUT = {"rows", "kept", "version", "moments", "out_of_order", "prompt_raised_to_1"}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_any_order_are_all_kept_sorted_and_counted_from_the_earliest(kind: str) -> None:
    header, row, parse = KINDS[kind]
    parsed = parse([*header, *(row(at_s, at_s, 20) for at_s in (118, 5, 45, 45))], "f")
    assert [r.prompt_tokens for r in parsed.rows] == [5, 45, 45, 118]
    arrivals = [r.arrival_s for r in parsed.rows]
    assert (arrivals[0], arrivals[1], arrivals[3]) == (0.0, 40.0, 113.0)
    assert "3 rows out of time order: sorted" in parsed.notes


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_kept_left_out_or_bad(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    header, row, parse = KINDS[kind]
    cells: Sequence[object] = [0, 1, 2, 3, 17, 0, "nan", "", None, "x", -4, 2.5]
    rows = [row(rng.randrange(500), rng.choice(cells), rng.choice(cells)) for _ in range(200)]
    rows.append(row(3, 4, 5))
    try:
        parsed = parse([*header, *rows], "f", skip_bad=True)
    except DatasetError as error:
        raise AssertionError(f"refused in spite of skip_bad: {error}") from error
    left_out = sum(count for name, count in parsed.counts.items() if name not in NOT_LEFT_OUT)
    assert parsed.counts["rows"] == len(rows)
    assert parsed.counts["kept"] == len(parsed.rows)
    assert len(parsed.rows) + left_out == len(rows)
    for count in (count for name, count in parsed.counts.items() if name not in ("version", "moments")):
        assert any(f"{count:,} " in note for note in parsed.notes) or count in (len(rows), len(parsed.rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("cell", "says"), [("", "is empty"), ("NaN", "holds `NaN`"), ("1e400", "holds `1e400`")])
def test_a_cell_without_a_number_names_row_column_and_way_out(kind: str, cell: str, says: str) -> None:
    header, row, parse = KINDS[kind]
    lines = [*header, row(0, 5, 6), row(1, cell, 6), row(2, 7, 8)]
    bad_row = 2 + len(header)
    with pytest.raises(DatasetError) as raised:
        parse(lines, "f")
    assert raised.value.row == bad_row
    assert says in str(raised.value)
    assert "column `" in str(raised.value)
    assert "--skip-bad" in str(raised.value)
    parsed = parse(lines, "f", skip_bad=True)
    assert [r.prompt_tokens for r in parsed.rows] == [5, 7]
    assert parsed.counts["bad"] == 1
    assert any(f"1 row that cannot be read left out; the first is row {bad_row}" in note for note in parsed.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_rows_alone_are_an_error_that_says_why(kind: str) -> None:
    header, row, parse = KINDS[kind]
    with pytest.raises(DatasetError, match="1 row that cannot be read left out; the first is row"):
        parse([*header, row(0, "x", 6)], "f", skip_bad=True)


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_other_separators_are_read_and_said(kind: str, separator: str, name: str) -> None:
    header, row, parse = KINDS[kind]
    lines = [line.replace(",", separator) for line in (*header, row(0, 5, 6), row(1, 7, 8))]
    for start in ([], [f"sep={separator}\n"]):
        parsed = parse([*start, *lines], "f")
        assert [r.prompt_tokens for r in parsed.rows] == [5, 7]
        assert f"its fields are separated by {name}" in parsed.notes


@pytest.mark.parametrize("kind", TABLES)
def test_a_stray_quote_costs_its_own_row(kind: str) -> None:
    header, row, parse = KINDS[kind]
    lines = [*header, row(0, 5, 6), row(1, '"7', 8), row(2, 9, 10), row(3, '"11"', 12), row(4, '1"3', 14)]
    parsed = parse(lines, "f", skip_bad=True)
    assert [r.prompt_tokens for r in parsed.rows] == [5, 9, 11]
    assert parsed.counts["bad"] == 2


def test_a_quoted_cell_may_hold_line_breaks_and_separators() -> None:
    header = "prompt,num_prefill_tokens,num_decode_tokens\r\n"
    parsed = parse_lengths([header, '"a, ""b""\n', "\n", 'c",5,6\n', "d,7,8\n"], "f")
    assert [(r.prompt_tokens, r.output_tokens) for r in parsed.rows] == [(5, 6), (7, 8)]


def test_column_names_may_be_written_otherwise_and_stand_anywhere() -> None:
    lines = ["\ufeffindex,response_tokens, REQUEST TOKENS ,timestamp", "0,6,5,1.5", ",,,", "1,8,7,2.5,,", ""]
    parsed = parse_burstgpt(lines, "f")
    assert [(r.prompt_tokens, r.output_tokens, r.arrival_s) for r in parsed.rows] == [(5, 6, 0.0), (7, 8, 1.0)]
    assert parsed.counts["empty"] == 1
    assert "1 empty row left out" in parsed.notes


def test_what_lies_outside_of_a_slice_is_counted() -> None:
    parsed = parse_burstgpt([BURSTGPT, *(burstgpt_row(t, 1, 2) for t in (9, 3, 5, 7))], "f", start_s=1, duration_s=4)
    assert [r.arrival_s for r in parsed.rows] == [2.0, 4.0]
    assert parsed.counts["outside"] == 2
    assert "2 rows outside of the slice left out" in parsed.notes


def test_a_slice_of_failed_requests_says_that_they_failed() -> None:
    with pytest.raises(DatasetError, match="2 failed requests"):
        parse_burstgpt(
            [BURSTGPT, burstgpt_row(0, 1, 0), burstgpt_row(1, 1, 0), burstgpt_row(9, 1, 2)], "f", duration_s=5
        )


@pytest.mark.parametrize("kind", TABLES)
def test_bytes_that_are_not_utf8_name_row_and_remedy(kind: str) -> None:
    header, row, parse = KINDS[kind]
    lines = [*header, row(0, 5, 6), row(1, "\udcfc", 8)]
    with pytest.raises(DatasetError, match=r"row 3: a byte that is not UTF-8 \(0xfc\).*iconv.*--skip-bad"):
        parse(lines, "f")
    assert parse(lines, "f", skip_bad=True).counts["bad"] == 1


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(
    ("times", "seconds", "note"),
    [
        (("2024-05-10 00:00:01", "2024-05-10T00:00:02.5"), 1.5, "its times have no time zone: taken as UTC"),
        (("2024-05-10 00:00:01Z", "2024-05-10 02:00:02+02"), 1.0, ""),
        (("2024/05/10 00:00:01 UTC", "2024-05-10 00:00:04"), 3.0, "1 of 2 times have no time zone: taken as UTC"),
    ],
)
def test_what_was_assumed_of_time_zones_is_said(kind: str, times: Sequence[str], seconds: float, note: str) -> None:
    header, row, parse = KINDS[kind]
    parsed = parse([*header, *(row(time, 1, 2) for time in times)], "f")
    assert parsed.rows[-1].arrival_s == pytest.approx(seconds)
    assert [line for line in parsed.notes if "zone" in line] == ([note] if note else [])


@pytest.mark.parametrize("time", ["2024-02-30 00:00:00", "2024-05-10 25:00:00", "10.05.2024 00:00", "inf"])
def test_a_time_that_is_none_is_named(time: str) -> None:
    with pytest.raises(DatasetError, match="column `arrived_at` holds"):
        parse_lengths([LENGTHS, lengths_row(time, 1, 2)], "f")


# --- JSON layouts -----------------------------------------------------------------------------------------------------


def test_vllms_custom_data_set() -> None:
    parsed = parse_plain_jsonl(['{"prompt": "abc", "output_tokens": 5}', '{"prompt": "defg", "id": 3}'], "f")
    assert [(r.prompt, r.prompt_tokens, r.output_tokens) for r in parsed.rows] == [("abc", 3, 5), ("defg", 4, 7)]
    assert parsed.notes == [
        "2 requests from JSON records, prompts under `prompt`",
        "keys not used: id",
        "1 row without `output_tokens`: 7 each",
    ]


def test_records_of_one_array_with_counts_as_pandas_writes_them() -> None:
    rows = [{"prompt_len": 3.0, "output_len": 4.0}, {"prompt": [1, 2, 3, 4], "output_tokens": "6"}]
    parsed = parse_plain_jsonl([json.dumps(rows, indent=1)], "f")
    assert [(r.prompt_tokens, r.output_tokens) for r in parsed.rows] == [(3, 4), (4, 6)]


def test_an_answer_that_is_there_is_counted() -> None:
    (row,) = parse_plain_jsonl(['{"question": "why", "answer": "because"}'], "f").rows
    assert (row.prompt, row.output_tokens) == ("why", 7)


def test_arrivals_are_for_all_or_none() -> None:
    lines = [jsonl_row(1, 2, 3), jsonl_row(None, 4, 5), jsonl_row(0, 6, 7)]
    with pytest.raises(DatasetError, match=r"f, row 2: no `arrival_s`.*--skip-bad"):
        parse_plain_jsonl(lines, "f")
    assert [r.prompt_tokens for r in parse_plain_jsonl(lines, "f", skip_bad=True).rows] == [6, 2]
    assert parse_plain_jsonl(lines[1:2], "f").rows[0].arrival_s is None


def test_aiperfs_traces_may_hold_texts_and_no_times() -> None:
    lines = ['{"text_input": "abc", "output_length": 20}', '{"text_input": "de", "session_id": 4, "delay": 5}']
    parsed = parse_mooncake(lines, "f", default_output_tokens=9)
    assert [(r.prompt, r.prompt_tokens, r.output_tokens) for r in parsed.rows] == [("abc", 3, 20), ("de", 2, 9)]
    assert [r.session for r in parsed.rows] == ["", "4"]
    assert all(r.arrival_s is None for r in parsed.rows)
    assert "keys not used: delay" in parsed.notes
    assert "1 row without `output_length`: 9 each" in parsed.notes


def test_mooncake_as_one_array() -> None:
    rows = [{"timestamp": at, "input_length": 600, "output_length": 5, "hash_ids": [0, at]} for at in (3000, 0)]
    parsed = parse_mooncake(json.dumps(rows, indent=2).splitlines(), "f")
    assert [(r.arrival_s, r.prefix_ids) for r in parsed.rows] == [(0.0, (0, 0)), (3.0, (0, 3000))]


def test_bailians_ids_stand_for_sixteen_tokens_and_its_times_are_seconds() -> None:
    row = {"chat_id": 1, "parent_chat_id": -1, "input_length": 40, "output_length": 5, "hash_ids": [1, 2, 3]}
    parsed = parse_mooncake([json.dumps(row | {"timestamp": at}) for at in (61.5, 62.0)], "f")
    assert [r.arrival_s for r in parsed.rows] == [0.0, 0.5]
    assert {r.prefix_block_tokens for r in parsed.rows} == {16}
    assert any("seconds" in note and "16 tokens" in note for note in parsed.notes)


# --- ShareGPT ---------------------------------------------------------------------------------------------------------

GOOD = {"id": "g", "conversations": [{"from": "human", "value": "why"}, {"from": "gpt", "value": "because"}]}
MESSAGES = {"id": "m", "messages": [{"role": "user", "content": "who"}, {"role": "assistant", "content": "you"}]}


def read_sharegpt(text: str, *, skip_bad: bool = False) -> tuple[list[str], ShareGptReport]:
    reader = ShareGptReader("s", skip_bad=skip_bad)
    pairs = reader.feed(text)
    rest, report = reader.finish()
    assert report.conversations == len(pairs) + len(rest) + report.empty + report.without_pair
    return [pair.prompt for pair in pairs + rest], report


@pytest.mark.parametrize("join", [lambda rows: json.dumps(rows), lambda rows: "\n".join(map(json.dumps, rows))])
def test_sharegpt_as_array_and_as_lines_with_either_spelling(join: Callable[[list[object]], str]) -> None:
    prompts, report = read_sharegpt(join([GOOD, MESSAGES]))
    assert prompts == ["why", "who"]
    assert not report.cut_off


@pytest.mark.parametrize(
    "bad",
    [
        {"from": "human", "value": None},
        {"from": "human"},
        {"value": "x"},
        None,
        "text",
        {"from": 3, "value": "x"},
    ],
)
def test_a_bad_turn_costs_at_most_its_conversation(bad: object) -> None:
    talk = {"id": "b", "conversations": [bad, {"from": "gpt", "value": "?"}]}
    late = {"id": "l", "conversations": [*GOOD["conversations"], bad]}
    prompts, report = read_sharegpt(json.dumps([GOOD, talk, late]))
    assert prompts == ["why", "why"]
    assert (report.without_pair, report.bad_turns) == (1, 2)
    assert "2 turns without a role or a text passed over" in report.notes(len(prompts))
    assert "1 conversation without an answered human turn left out" in report.notes(len(prompts))


@pytest.mark.parametrize("bad", [{"id": "x"}, {"id": "x", "conversations": None}, {"conversations": []}])
def test_a_conversation_without_turns_is_passed_over_and_counted(bad: object) -> None:
    prompts, report = read_sharegpt(json.dumps([bad, GOOD]))
    assert prompts == ["why"]
    assert report.empty == 1


@pytest.mark.parametrize("bad", ["3", "null", '"text"', '{"id": oops}', '{"id": "x", "conversations": [{"from": '])
def test_a_broken_conversation_is_named_and_can_be_skipped(bad: str) -> None:
    text = f"[{json.dumps(GOOD)}, {bad}, {json.dumps(GOOD)}, {json.dumps(GOOD)}]"
    with pytest.raises(DatasetError, match=r"s, row 2: .*--skip-bad"):
        read_sharegpt(text)
    prompts, report = read_sharegpt(text, skip_bad=True)
    assert prompts == ["why", "why", "why"]
    assert report.bad == 1
    assert any("1 conversation that cannot be read left out; the first is number 2" in n for n in report.notes(2))


def test_parts_of_a_message_are_its_text() -> None:
    parts = [
        {"type": "text", "text": "what is "},
        {"type": "image_url", "image_url": {}},
        {"type": "text", "text": "it"},
    ]
    talk = {"messages": [{"role": "user", "content": parts}, MESSAGES["messages"][1]]}
    assert read_sharegpt(json.dumps([talk]))[0] == ["what is it"]


def test_what_is_quoted_of_a_file_can_always_be_printed() -> None:
    with pytest.raises(DatasetError) as raised:
        parse_plain_jsonl(['{"prompt": ["\\ud800"]}'], "f")
    str(raised.value).encode()
    for note in parse_plain_jsonl(['{"prompt": "a\\ud800", "b\\ud800": 1}'], "f").notes:
        note.encode()
    with pytest.raises(DatasetError) as raised:
        read_sharegpt("\udcc9")
    str(raised.value).encode()

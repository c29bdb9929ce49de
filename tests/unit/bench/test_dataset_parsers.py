"""Data set parsers: both BurstGPT versions, length tables, JSON lines, and everything that can be wrong with them."""

from __future__ import annotations

import json
import pickle

import pytest

from bench.workload.burstgpt import parse_burstgpt
from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow
from bench.workload.jsonl import parse_jsonl
from bench.workload.lengths import parse_lengths
from bench.workload.rows import Parsed
from bench.workload.sharegpt import ShareGptReader

V1 = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
V2 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"


def burstgpt_v1(*times_s: float) -> list[str]:
    return [V1, *(f"{t},ChatGPT,{10 + i},{20 + i},{30 + 2 * i},API log" for i, t in enumerate(times_s))]


def jsonl(*lines: str) -> Parsed:
    return parse_jsonl(lines, "f.jsonl", count_tokens=lambda text: len(text.split()), default_output_tokens=50)


# --- BurstGPT ---------------------------------------------------------------------------------------------------------


def test_version_1_rows_count_from_the_first_one() -> None:
    parsed = parse_burstgpt([V1, "5,ChatGPT,472,18,490,Conversation log", "45,GPT-4,1087,230,1317,API log"], "b.csv")
    assert parsed.rows == [
        DataRow(prompt_tokens=472, output_tokens=18, arrival_s=0.0),
        DataRow(prompt_tokens=1087, output_tokens=230, arrival_s=40.0),
    ]


def test_version_2_has_sessions() -> None:
    lines = [V2, "5.5,17,1.25,ChatGPT,472,18,490,Conversation log", "6.0,,0.5,GPT-4,3,4,7,API log"]
    parsed = parse_burstgpt(lines, "b.csv")
    assert [row.session for row in parsed.rows] == ["17", ""]
    assert parsed.rows[1] == DataRow(prompt_tokens=3, output_tokens=4, arrival_s=0.5)
    assert parsed.counts["version"] == 2


def test_failed_requests_are_left_out_and_counted() -> None:
    parsed = parse_burstgpt([V1, "1,ChatGPT,5,0,5,API log", "2,ChatGPT,5,6,11,API log"], "b.csv")
    assert len(parsed.rows) == 1
    assert parsed.rows[0].arrival_s == 1.0
    assert parsed.counts["failed"] == 1
    assert "1 failed request (0 response tokens) left out" in parsed.notes


def test_a_time_slice_is_half_open() -> None:
    parsed = parse_burstgpt(burstgpt_v1(100, 110, 120, 130), "b.csv", start_s=10, duration_s=20)
    assert [row.arrival_s for row in parsed.rows] == [10.0, 20.0]


def test_a_row_slice_reads_no_further() -> None:
    lines = [*burstgpt_v1(0, 1, 2, 3), "this row is broken"]
    parsed = parse_burstgpt(lines, "b.csv", first_row=2, max_rows=2)
    assert [row.arrival_s for row in parsed.rows] == [1.0, 2.0]


def test_rows_out_of_order_are_sorted_and_counted() -> None:
    parsed = parse_burstgpt(burstgpt_v1(0, 5, 3), "b.csv")
    assert [row.arrival_s for row in parsed.rows] == [0.0, 3.0, 5.0]
    assert "1 row out of time order: sorted" in parsed.notes


@pytest.mark.parametrize(
    ("lines", "row", "says"),
    [
        ([], None, "the file is empty"),
        (["", "  "], None, "the file is empty"),
        ([V1], None, "there are no rows below the header"),
        (["time,model,tokens", "1,2,3"], None, "its header is `time,model,tokens`"),
        ([V1, "1,ChatGPT,5"], 2, "3 fields where the header has 6"),
        ([V1, "1,ChatGPT,5,6,11,API log", "x,ChatGPT,5,6,11,API log"], 3, "column `Timestamp` holds `x`"),
        ([V1, "1,ChatGPT,-5,6,1,API log"], 2, "column `Request tokens` holds `-5`"),
        ([V1, "1,ChatGPT,5,6.5,1,API log"], 2, "column `Response tokens` holds `6.5`"),
        ([V1, "nan,ChatGPT,5,6,1,API log"], 2, "column `Timestamp` holds `nan`"),
    ],
)
def test_broken_burstgpt_is_one_clear_error(lines: list[str], row: int | None, says: str) -> None:
    with pytest.raises(DatasetError) as caught:
        parse_burstgpt(lines, "b.csv")
    assert says in str(caught.value)
    assert str(caught.value).startswith("b.csv")
    assert caught.value.row == row
    assert caught.value.mend


def test_an_empty_slice_says_so() -> None:
    with pytest.raises(DatasetError, match="none of its 2 rows falls into the slice"):
        parse_burstgpt(burstgpt_v1(0, 1), "b.csv", start_s=100)


# --- length tables ----------------------------------------------------------------------------------------------------


def test_lengths_keep_file_order_and_mend_empty_prompts() -> None:
    parsed = parse_lengths(["num_prefill_tokens,num_decode_tokens,pd_ratio", "7,9,1.2", "0,3,0", "5,0,0"], "l.csv")
    assert [(r.prompt_tokens, r.output_tokens) for r in parsed.rows] == [(7, 9), (1, 3)]
    assert parsed.counts == {"rows": 3, "kept": 2, "prompt_raised_to_1": 1, "no_output": 1}
    assert "1 prompt of 0 tokens counted as 1 token" in parsed.notes


def test_lengths_take_predictions_and_arrivals_where_there_are_any() -> None:
    header = "arrived_at,num_prefill_tokens,num_decode_tokens,num_predicted_decode_tokens"
    parsed = parse_lengths([header, "2.5,7,9,11", "2.0,1,2,3"], "l.csv")
    assert parsed.rows == [
        DataRow(prompt_tokens=1, output_tokens=2, predicted_output_tokens=3, arrival_s=0.0),
        DataRow(prompt_tokens=7, output_tokens=9, predicted_output_tokens=11, arrival_s=0.5),
    ]
    assert "1 row out of time order: sorted" in parsed.notes


def test_lengths_of_splitwise_are_under_its_own_names() -> None:
    header = "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size"
    parsed = parse_lengths([header, "0,2,0,0.5,1,7,9"], "l.csv")
    assert parsed.rows == [DataRow(prompt_tokens=7, output_tokens=9, arrival_s=0.0)]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "the file is empty"),
        (["prompt,output", "1,2"], "no column `num_prefill_tokens`"),
        (["num_prefill_tokens,num_decode_tokens"], "no usable rows"),
        (["num_prefill_tokens,num_decode_tokens", "1"], "1 fields where the header has 2"),
        (["num_prefill_tokens,num_decode_tokens", "1,two"], "column `num_decode_tokens` holds `two`"),
    ],
)
def test_broken_lengths_are_one_clear_error(lines: list[str], says: str) -> None:
    with pytest.raises(DatasetError, match=r"l\.csv") as caught:
        parse_lengths(lines, "l.csv")
    assert says in str(caught.value)


# --- JSON lines -------------------------------------------------------------------------------------------------------


def test_json_lines_of_both_kinds() -> None:
    parsed = jsonl('{"workload": "tell me more"}', "", '{"prompt_tokens": 12, "output_tokens": 34, "session": "s"}')
    assert parsed.rows == [
        DataRow(prompt_tokens=3, output_tokens=50, prompt="tell me more"),
        DataRow(prompt_tokens=12, output_tokens=34, session="s"),
    ]
    assert "1 row without `output_tokens`: 50 each" in parsed.notes


@pytest.mark.parametrize(
    ("lines", "row", "says"),
    [
        ([], None, "the file is empty"),
        (['{"workload": "a"}', '{"worklo'], 2, "not such an object"),
        (["[1, 2]"], 1, "not such an object"),
        (['{"propmt": "a"}'], 1, "neither `workload` nor `prompt_tokens`"),
        (['{"prompt": "a"}', '{"prompt": null}'], 2, "neither `workload` nor `prompt_tokens`"),
        (['{"prompt_tokens": NaN, "output_tokens": 4}'], 1, "column `prompt_tokens` holds `nan`"),
        (['{"prompt_tokens": 4, "output_tokens": "x"}'], 1, "column `output_tokens` holds `x`"),
        (["{}"], 1, "neither `workload` nor `prompt_tokens`"),
        (['{"workload": "a", "prompt_tokens": 1}'], 1, "both"),
        (['{"workload": ""}'], 1, "the prompt is empty"),
        (['{"prompt_tokens": 3}'], 1, "`prompt_tokens` without `output_tokens`"),
        (['{"prompt_tokens": 0, "output_tokens": 4}'], 1, "the prompt is empty"),
        (['{"prompt_tokens": 3, "output_tokens": 0}'], 1, "an output length below 1 token"),
    ],
)
def test_broken_json_lines_are_one_clear_error(lines: list[str], row: int | None, says: str) -> None:
    with pytest.raises(DatasetError) as caught:
        jsonl(*lines)
    assert says in str(caught.value)
    assert caught.value.row == row


# --- ShareGPT (cuts at arbitrary bytes: tests/property/test_workload_sharegpt.py) -------------------------------------


def sharegpt(text: str) -> ShareGptReader:
    reader = ShareGptReader("s.json")
    reader.feed(text)
    return reader


def conversation(*turns: tuple[str, str]) -> dict[str, object]:
    return {"id": "c", "conversations": [{"from": role, "value": text} for role, text in turns]}


def test_the_first_answered_human_turn_is_taken() -> None:
    talk = conversation(("gpt", "welcome"), ("human", ""), ("gpt", "?"), ("user", "why"), ("chatgpt", "because"))
    reader = ShareGptReader("s.json")
    pairs = reader.feed(json.dumps([talk, conversation(), conversation(("human", "alone"))]))
    rest, report = reader.finish()
    assert [(p.prompt, p.answer) for p in pairs + rest] == [("why", "because")]
    assert (report.conversations, report.empty, report.without_pair, report.cut_off) == (3, 1, 1, False)


def test_half_surrogates_become_question_marks() -> None:
    reader = ShareGptReader("s.json")
    pairs = reader.feed('[{"conversations":[{"from":"human","value":"a\\ud83d"},{"from":"gpt","value":"b"}]}]')
    assert pairs[0].prompt == "a?"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("   ", "no JSON array begins"),
        ('{"id": 1}', "none of its objects has a list `conversations`"),
        ("a,b", "it begins with `a`"),
        ("[1, 2]", "`1` where a conversation should begin"),
        ("[]", "no complete conversation"),
        ('[{"id": "c", "conversations": [', "no complete conversation"),
        ('[{"id": "c", "items": []}]', "none of its objects has a list `conversations`"),
        ('[{"conversations": [{"speaker": "user", "content": "x"}]}]', "none of its turns has a role and a text"),
    ],
)
def test_broken_sharegpt_is_one_clear_error(text: str, says: str) -> None:
    with pytest.raises(DatasetError) as caught:
        sharegpt(text).finish()
    assert says in str(caught.value)


def test_broken_json_in_the_middle_names_the_conversation() -> None:
    good = json.dumps(conversation(("human", "a"), ("gpt", "b")))
    with pytest.raises(DatasetError, match=r"s\.json, row 2: broken JSON"):
        sharegpt(f'[{good}, {{"id": oops}}, {good}]').finish()


@pytest.mark.parametrize("row", [None, 7])
def test_errors_of_worker_processes_arrive_whole(row: int | None) -> None:
    error = DatasetError("mine.csv", "no rows", mend="Add some.", row=row)
    arrived = pickle.loads(pickle.dumps(error))
    assert str(arrived) == str(error)
    assert (arrived.source, arrived.reason, arrived.mend, arrived.row) == ("mine.csv", "no rows", "Add some.", row)

from __future__ import annotations

import json
from typing import Any

import pytest

from length_model.query import samples_from_conversations
from length_model.sharegpt import answered_turns, parse_conversations

GOOD: list[dict[str, Any]] = [
    {
        "id": "abc_0",
        "conversations": [
            {"from": "human", "value": "hello"},
            {"from": "gpt", "value": "hi there"},
            {"from": "human", "value": "and?"},
            {"from": "human", "value": "go on"},
            {"from": "gpt", "value": "well well well"},
        ],
    },
    {"id": "abc_5", "conversations": [{"from": "gpt", "value": "as I said"}, {"from": "user", "value": ""}]},
    {"id": "def", "conversations": []},
]


def words(text: str) -> int:
    return len(text.split())


def test_conversations_are_read_and_parts_know_their_root() -> None:
    found = list(parse_conversations(json.dumps(GOOD)))
    assert [c.conversation_id for c in found] == ["abc_0", "abc_5"]
    assert {c.root_id for c in found} == {"abc"}
    assert list(answered_turns(found[0])) == [0, 3]


@pytest.mark.parametrize("cut", range(20, 400, 37))
def test_a_cut_off_file_gives_what_is_complete(cut: int) -> None:
    text = json.dumps(GOOD * 3)
    whole = list(parse_conversations(text))
    try:
        found = list(parse_conversations(text[:cut]))
    except ValueError:
        assert cut < len(json.dumps(GOOD[0])) + 2
    else:
        assert found == whole[: len(found)]


@pytest.mark.parametrize("text", ["", "{}", "hello", "[1, 2]", '[{"id": 1}]', "[nonsense"])
def test_what_is_no_sharegpt_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not ShareGPT JSON"):
        list(parse_conversations(text))


def test_samples_hold_the_question_its_past_and_the_answer_length() -> None:
    samples = list(samples_from_conversations(parse_conversations(json.dumps(GOOD)), words, scope="all", model="m"))
    by_id = {s.sample_id: s for s in samples}
    assert by_id.keys() == {"abc_0:0", "abc_0:3"}
    assert by_id["abc_0:0"].output_tokens == 2
    assert by_id["abc_0:0"].query.history == ()
    assert by_id["abc_0:3"].output_tokens == 3
    assert [t.text for t in by_id["abc_0:3"].query.history] == ["hello", "hi there", "and?"]
    assert {s.group for s in samples} == {"abc"}


def test_duplicates_long_answers_and_talkative_conversations_are_held_back() -> None:
    def sample_ids(**options: int) -> list[str]:
        raw = [*GOOD, {**GOOD[0], "id": "copy"}]
        found = samples_from_conversations(
            parse_conversations(json.dumps(raw)), words, scope="all", model="m", **options
        )
        return sorted(s.sample_id for s in found)

    assert sample_ids() == ["abc_0:0", "abc_0:3"]
    assert sample_ids(max_output_tokens=2) == ["abc_0:0"]
    assert len(sample_ids(per_conversation=1)) in (1, 2)


def test_the_first_question_alone_has_no_past() -> None:
    (only,) = samples_from_conversations(parse_conversations(json.dumps(GOOD)), words, scope="first", model="m")
    assert only.sample_id == "abc_0:0"
    assert only.query.request_class == "first_turn"


def test_half_surrogates_become_question_marks() -> None:
    text = '[{"id": "x", "conversations": [{"from": "human", "value": "a \\ud800 b"}]}]'
    (found,) = parse_conversations(text)
    assert found.turns[0].text == "a ? b"

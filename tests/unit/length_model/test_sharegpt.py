from __future__ import annotations

import json
from typing import Any

import pytest

from length_model.core.conversation import Conversation, answered_turns
from length_model.core.query import samples_from_conversations
from length_model.sharegpt import ConversationReader, ShareGptError

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


def parse(text: str) -> list[Conversation]:
    reader = ConversationReader()
    found = reader.feed(text)
    return found + reader.finish()[0]


def words(text: str) -> int:
    return len(text.split())


def test_conversations_are_read_and_parts_know_their_root() -> None:
    found = parse(json.dumps(GOOD))
    assert [c.conversation_id for c in found] == ["abc_0", "abc_5", "def"]
    assert [c.root_id for c in found] == ["abc", "abc", "def"]
    assert [list(answered_turns(c)) for c in found] == [[0, 3], [], []]


@pytest.mark.parametrize("text", ["", "{}", "hello", "[1, 2]", '[{"id": 1}]', "[nonsense", '[{"conversations": [3]}]'])
def test_what_is_no_sharegpt_is_refused(text: str) -> None:
    with pytest.raises(ShareGptError):
        parse(text)


def test_samples_hold_the_question_its_past_and_the_answer_length() -> None:
    samples = list(samples_from_conversations(parse(json.dumps(GOOD)), words, scope="all", model="m"))
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
        found = samples_from_conversations(parse(json.dumps(raw)), words, scope="all", model="m", **options)
        return sorted(s.sample_id for s in found)

    assert sample_ids() == ["abc_0:0", "abc_0:3"]
    assert sample_ids(max_output_tokens=2) == ["abc_0:0"]
    assert len(sample_ids(per_conversation=1)) in (1, 2)


def test_the_first_question_alone_has_no_past() -> None:
    (only,) = samples_from_conversations(parse(json.dumps(GOOD)), words, scope="first", model="m")
    assert only.sample_id == "abc_0:0"
    assert only.query.request_class == "first_turn"


def test_half_surrogates_become_question_marks() -> None:
    text = '[{"id": "x", "conversations": [{"from": "human", "value": "a \\ud800 b"}]}]'
    (found,) = parse(text)
    assert found.turns[0].text == "a ? b"

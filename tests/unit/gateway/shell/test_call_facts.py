"""What is read from bodies that are handed on: enough to place them, and nothing that refuses them."""

from __future__ import annotations

import gzip
from typing import Any, get_args

import orjson
import pytest

from gateway.core.events import Slo
from gateway.http.bodies import client_request, completion_body
from gateway.intake.call_facts import (
    MEDIA_TOKENS,
    READ_BYTES,
    CallFacts,
    estimated_tokens,
    facts_of,
    said_in_headers,
    written_out,
)
from gateway.intake.call_paths import CallKind
from gateway.intake.denied import Denied


def read(kind: CallKind, body: Any, **headers: str) -> CallFacts:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return facts_of(kind, {name.replace("_", "-"): value for name, value in headers.items()}, data)


TOOL = {"type": "function", "function": {"name": "f", "description": "d"}}


def test_a_chat_of_text_is_one_for_the_template_with_its_tools() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]},
        {"role": "tool", "content": "42"},
    ]
    facts = read("chat", {"model": "m", "messages": messages, "tools": [TOOL], "n": 2, "seed": 1})
    assert [(turn.role, turn.content) for turn in facts.turns] == [
        ("system", "be brief"), ("user", "a\nb"), ("assistant", '[{"id":1}]'), ("tool", "42"),
    ]  # fmt: skip
    assert (facts.tools, facts.prompt.texts) == ([TOOL], [])
    assert written_out(facts) == [orjson.dumps(TOOL).decode(), "be brief", "a\nb", '[{"id":1}]', "42"]
    assert (facts.model, facts.answers, facts.max_output_tokens, facts.question) == ("m", 2, None, "42")


@pytest.mark.parametrize(
    "tools",
    [[{"type": "function"}], [TOOL, {"name": "f", "input_schema": {}}], [TOOL, 5], [{"function": {"name": ""}}]],
)
def test_tools_that_no_template_takes_are_counted_as_they_are_written(tools: list[Any]) -> None:
    facts = read("chat", {"messages": [{"role": "user", "content": "hi"}], "tools": tools})
    assert facts.tools == []
    assert facts.prompt.texts == [orjson.dumps(tool).decode() for tool in tools if isinstance(tool, dict)]


@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
def test_whether_an_answer_may_call_a_tool(kind: CallKind) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "input": "hi"}
    assert not read(kind, body).offers_tools
    assert not read(kind, {**body, "tools": []}).offers_tools
    assert not read(kind, {**body, "tools": [TOOL], "tool_choice": "none"}).offers_tools
    for tools in ([TOOL], [{"type": "web_search"}]):
        assert read(kind, {**body, "tools": tools, "tool_choice": "auto"}).offers_tools


def test_without_a_conversation_for_the_template_tools_are_text() -> None:
    facts = read("responses", {"input": "hi", "tools": [TOOL]})
    assert (facts.tools, facts.prompt.texts) == ([], ["hi", orjson.dumps(TOOL).decode()])


def test_pictures_have_a_share_and_leave_the_template_aside() -> None:
    parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "data:" + "A" * 100}}]
    facts = read("chat", {"messages": [{"role": "user", "content": parts}]})
    assert (facts.turns, facts.prompt.texts, facts.prompt.media_tokens) == ([], ["what?"], MEDIA_TOKENS["image"])


@pytest.mark.parametrize(
    ("prompt", "texts", "ids", "answers"),
    [
        ("a", ["a"], 0, 1),
        (["a", "b"], ["a", "b"], 0, 2),
        ([1, 2, 3], [], 3, 1),
        ([[1, 2], [3]], [], 3, 2),
        ({"odd": 1}, ['{"odd":1}'], 0, 1),
        (7, [], 0, 1),
    ],
)
def test_prompts_of_completions(prompt: Any, texts: list[str], ids: int, answers: int) -> None:
    facts = read("completions", {"prompt": prompt})
    assert (facts.prompt.texts, len(facts.prompt.token_ids), facts.answers) == (texts, ids, answers)
    assert facts.max_output_tokens == 16


@pytest.mark.parametrize("limit", [5, 5.0, "5"])
def test_limits_are_read_as_engines_read_them(limit: Any) -> None:
    assert read("chat", {"messages": [], "max_completion_tokens": limit, "max_tokens": 9}).max_output_tokens == 5
    assert read("responses", {"input": "x", "max_output_tokens": limit}).max_output_tokens == 5
    assert read("messages", {"system": "s", "max_tokens": limit}).max_output_tokens == 5


@pytest.mark.parametrize("limit", [True, [], "many", -1, 1e400])
def test_limits_that_are_none_are_not_known(limit: Any) -> None:
    body = b'{"messages": [], "max_tokens": 1e400}' if limit == 1e400 else {"messages": [], "max_tokens": limit}
    assert read("chat", body).max_output_tokens is None


def test_what_is_done_in_one_step_has_one_token() -> None:
    facts = read("pooled", {"query": "q", "documents": ["a", {"text": "b"}], "max_tokens": 50})
    assert (facts.prompt.texts, facts.max_output_tokens, facts.answers) == (["q", "a", "b"], 1, 1)
    assert read("light", {"prompt": "x" * 100}).prompt.texts == []
    assert read("other", b"").max_output_tokens == 1
    assert read("other", {"messages": [{"role": "user", "content": "x"}]}).max_output_tokens is None


def test_tokens_for_tokens_say_how_they_are_to_be_sampled_apart() -> None:
    facts = read("tokens", {"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 9, "n": 2, "ignore_eos": True}})
    assert (facts.prompt.token_ids, facts.prompt.texts) == ([1, 2, 3], [])
    assert (facts.max_output_tokens, facts.answers, facts.runs_to_limit) == (9, 2, True)
    assert read("tokens", {"token_ids": [1, 2, 3], "sampling_params": 7}).max_output_tokens is None


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ({"state": {"a": 1}, "questions": {"q": {"type": "boolean"}}}, ['{"a":1}', '{"q":{"type":"boolean"}}']),
        ({"query": "q", "items": ["a", "b"], "label_token_ids": [1]}, ["q", "a", "b"]),
    ],
)
def test_questions_about_what_is_there_are_prompts(body: Any, texts: list[str]) -> None:
    facts = read("pooled", body)
    assert (facts.prompt.texts, facts.max_output_tokens, facts.is_light) == (texts, 1, False)


BROKEN = [b"", b"{", b"[1]", b"null", b'{"model": 5, "messages": "x", "n": "y", "slo": []}', b"\xff\xfe", b"[" * 5000]


@pytest.mark.parametrize("body", BROKEN)
@pytest.mark.parametrize("kind", get_args(CallKind))
def test_nothing_is_refused(kind: CallKind, body: bytes) -> None:
    assert read(kind, body).model == ""


def test_a_body_that_is_not_quite_json_still_names_its_model() -> None:
    assert read("chat", b'{"model": "m\\u00e9", "messages": [').model == "mé"
    assert read("chat", b'\xef\xbb\xbf{"model": "m", "messages": []}').model == "m"
    assert read("chat", b'{"model": "m", "temperature": NaN}').model == "m"


def test_compressed_bodies_are_looked_into_within_bounds() -> None:
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 8 * READ_BYTES}]})
    assert read("chat", gzip.compress(body), content_encoding="gzip").model == "m"
    assert read("chat", body[:100], content_encoding="br").model == ""


def test_long_bodies_are_measured_not_taken_apart() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2 * READ_BYTES}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "y" * 40_000}, picture, picture]}]
    facts = read("chat", {"model": "m", "messages": messages, "max_tokens": 7, "n": 2})
    assert (facts.model, facts.max_output_tokens, facts.answers) == ("m", 7, 2)
    assert facts.prompt.media_tokens == 2 * MEDIA_TOKENS["image"]
    assert 40_000 <= facts.prompt.unread_bytes <= 41_000
    assert estimated_tokens(facts.prompt.texts, facts.prompt.unread_bytes) == facts.prompt.unread_bytes // 4


@pytest.mark.parametrize(
    "odd",
    [
        b'"tools": [{"name": "\\ud800"}]',
        b'"tools": [{"\\udfff": NaN}]',
        b'"tools": [{"n": NaN, "m": 1' + b"0" * 400 + b"}]",
        b'"tools": [{"n": NaN, "m": -9' + b"0" * 30 + b"}]",
        b'"messages": [{"role": "user", "content": "\\ud800", "tool_calls": [{"x": "\\ud800"}]}]',
        b'"slo": {"deadline_s": 1' + b"0" * 400 + b', "ttft_s": "soon", "tpot_s": -1}',
        b'"slo": {"deadline_s": 1e308}',
        b'"priority": 99999999999',
        b'"priority": -1e300, "n": 1e300, "max_tokens": 1e300',
    ],
)
def test_what_no_number_and_no_text_can_be_is_not_known(odd: bytes) -> None:
    facts = read("chat", b'{"model": "m", %b}' % odd)
    assert facts.model == "m"
    assert facts.slo == Slo()
    assert -(2**31) <= facts.priority < 2**31
    texts = [*facts.prompt.texts, *(turn.content for turn in facts.turns)]
    assert all(text.encode() for text in texts)


@pytest.mark.parametrize(
    ("value", "priority"), [("-4", -4), (" 7 ", 7), (str(10**12), 2**31 - 1), ("high", 3), ("1.5", 3)]
)
def test_a_priority_in_vllm_s_own_header_goes_before_the_body_s(value: str, priority: int) -> None:
    headers = {"x-vllm-priority": value}
    facts = read("chat", {"messages": [], "priority": 3})
    said_in_headers(headers, facts)
    assert facts.priority == priority
    body = completion_body(b'{"prompt": "x", "priority": 3}')
    assert client_request(body, headers, "x").priority == priority
    said_in_headers({**headers, "x-astrolabe-priority": "9"}, facts)
    assert facts.priority == 9


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e10", "soon", ""])
def test_a_priority_in_a_header_must_be_one(value: str) -> None:
    with pytest.raises(Denied, match="x-astrolabe-priority"):
        said_in_headers({"x-astrolabe-priority": value}, CallFacts())


def test_headers_say_what_the_body_leaves_open() -> None:
    facts = read("chat", {"messages": [], "session": "s", "slo": {"ttft_s": 1}, "priority": "3"})
    said_in_headers(
        {
            "x-request-id": "r",
            "x-session-id": "t",
            "idempotency-key": "k",
            "x-astrolabe-deadline-s": "2.5",
            "x-astrolabe-ttft-s": "9",
        },
        facts,
    )
    assert (facts.request_id, facts.session, facts.idempotency_key, facts.priority) == ("r", "s", "k", 3)
    assert facts.slo == Slo(ttft_s=1.0, deadline_s=2.5)
    with pytest.raises(Denied, match="x-astrolabe-priority"):
        said_in_headers({"x-astrolabe-priority": "high"}, facts)

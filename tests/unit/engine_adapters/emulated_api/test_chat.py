"""`/v1/chat/completions` of the emulated engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.emulated_calls import Answered, emulated_caller, limits

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
PATH = "/v1/chat/completions"


def joined(answered: Answered) -> dict[str, Any]:
    """The message that a streamed answer's deltas add up to, with `finish_reason`."""
    *chunks, done = answered.events()
    assert done == "[DONE]"
    message: dict[str, Any] = {"content": "", "tool_calls": [], "finish_reason": None}
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        for choice in chunk["choices"]:
            assert message["finish_reason"] is None, "nothing comes behind the end"
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(message["tool_calls"])
                    message["tool_calls"].append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
                message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
            message["finish_reason"] = choice["finish_reason"]
    return message


async def test_a_whole_answer_has_the_tokens_that_its_usage_tells() -> None:
    async with emulated_caller() as caller:
        answered = await caller.call(PATH, {"model": "alias", "messages": HELLO, "max_tokens": 7, "ignore_eos": True})
        tree = answered.json()
        assert (answered.status, tree["model"], tree["object"]) == (200, "alias", "chat.completion")
        choice = tree["choices"][0]
        assert (choice["finish_reason"], len(choice["message"]["content"])) == ("length", 7)
        assert tree["usage"]["completion_tokens"] == answered.output_tokens == 7
        assert tree["usage"]["prompt_tokens"] == len(b"user: hello\n\nassistant:")
        assert answered.last.prompt_tokens == tree["usage"]["prompt_tokens"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"max_tokens": "5"}, {"max_tokens": 5}),
        ({"max_tokens": 5.0}, {"max_tokens": 5}),
        ({"n": "2", "max_tokens": 5}, {"n": 2, "max_tokens": 5}),
        ({"temperature": "0.5", "max_tokens": 5}, {"temperature": 0.5, "max_tokens": 5}),
        ({"stream": "false", "max_tokens": 5}, {"stream": False, "max_tokens": 5}),
        ({"stop": "5", "max_tokens": 5}, {"stop": ["5"], "max_tokens": 5}),
    ],
)
async def test_numbers_and_truths_may_come_as_text(said: dict[str, Any], meant: dict[str, Any]) -> None:
    async with emulated_caller() as caller:
        one = await caller.call(PATH, {"messages": HELLO, **said})
        other = await caller.call(PATH, {"messages": HELLO, **meant})
        assert (one.status, one.json()["choices"]) == (200, other.json()["choices"])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
async def test_a_body_may_come_in_any_encoding_of_unicode(encoding: str) -> None:
    async with emulated_caller() as caller:
        body = json.dumps({"messages": HELLO, "max_tokens": 3, "metadata": {"x": float("nan")}})
        assert (await caller.call(PATH, body.encode(encoding))).status == 200
        half = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'
        assert (await caller.call(PATH, half)).status == 400


async def test_a_streamed_answer_says_what_the_whole_one_says() -> None:
    async with emulated_caller(tokenizer="qwen2") as caller:
        body = {"messages": HELLO, "max_tokens": 40}
        whole = (await caller.call(PATH, body)).json()
        answered = await caller.call(PATH, {**body, "stream": True, "stream_options": {"include_usage": True}})
        message = joined(answered)
        assert message["content"] == whole["choices"][0]["message"]["content"]
        assert message["finish_reason"] == whole["choices"][0]["finish_reason"]
        last = answered.events()[-2]
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == answered.output_tokens == whole["usage"]["completion_tokens"]
        assert answered.events()[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


async def test_without_being_asked_a_stream_tells_no_usage_and_continuously_every_chunk_does() -> None:
    async with emulated_caller() as caller:
        body = {"messages": HELLO, "max_tokens": 5, "ignore_eos": True, "stream": True}
        plain = await caller.call(PATH, body)
        assert all("usage" not in event for event in plain.events()[:-1])
        options = {"include_usage": True, "continuous_usage_stats": True}
        told = await caller.call(PATH, {**body, "stream_options": options})
        assert [e["usage"]["completion_tokens"] for e in told.events()[:-1]] == [0, 1, 2, 3, 4, 5, 5]


async def test_several_answers_are_several_requests_in_the_scheduler() -> None:
    async with emulated_caller() as caller:
        body = {"messages": HELLO, "max_tokens": 200, "ignore_eos": True, "n": 3}
        seen = caller.begin(PATH, body)
        await caller.until_scheduled(3)
        assert caller.scheduled() == sorted([seen.request_id, f"{seen.request_id}=1", f"{seen.request_id}=2"])
        await seen.ended.wait()
        tree = seen.json()
        assert [choice["index"] for choice in tree["choices"]] == [0, 1, 2]
        assert len({choice["message"]["content"] for choice in tree["choices"]}) == 3
        assert tree["usage"]["completion_tokens"] == 600
        assert tree["usage"]["prompt_tokens"] == len(b"user: hello\n\nassistant:")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("tokenizer", ["bytes", "qwen2"])
async def test_a_forced_call_has_arguments_for_its_schema(choice: Any, tokenizer: str) -> None:
    async with emulated_caller(tokenizer=tokenizer) as caller:
        body = {"messages": HELLO, "tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False}
        whole = await caller.call(PATH, body)
        said = whole.json()["choices"][0]
        (call,) = said["message"]["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        assert isinstance(arguments["city"], str)
        assert 1 <= arguments["days"] <= 7
        assert said["message"]["content"] == ""
        assert said["finish_reason"] == ("tool_calls" if choice == "required" else "stop")

        streamed = await caller.call(PATH, {**body, "stream": True})
        message = joined(streamed)
        (heard,) = message["tool_calls"]
        assert (heard["name"], json.loads(heard["arguments"])) == ("weather", arguments)
        assert (message["content"], message["finish_reason"]) == ("", said["finish_reason"])
        assert streamed.output_tokens == whole.json()["usage"]["completion_tokens"]


async def test_left_to_itself_it_calls_a_tool_sometimes() -> None:
    async with emulated_caller() as caller:
        ends = set()
        for i in range(12):
            messages = [{"role": "user", "content": f"hello {i}"}]
            body = {"messages": messages, "tools": [WEATHER, CLOCK], "emulated_output_tokens": 3}
            said = (await caller.call(PATH, body)).json()["choices"][0]
            ends.add(said["finish_reason"])
            assert bool(said["message"].get("tool_calls")) == (said["finish_reason"] == "tool_calls")
            assert (said["message"]["content"] is None) == (said["finish_reason"] == "tool_calls")
        assert ends == {"stop", "tool_calls"}
        none = await caller.call(PATH, {**body, "tool_choice": "none"})
        assert none.json()["choices"][0]["finish_reason"] == "stop"


async def test_a_call_that_is_cut_off_is_text() -> None:
    async with emulated_caller() as caller:
        body = {"messages": HELLO, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 50}
        said = (await caller.call(PATH, body)).json()["choices"][0]
        assert said["finish_reason"] == "length"
        assert "tool_calls" not in said["message"]
        assert said["message"]["content"].startswith('<tool_call>\n{"name": "weather"')
        message = joined(await caller.call(PATH, {**body, "stream": True}))
        assert message["finish_reason"] == "length"


async def test_logprobs_are_told_for_every_token_whole_and_streamed() -> None:
    async with emulated_caller(tokenizer="qwen2") as caller:
        body = {"messages": HELLO, "max_tokens": 6, "ignore_eos": True, "logprobs": True, "top_logprobs": 2}
        whole = (await caller.call(PATH, body)).json()["choices"][0]["logprobs"]["content"]
        assert len(whole) == 6
        for entry in whole:
            assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
            assert bytes(entry["bytes"]).decode() == entry["token"]
            assert entry["logprob"] <= 0
            assert entry["top_logprobs"][0]["token"] == entry["token"]
            assert 1 <= len(entry["top_logprobs"]) <= 2
        streamed = (await caller.call(PATH, {**body, "stream": True})).events()[1:-1]
        assert [e["choices"][0]["logprobs"]["content"][0] for e in streamed] == whole


async def test_a_stop_text_ends_the_answer_and_is_not_in_it() -> None:
    async with emulated_caller() as caller:
        body = {"messages": HELLO, "max_tokens": 100, "ignore_eos": True}
        whole = (await caller.call(PATH, body)).json()["choices"][0]["message"]["content"]
        stop = whole[40:43]
        cut = (await caller.call(PATH, {**body, "stop": ["never appears", stop]})).json()["choices"][0]
        at = whole.index(stop)
        assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)
        assert cut["message"]["content"] == whole[:at]
        streamed = joined(await caller.call(PATH, {**body, "stop": stop, "stream": True}))
        assert streamed["content"] == whole[:at]
        kept = await caller.call(PATH, {**body, "stop": stop, "include_stop_str_in_output": True})
        assert kept.json()["choices"][0]["message"]["content"] == whole[: at + len(stop)]


async def test_a_stop_token_ends_the_answer_with_its_id_as_the_reason() -> None:
    async with emulated_caller() as caller:
        body = {"messages": HELLO, "max_tokens": 100, "ignore_eos": True, "return_token_ids": True}
        ids = (await caller.call(PATH, body)).json()["choices"][0]["token_ids"]
        cut = (await caller.call(PATH, {**body, "stop_token_ids": [ids[30]]})).json()["choices"][0]
        at = ids.index(ids[30])
        assert (cut["finish_reason"], cut["stop_reason"], cut["token_ids"]) == ("stop", ids[30], ids[: at + 1])
        assert len(cut["message"]["content"]) == at


async def test_min_tokens_and_a_wanted_length_are_obeyed() -> None:
    async with emulated_caller() as caller:
        body = {"messages": HELLO, "max_tokens": 900}
        for more, tokens in (
            ({"emulated_output_tokens": 5}, 5),
            ({"emulated_output_tokens": 5, "min_tokens": 9}, 9),
        ):
            tree = (await caller.call(PATH, {**body, **more})).json()
            assert tree["usage"]["completion_tokens"] == tokens
            assert tree["choices"][0]["finish_reason"] == "stop"


async def test_the_same_call_gets_the_same_words_and_another_seed_others() -> None:
    async with emulated_caller() as caller:

        async def words(**more: Any) -> Any:
            body = {"messages": HELLO, "max_tokens": 20, "ignore_eos": True, **more}
            return (await caller.call(PATH, body)).json()["choices"][0]["message"]["content"]

        assert await words() == await words() != await words(seed=1) == await words(seed=1)


REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({}, 400, "Field required", "body.messages"),
    ({"messages": 3}, 400, "messages", "body.messages"),
    ({"messages": HELLO, "max_tokens": "x"}, 400, "max_tokens", "body.max_tokens"),
    ({"messages": HELLO, "model": "nobody"}, 404, "The model `nobody` does not exist.", "model"),
    ({"messages": HELLO, "max_tokens": 0}, 400, "max_tokens must be at least 1, got 0.", "max_tokens"),
    ({"messages": HELLO, "max_tokens": 4001}, 400, "cannot be greater than max_model_len=4000", "max_tokens"),
    ({"messages": [{"role": "user", "content": "a" * 4000}]}, 400, "maximum context length is 4000", "input_tokens"),
    ({"messages": HELLO, "n": 0}, 400, "n must be at least 1", ""),
    ({"messages": HELLO, "temperature": -1}, 400, "temperature must be non-negative", "temperature"),
    ({"messages": HELLO, "top_p": 0}, 400, "top_p must be in (0, 1]", "top_p"),
    ({"messages": HELLO, "stop": ""}, 400, "stop cannot contain an empty string", ""),
    ({"messages": HELLO, "stream_options": {}}, 400, "Stream options can only be defined", "stream_options"),
    ({"messages": HELLO, "top_logprobs": 2}, 400, "`logprobs` must be set to true", "top_logprobs"),
    ({"messages": HELLO, "tools": []}, 400, "`tools` must not be an empty array", "tools"),
    ({"messages": HELLO, "tool_choice": "required"}, 400, "`tools` must be set", "tool_choice"),
    ({"messages": HELLO, "tools": [CLOCK], "tool_choice": "maybe"}, 400, "maybe", "tool_choice"),
    ({"messages": HELLO, "response_format": {"type": "json_schema"}}, 400, "must be provided", "response_format"),
    ({"messages": HELLO, "priority": 1}, 400, "Priority scheduling is not enabled", ""),
]


@pytest.mark.parametrize(("body", "status", "said", "param"), REFUSED, ids=[r[2][:30] for r in REFUSED])
async def test_what_is_wrong_is_said_in_the_servers_shape(
    body: dict[str, Any], status: int, said: str, param: str
) -> None:
    async with emulated_caller() as caller:
        answered = await caller.call(PATH, body)
        error = answered.json()["error"]
        assert (answered.status, error["code"], error["param"] or "") == (status, status, param)
        assert said in error["message"]
        assert set(error) == {"message", "type", "param", "code"}
        assert caller.scheduled() == []


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url"])
async def test_a_model_that_reads_text_refuses_other_parts(kind: str) -> None:
    async with emulated_caller() as caller:
        parts = [{"type": "text", "text": "what is it?"}, {"type": kind, kind: {"url": "data:,"}}]
        answered = await caller.call(PATH, {"messages": [{"role": "user", "content": parts}]})
        assert answered.status == 400
        assert answered.json()["error"]["message"] == "m is not a multimodal model"
        text = await caller.call(PATH, {"messages": [{"role": "user", "content": parts[:1]}], "max_tokens": 1})
        assert text.json()["usage"]["prompt_tokens"] == len(b"user: what is it?\n\nassistant:")


async def test_one_answer_that_does_not_fit_means_none_is_made() -> None:
    async with emulated_caller(config=limits(num_blocks=2, max_model_len_tokens=4000)) as caller:
        answered = await caller.call(PATH, {"messages": [{"role": "user", "content": "long " * 20}], "n": 2})
        assert answered.status == 400
        assert "holds 32 in its KV cache" in answered.json()["error"]["message"]
        assert caller.scheduled() == []

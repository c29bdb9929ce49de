"""`/v1/responses` and `/v1/messages` of the emulated engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from engine_adapters.emulated_api import responses
from tests.helpers.emulated_calls import DEADLINE_S, Caller, emulated_caller

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
HELLO = [{"role": "user", "content": "hello"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "name": "weather", "parameters": CITY}
ASK = {"model": "m", "messages": HELLO, "max_tokens": 300}


async def until_status(caller: Caller, name: str, status: str) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            tree: dict[str, Any] = (await caller.get(f"{RESPONSES}/{name}")).json()
            if tree["status"] == status:
                return tree
            await asyncio.sleep(0.002)


async def test_a_whole_response_is_kept_and_can_be_gone_on_with() -> None:
    async with emulated_caller() as caller:
        first = (await caller.call(RESPONSES, {"input": "hello", "emulated_output_tokens": 6})).json()
        assert (first["object"], first["status"], first["incomplete_details"]) == ("response", "completed", None)
        (item,) = first["output"]
        assert (item["type"], item["role"], len(item["content"][0]["text"])) == ("message", "assistant", 6)
        assert first["usage"]["total_tokens"] == first["usage"]["input_tokens"] + 6
        assert (await caller.get(f"{RESPONSES}/{first['id']}")).json() == first
        more = {"input": "and then?", "previous_response_id": first["id"], "max_output_tokens": 3, "ignore_eos": True}
        then = (await caller.call(RESPONSES, more)).json()
        assert then["usage"]["input_tokens"] > first["usage"]["input_tokens"] + 6
        assert (then["status"], then["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


async def test_a_response_that_is_not_to_be_stored_is_not() -> None:
    async with emulated_caller() as caller:
        made = (await caller.call(RESPONSES, {"input": "hello", "max_output_tokens": 2, "store": False})).json()
        gone = await caller.get(f"{RESPONSES}/{made['id']}")
        assert (gone.status, gone.json()["error"]["param"]) == (404, "response_id")
        after = await caller.call(RESPONSES, {"input": "hello", "previous_response_id": made["id"]})
        assert after.status == 404


async def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "KEPT", 2)
    async with emulated_caller() as caller:
        body = {"input": "hello", "max_output_tokens": 1}
        names = [(await caller.call(RESPONSES, body)).json()["id"] for _ in range(3)]
        assert [(await caller.get(f"{RESPONSES}/{name}")).status for name in names] == [404, 200, 200]


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        (
            {"input": HELLO, "max_output_tokens": 4, "ignore_eos": True},
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                *["response.output_text.delta"] * 4,
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.completed",
            ],
        ),
        (
            {"input": "hello", "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
                "response.output_item.done",
                "response.completed",
            ],
        ),
    ],
    ids=["text", "call"],
)
async def test_events_come_in_order_and_add_up(body: dict[str, Any], kinds: list[str]) -> None:
    async with emulated_caller() as caller:
        answered = await caller.call(RESPONSES, {**body, "stream": True})
        events = answered.events()
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        told = [event["type"] for event in events]
        if "tools" in body:
            told = list(dict.fromkeys(told))
        assert told == kinds
        final = events[-1]["response"]
        said = "".join(event["delta"] for event in events if event["type"].endswith(".delta"))
        (item,) = final["output"]
        if item["type"] == "function_call":
            assert item["arguments"] == said
            assert isinstance(json.loads(said)["city"], str)
        else:
            assert item["content"][0]["text"] == said
        assert final["usage"]["output_tokens"] == answered.output_tokens
        assert (await caller.get(f"{RESPONSES}/{final['id']}")).json() == final


async def test_a_response_in_the_background_is_made_after_its_call_has_ended() -> None:
    async with emulated_caller() as caller:
        queued = (await caller.call(RESPONSES, {"input": "hello", "background": True, "max_output_tokens": 50})).json()
        assert queued["status"] == "queued"
        done = await until_status(caller, queued["id"], "completed")
        assert done["output"][0]["content"][0]["text"]
        refused = await caller.call(f"{RESPONSES}/{queued['id']}/cancel")
        assert (refused.status, refused.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_a_response_in_the_background_can_be_cancelled() -> None:
    async with emulated_caller() as caller:
        body = {"input": "hello", "background": True, "max_output_tokens": 3000, "ignore_eos": True}
        queued = (await caller.call(RESPONSES, body)).json()
        assert len(caller.scheduled()) == 1
        cancelled = await caller.call(f"{RESPONSES}/{queued['id']}/cancel")
        assert cancelled.json()["status"] == "cancelled"
        assert caller.scheduled() == []
        assert (await caller.get(f"{RESPONSES}/{queued['id']}")).json()["status"] == "cancelled"
        assert (await caller.call(f"{RESPONSES}/resp_unknown/cancel")).status == 404


async def test_a_stream_from_the_background_outlives_its_reader_and_is_told_again() -> None:
    async with emulated_caller() as caller:
        body = {"input": "hello", "background": True, "stream": True, "max_output_tokens": 30, "ignore_eos": True}
        answered = caller.begin(RESPONSES, body)
        await caller.until_scheduled(1)
        assert await caller.engine.abort(answered.request_id)
        assert len(caller.scheduled()) == 1
        name = answered.events()[0]["response"]["id"]
        following = await caller.get(f"{RESPONSES}/{name}?stream=true")
        events = following.events()
        assert events[-1]["type"] == "response.completed"
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        rest = (await caller.get(f"{RESPONSES}/{name}?stream=true&starting_after=10")).events()
        assert rest == events[11:]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "Field required"),
        ({"input": "a", "background": True, "store": False}, "background can only be used"),
        ({"input": "a", "prompt": {"id": "x"}}, "prompt template is not supported"),
        ({"input": "a", "tool_choice": "required"}, "must be specified with 'tools'"),
        ({"input": "a", "tools": [TOOL], "tool_choice": {"type": "function", "name": "no"}}, "not found in 'tools'"),
        ({"input": [{"type": "computer_call"}]}, "beyond an emulated engine"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "not a multimodal"),
    ],
)
async def test_responses_that_are_refused(body: dict[str, Any], said: str) -> None:
    async with emulated_caller() as caller:
        answered = await caller.call(RESPONSES, body)
        assert (answered.status, said in answered.json()["error"]["message"]) == (400, True), answered.body


async def test_a_whole_message() -> None:
    async with emulated_caller() as caller:
        answered = await caller.call(MESSAGES, {**ASK, "max_tokens": 6, "system": "be brief"})
        tree = answered.json()
        assert (tree["type"], tree["role"], tree["stop_reason"]) == ("message", "assistant", "max_tokens")
        assert len(tree["content"][0]["text"]) == tree["usage"]["output_tokens"] == answered.output_tokens == 6
        counted = await caller.call(f"{MESSAGES}/count_tokens", {"model": "m", "messages": HELLO, "system": "be brief"})
        assert counted.json()["input_tokens"] == tree["usage"]["input_tokens"]


async def test_a_message_ends_at_its_stop_sequence() -> None:
    async with emulated_caller() as caller:
        whole = (await caller.call(MESSAGES, {**ASK, "max_tokens": 30})).json()["content"][0]["text"]
        cut = (await caller.call(MESSAGES, {**ASK, "max_tokens": 30, "stop_sequences": [whole[10:13]]})).json()
        assert (cut["stop_reason"], cut["stop_sequence"]) == ("stop_sequence", whole[10:13])
        assert cut["content"][0]["text"] == whole[: whole.index(whole[10:13])]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
async def test_a_message_calls_its_tools(choice: dict[str, Any]) -> None:
    async with emulated_caller() as caller:
        body = {**ASK, "tools": [{"name": "weather", "input_schema": CITY}]}
        body["tool_choice"] = {**choice, "disable_parallel_tool_use": True}
        tree = (await caller.call(MESSAGES, body)).json()
        (block,) = tree["content"]
        assert (tree["stop_reason"], block["type"], block["name"]) == ("tool_use", "tool_use", "weather")
        assert isinstance(block["input"]["city"], str)
        events = (await caller.call(MESSAGES, {**body, "stream": True})).events()
        assert list(dict.fromkeys(event["type"] for event in events)) == [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        said = "".join(e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta")
        assert json.loads(said) == block["input"]
        assert events[-2]["delta"]["stop_reason"] == "tool_use"


async def test_a_streamed_message_says_what_the_whole_one_says() -> None:
    async with emulated_caller(tokenizer="qwen2") as caller:
        whole = (await caller.call(MESSAGES, {**ASK, "max_tokens": 30})).json()
        answered = await caller.call(MESSAGES, {**ASK, "max_tokens": 30, "stream": True})
        events = answered.events()
        said = "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")
        assert said == whole["content"][0]["text"]
        assert events[-2]["usage"] == whole["usage"]
        assert answered.output_tokens == whole["usage"]["output_tokens"]


async def test_errors_of_messages_have_anthropics_shape_but_for_bodies_that_do_not_fit() -> None:
    async with emulated_caller() as caller:
        unknown = await caller.call(MESSAGES, {**ASK, "model": "nobody"})
        assert unknown.status == 404
        assert unknown.json() == {
            "type": "error",
            "error": {"type": "NotFoundError", "message": "The model `nobody` does not exist."},
        }
        unfit = await caller.call(MESSAGES, {"model": "m", "messages": HELLO})
        assert (unfit.status, unfit.json()["error"]["param"]) == (400, "body.max_tokens")

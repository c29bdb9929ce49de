"""An engine's own answer that another node goes on with: one stream to its client, wherever it was cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.events import AnswerTied, Arrived, Dispatch, StreamEnded
from gateway.intake.call_facts import facts_of, said_in_headers
from gateway.intake.client_call import AnswerHead, ClientCall
from gateway.intake.client_stream import ClientStream
from gateway.intake.denied import Denied
from gateway.intake.resumable_answer import ResumableAnswer, can_go_on
from simcore.types import Outcome
from tests.unit.gateway.shell.world import World, decision, shape

EVENTS = AnswerHead(200, (("content-type", "text/event-stream"),))
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 9, "odd": [1.5]}
COMPLETION = {"prompt": "once", "stream": True, "min_tokens": 3}


def chunk(name: str, delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    said = {"id": name, "object": "chat.completion.chunk", "created": len(name), "model": "m", "choices": choices}
    return b"data: " + json.dumps(said | more).encode() + b"\n\n"


def text_chunk(name: str, text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    return b"data: " + json.dumps({"id": name, "choices": [choice]}).encode() + b"\n\n"


def usage(prompt_tokens: int, output_tokens: int) -> dict[str, int]:
    total = prompt_tokens + output_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens, "total_tokens": total}


def read(answer: ResumableAnswer, *pieces: bytes) -> bytes:
    assert answer.begin(200, "text/event-stream; charset=utf-8", "")
    return b"".join(answer.read(piece) for piece in pieces)


def said(data: bytes) -> list[Any]:
    events = [event.removeprefix(b"data: ") for event in data.split(b"\n\n") if event]
    return [event.decode() if event == b"[DONE]" else json.loads(event) for event in events]


def text_of(data: bytes) -> str:
    deltas = [event["choices"][0] for event in said(data) if event != "[DONE]" and event["choices"]]
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in deltas)


ROLE = {"role": "assistant", "content": ""}
FIRST = [
    chunk("a", ROLE),
    chunk("a", {"content": "caf"}),
    chunk("a", {"content": "é \n\n"}),
    chunk("a", {"content": "x"}),
]
LATER = [
    chunk("later", ROLE),
    chunk("later", {"content": "y"}),
    chunk("later", {"content": ""}, "stop"),
    chunk("later", None, usage=usage(15, 2)),
    b"data: [DONE]\n\n",
]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_first_answer_is_untouched_however_it_is_cut(newline: bytes) -> None:
    whole = (b": a comment\n\n" + b"".join([*FIRST, *LATER])).replace(b"\n", newline)
    for at in range(len(whole) + 1):
        answer = ResumableAnswer(json.dumps(CHAT).encode())
        assert read(answer, whole[:at], whole[at:]) == whole
        assert answer.end() == b""


def test_a_break_at_any_byte_leaves_one_whole_stream() -> None:
    first, later = b"".join(FIRST), b"".join(LATER)
    for at in range(len(first) + 1):
        answer = ResumableAnswer(json.dumps(CHAT).encode())
        shown = read(answer, first[:at])
        came = text_of(shown)
        asked = json.loads(answer.body_for(len(came)))
        if came:
            assert asked["messages"] == [*CHAT["messages"], {"role": "assistant", "content": came}]  # type: ignore[misc]
            assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
        else:
            assert asked == CHAT
        assert (asked["max_tokens"], asked["odd"]) == (9 - len(came), [1.5])
        rest = read(answer, later[: at * 2], later[at * 2 :])
        events = said(shown + rest)
        assert events.pop() == "[DONE]"
        assert len({(event["id"], event["created"]) for event in events}) == 1
        assert sum("role" in event["choices"][0]["delta"] for event in events if event["choices"]) == 1
        assert text_of(shown + rest) == came + "y"
        assert events[-1]["usage"] == usage(15 - len(came), len(came) + 2)
        assert answer.is_tied


def test_a_completion_goes_on_from_prompt_and_text() -> None:
    answer = ResumableAnswer(json.dumps(COMPLETION).encode())
    shown = read(answer, text_chunk("a", " upon"), text_chunk("a", " a"), b"data: {")
    assert json.loads(answer.body_for(2)) == {**COMPLETION, "prompt": "once upon a", "max_tokens": 14, "min_tokens": 1}
    shown += read(answer, text_chunk("b", " time", "length"))
    assert text_of(shown) == " upon a time"
    assert {event["id"] for event in said(shown)} == {"a"}


def test_a_third_node_goes_on_from_all_of_it() -> None:
    answer = ResumableAnswer(json.dumps(CHAT).encode())
    read(answer, FIRST[0], chunk("a", {"content": "one "}, usage=usage(7, 1)))
    answer.body_for(1)
    read(answer, LATER[0], chunk("b", {"content": "two "}))
    assert not answer.is_tied
    asked = json.loads(answer.body_for(2))
    assert (asked["messages"][-1]["content"], asked["max_tokens"]) == ("one two ", 7)
    last = read(answer, chunk("c", None, usage=usage(900, 3)))
    assert said(last)[0]["usage"] == usage(7, 5)


@pytest.mark.parametrize(
    "event",
    [
        chunk("a", {"tool_calls": [{"index": 0}]}),
        chunk("a", {"reasoning_content": "hm"}),
        chunk("a", {"content": "x"}, "stop"),
        chunk("a", {"content": [{"type": "text"}]}),
        b'data: {"error": {"message": "broken"}}\n\n',
        b"data: [DONE]\n\n",
        b"data: not json\n\n",
    ],
)
def test_what_is_more_than_text_ties_an_answer_to_its_node(event: bytes) -> None:
    answer = ResumableAnswer(json.dumps(CHAT).encode())
    assert read(answer, FIRST[1]) == FIRST[1]
    assert not answer.is_tied
    assert answer.read(event) == event
    assert answer.is_tied
    assert answer.read(b"as it ") + answer.read(b"comes") == b"as it comes"


@pytest.mark.parametrize(
    ("kind", "fields", "can"),
    [
        ("chat", CHAT, True),
        ("chat", {**CHAT, "n": 1, "tools": [{}], "tool_choice": "auto", "logprobs": False, "echo": None}, True),
        ("completions", COMPLETION, True),
        ("chat", {**CHAT, "stream": False}, False),
        ("chat", {**CHAT, "n": 2}, False),
        ("chat", {**CHAT, "logprobs": True}, False),
        ("chat", {**CHAT, "tool_choice": "required"}, False),
        ("chat", {**CHAT, "response_format": {"type": "json_object"}}, False),
        ("chat", {**CHAT, "guided_regex": "a+"}, False),
        ("chat", {**CHAT, "max_tokens": "9"}, False),
        ("completions", {**COMPLETION, "logprobs": 0}, False),
        ("completions", {**COMPLETION, "echo": True}, False),
        ("completions", {**COMPLETION, "prompt": ["a", "b"]}, False),
        ("completions", {**COMPLETION, "prompt": [1, 2]}, False),
        ("responses", {**CHAT, "input": "x"}, False),
    ],
)
def test_only_one_answer_of_plain_text_can_go_on(kind: Any, fields: dict[str, Any], can: bool) -> None:
    assert can_go_on(kind, fields) is can
    assert facts_of(kind, {}, json.dumps(fields).encode()).can_go_on is can


def test_the_client_says_so_in_the_body_or_a_header() -> None:
    body = json.dumps({**CHAT, "resume": "off"}).encode()
    for sent, headers, wanted in (
        (body, {"x-astrolabe-resume": "best_effort"}, "off"),
        (json.dumps(CHAT).encode(), {"x-astrolabe-resume": "Best_Effort"}, "best_effort"),
        (json.dumps(CHAT).encode(), {}, None),
    ):
        facts = facts_of("chat", headers, sent)
        said_in_headers(headers, facts)
        assert facts.resume == wanted
    with pytest.raises(Denied, match="x-astrolabe-resume: 'yes' is not exact, best_effort or off"):
        said_in_headers({"x-astrolabe-resume": "yes"}, facts_of("chat", {}, b"{}"))


def test_bodies_that_cannot_be_written_anew_are_left_alone() -> None:
    for body in (b'{"messages": [], "temperature": NaN}', b"\xef\xbb\xbf{}", b"[]"):
        with pytest.raises(ValueError, match=r"\w"):
            ResumableAnswer(body)


# --- in the pump ------------------------------------------------------------------------------------------------------


def resumed() -> tuple[World, ClientStream]:
    """One event has come and been shown, the beginning of another has not; then the node breaks and is asked anew."""
    world = World()
    world.node_up()
    world.script.on(Arrived, Dispatch(request_id="r", node_id="n", dispatch_seq=1, decision=decision()))
    body = json.dumps(CHAT).encode()
    call = ClientCall(
        method="POST", target="/x", headers=(), body=body, body_bytes=len(body), resumable=ResumableAnswer(body)
    )
    stream = ClientStream(shape(), call=call)
    world.pump.submit(stream)
    again = Dispatch(request_id="r", node_id="n", dispatch_seq=2, decision=decision(), attempt=2, resumed=shape())
    world.script.on(StreamEnded, again)
    world.pump.answered("n", "r", EVENTS, FIRST[0] + FIRST[1] + FIRST[2][:20], 1)
    world.pump.part("n", "r", (), outcome=Outcome.ENGINE_FAILED)
    assert (stream.wire_id, stream.resumes) == ("r~2", 1)
    return world, stream


def test_the_next_node_is_asked_for_the_rest() -> None:
    world, stream = resumed()
    call, answer = stream.call, stream.answer
    assert call is not None
    assert answer is not None
    assert json.loads(call.body)["messages"][-1] == {"role": "assistant", "content": "caf"}
    assert call.body_bytes == len(call.body)
    world.pump.answered("n", "r", None, FIRST[3], 1)
    assert answer.take() == FIRST[0] + FIRST[1]
    world.script.on(StreamEnded)
    sent = b"".join(LATER)
    world.pump.answered("n", "r~2", EVENTS, sent[:-5], 2)
    assert not answer.is_complete
    world.pump.answered("n", "r~2", None, sent[-5:], 0)
    world.pump.part("n", "r~2", (), outcome=Outcome.STOP)
    assert text_of(answer.take()) == "y"
    assert (answer.is_complete, stream.output_tokens) == (True, 3)
    # All that the second node has sent is accounted for, dropped and rewritten or not.
    assert answer.unreported_bytes == len(sent)
    assert len(world.heard(AnswerTied)) == 1


def test_a_node_that_will_not_go_on_adds_nothing() -> None:
    world, stream = resumed()
    world.script.on(StreamEnded)
    assert stream.answer is not None
    stream.answer.take()
    world.pump.answered("n", "r~2", AnswerHead(400, ()), b'{"error": "no such thing"}', 0)
    world.pump.part("n", "r~2", (), outcome=Outcome.INVALID)
    assert (stream.answer.take(), stream.answer.is_complete, stream.answer.head) == (b"", False, EVENTS)

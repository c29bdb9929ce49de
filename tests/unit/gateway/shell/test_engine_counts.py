"""Asking an engine's server for the tokens of a prompt: never longer than said, and not again where it is in vain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from gateway.core.outcomes import Denial
from gateway.intake.call_facts import CallFacts, facts_of
from gateway.intake.call_paths import CallKind
from gateway.intake.client_call import AnswerHead, ClientCall
from gateway.intake.client_stream import ClientStream
from gateway.intake.denied import Denied
from gateway.intake.engine_counts import NO_ROUTE_PAUSE_S, SILENCE_PAUSE_S, EngineCounts
from simcore.types import Outcome
from tests.unit.gateway.shell.world import shape

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [{"function": {"name": "f"}}], "n": 2}


class Desk:
    """Takes what is asked and answers as the test says; `answer` None: nobody does."""

    def __init__(self, within_s: float = 5.0) -> None:
        self.answer: Callable[[ClientStream], None] | None = said(b'{"count": 3, "tokens": [7, 8, 9]}')
        self.asked: list[tuple[ClientCall, CallFacts]] = []
        self.open: list[ClientStream] = []
        self.now_s = 0.0
        self.counts = EngineCounts(
            self.forward,
            consumed=lambda _stream: None,
            close=self.open.remove,
            within_s=within_s,
            clock=lambda: self.now_s,
        )

    async def forward(self, call: ClientCall, facts: CallFacts) -> ClientStream:
        self.asked.append((call, facts))
        stream = ClientStream(shape("count"), call=call)
        self.open.append(stream)
        if self.answer is not None:
            asyncio.get_running_loop().call_soon(self.answer, stream)
        return stream

    async def ask(self, kind: CallKind = "chat", body: Any = CHAT) -> Any:
        found = await self.counts.count(facts_of(kind, {}, orjson.dumps(body)))
        assert not self.open, "every question is closed"
        return found


def said(body: bytes, status: int = 200, outcome: Outcome = Outcome.STOP) -> Callable[[ClientStream], None]:
    def answer(stream: ClientStream) -> None:
        assert stream.answer is not None
        stream.answer.put_head(AnswerHead(status, ()))
        for at in range(0, len(body), 9):
            stream.answer.put(body[at : at + 9])
        stream.answer.end(outcome)
        stream.end(outcome, "", 0.0)

    return answer


async def test_a_chat_is_sent_as_its_template_gets_it() -> None:
    desk = Desk()
    found = await desk.ask()
    assert (found.count, found.tokens) == (3, [7, 8, 9])
    ((call, facts),) = desk.asked
    assert (call.method, call.target, call.is_light, call.is_aside) == ("POST", "/tokenize", True, True)
    assert json.loads(call.body) == {name: CHAT[name] for name in ("model", "messages", "tools")}
    assert (facts.model, facts.is_light, facts.max_output_tokens) == ("m", True, 1)


@pytest.mark.parametrize(
    ("kind", "body", "question"),
    [
        ("completions", {"model": "m", "prompt": ["a", "b"]}, {"model": "m", "prompt": "a\nb"}),
        ("completions", {"prompt": "a"}, {"prompt": "a"}),
        (
            "messages",
            {"model": "m", "system": "s", "messages": [{"role": "user", "content": "u"}]},
            {
                "model": "m",
                "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            },
        ),
        ("responses", {"model": "m", "instructions": "i", "input": "x"}, {"model": "m", "prompt": "x\ni"}),
    ],
)
async def test_what_is_asked_of_other_calls(kind: CallKind, body: Any, question: Any) -> None:
    desk = Desk()
    assert (await desk.ask(kind, body)).count == 3
    assert json.loads(desk.asked[0][0].body) == question


async def test_a_count_without_ids_is_enough() -> None:
    desk = Desk()
    desk.answer = said(b'{"count": 12, "max_model_len": 5}')
    assert (await desk.ask()).count == 12


@pytest.mark.parametrize(
    "answer",
    [
        said(b'{"detail": "Not Found"}', 404, Outcome.INVALID),
        said(b"<html>", 200),
        said(b'{"count": "many"}', 200),
        said(b'{"count": 0}', 200),
        said(b'{"count": 3, "tokens": [1]}', 200),
        said(b"", 501),
    ],
)
async def test_a_server_that_does_not_count_is_left_alone_for_a_while(answer: Any) -> None:
    desk = Desk()
    desk.answer = answer
    assert await desk.ask() is None
    desk.answer = said(b'{"count": 3}')
    desk.now_s = NO_ROUTE_PAUSE_S - 0.1
    assert await desk.ask() is None
    assert len(desk.asked) == 1
    assert (await desk.ask(body={**CHAT, "model": "other"})).count == 3, "another model's may"
    desk.now_s = NO_ROUTE_PAUSE_S
    assert (await desk.ask()).count == 3


async def test_a_prompt_that_the_server_refuses_says_nothing_of_the_next() -> None:
    desk = Desk()
    desk.answer = said(b'{"error": {}}', 400, Outcome.INVALID)
    assert await desk.ask() is None
    desk.answer = said(b'{"count": 3}')
    assert (await desk.ask()).count == 3


async def test_nobody_waits_longer_than_said_nor_again_at_once() -> None:
    desk = Desk(within_s=0.001)
    desk.answer = None
    async with asyncio.timeout(10):
        assert await desk.ask() is None
    assert await desk.ask() is None
    assert len(desk.asked) == 1
    desk.now_s = SILENCE_PAUSE_S
    await desk.ask()
    assert len(desk.asked) == 2


async def test_who_is_not_to_ask_does_not() -> None:
    desk = Desk(within_s=0.0)
    assert await desk.ask() is None
    assert not desk.asked


async def test_a_gateway_that_stops_refuses_its_own_questions_too() -> None:
    async def refuse(_call: ClientCall, _facts: CallFacts) -> ClientStream:
        raise Denied(Denial.SHUTTING_DOWN, "the gateway is shutting down")

    nothing: Callable[[ClientStream], None] = [].append  # type: ignore[assignment]
    counts = EngineCounts(refuse, consumed=nothing, close=nothing, within_s=1.0)
    assert await counts.count(facts_of("chat", {}, orjson.dumps(CHAT))) is None

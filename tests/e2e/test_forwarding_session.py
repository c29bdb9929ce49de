"""Forwarded calls through a node's session: the wire on one side, a scripted server on the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from predictor.config import EngineSource, PredictorConfig
from predictor.main import Predictor
from predictor.session import UNCONSUMED_BYTES
from protos import codec
from protos.runtime.channels import open_channel
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import Outcome
from tests.e2e.predictor_daemon import SessionClient, engine_request
from tests.helpers.scripted_http import (
    CHUNKED,
    LAST,
    Answer,
    HeardCall,
    ScriptedHttp,
    chunk,
    scripted_http,
    until,
    whole,
)

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}\n\n'
PAGE = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:gpu_cache_usage_perc 0.0\n"


class Rig:
    """A node before a scripted server; `answer` is what it does with forwarded calls."""

    def __init__(self, server: ScriptedHttp) -> None:
        self.server = server
        self.answer: Answer | None = None
        self.page = PAGE
        self.predictor = Predictor(
            PredictorConfig(
                node_id="n1",
                listen="127.0.0.1:0",
                tokenizer="bytes",
                engine=EngineSource(dialect="openai_metrics", url=server.url, wait_s=5.0),
            )
        )
        self.session: SessionClient

    @property
    def heard(self) -> list[HeardCall]:
        return [call for call in self.server.heard if call.line.startswith("POST")]

    @property
    def node(self) -> Any:
        assert self.predictor.node is not None
        return self.predictor.node

    @property
    def relay(self) -> Any:
        return self.node._client._relay

    def outcome(self, name: str) -> Outcome:
        return codec.outcome_from_wire(self.session.ends[name].outcome)

    async def serve(self, call: HeardCall) -> None:
        if call.line.startswith("GET /v1/models"):
            await call.say(whole(b'{"data":[{"id":"m"}]}'))
        elif call.line.startswith("GET /metrics"):
            await call.say(whole(self.page, kind="text/plain"))
        else:
            assert self.answer is not None, "a test that forwards says what is answered"
            await self.answer(call)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async def serve(call: HeardCall) -> None:
        await made.serve(call)

    async with scripted_http(serve) as server:
        made = Rig(server)
        await made.predictor.bind()
        await made.predictor.start()
        async with open_channel(str(made.predictor.address)) as channel:
            made.session = await SessionClient(channel).begin()
            yield made
            await made.session.leave()
        await until(lambda: not len(made.node.requests))
        assert len(made.relay) == 0
        await made.predictor.stop()


def forwarded(
    name: str,
    *,
    body: bytes = b"{}",
    later_bytes: int = 0,
    prompt_tokens: int = 20,
    target: str = "/v1/chat/completions",
) -> engine_pb.ForwardedCall:
    return engine_pb.ForwardedCall(
        request_id=name,
        method="POST",
        target=target,
        headers=[engine_pb.Header(name="content-type", value="application/json")],
        body=body,
        body_bytes=len(body) + later_bytes,
        prompt_tokens=prompt_tokens,
        max_output_tokens=30,
        belief=types_pb.LengthBelief(atoms_tokens=[10]),
    )


async def test_the_node_says_that_it_forwards(rig: Rig) -> None:
    assert rig.session.welcome is not None
    assert rig.session.welcome.config.forwards


async def test_a_stream_goes_through_with_head_data_tokens_and_usage(rig: Rig) -> None:
    async def answer(call: HeardCall) -> None:
        await call.say(CHUNKED + chunk(EVENT) + chunk(EVENT))
        await call.say(chunk(EVENT) + chunk(USAGE) + chunk(b"data: [DONE]\n\n") + LAST)

    rig.answer = answer
    await rig.session.send(forward=(forwarded("a", body=b'{"odd": 1}'),))
    await rig.session.until(lambda: "a" in rig.session.ends)
    assert rig.heard[0].body == b'{"odd": 1}'
    assert ("x-request-id", "astrolabe=a=") in rig.heard[0].headers
    assert rig.session.heads["a"].status == 200
    assert [(h.name, h.value) for h in rig.session.heads["a"].headers] == [
        ("content-type", "text/event-stream; charset=utf-8")
    ]
    assert bytes(rig.session.data["a"]) == EVENT * 3 + USAGE + b"data: [DONE]\n\n"
    assert rig.outcome("a") is Outcome.STOP
    usage = rig.session.ends["a"].usage
    assert (usage.prompt_tokens, usage.output_tokens) == (7, 5)
    assert rig.session.output_tokens["a"] == 5


async def test_it_counts_as_work_of_the_node_while_it_runs(rig: Rig) -> None:
    go = asyncio.Event()

    async def answer(call: HeardCall) -> None:
        await go.wait()
        await call.say(whole(b'{"usage":{"prompt_tokens":7,"completion_tokens":5}}'))

    rig.answer = answer
    await rig.session.send(forward=(forwarded("a"), forwarded("tokenize", prompt_tokens=0, target="/tokenize")))
    await rig.session.until(lambda: rig.session.load is not None and rig.session.load.dispatch_seq == 2)
    load = rig.node.load()
    assert load.running + load.waiting == 1, "a call without a prompt is no work"
    go.set()
    await rig.session.until(lambda: len(rig.session.ends) == 2)
    load = rig.node.load()
    assert load.reserved == 0
    assert rig.session.ends["a"].usage.output_tokens == 5


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.STOP),
        (302, Outcome.STOP),
        (400, Outcome.INVALID),
        (401, Outcome.ENGINE_FAILED),
        (404, Outcome.INVALID),
        (405, Outcome.INVALID),
        (407, Outcome.ENGINE_FAILED),
        (408, Outcome.ENGINE_FAILED),
        (413, Outcome.INVALID),
        (422, Outcome.INVALID),
        (429, Outcome.OVERLOADED),
        (500, Outcome.ENGINE_FAILED),
        (501, Outcome.INVALID),
        (502, Outcome.ENGINE_FAILED),
        (503, Outcome.OVERLOADED),
        (504, Outcome.ENGINE_FAILED),
        (505, Outcome.INVALID),
        (506, Outcome.INVALID),
        (507, Outcome.ENGINE_FAILED),
        (510, Outcome.INVALID),
        (520, Outcome.ENGINE_FAILED),
        (529, Outcome.OVERLOADED),
    ],
)
async def test_the_outcome_follows_from_the_status_and_the_answer_is_the_engines(
    rig: Rig, status: int, outcome: Outcome
) -> None:
    async def answer(call: HeardCall) -> None:
        await call.say(whole(b'{"error":"mine"}', status=status))

    rig.answer = answer
    await rig.session.send(forward=(forwarded("a"),))
    await rig.session.until(lambda: "a" in rig.session.ends)
    assert rig.outcome("a") is outcome
    assert rig.session.heads["a"].status == status
    assert bytes(rig.session.data["a"]) == b'{"error":"mine"}'
    assert (str(status) in rig.session.ends["a"].detail) == (status >= 400)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, Outcome.INVALID),
        (401, Outcome.ENGINE_FAILED),
        (429, Outcome.OVERLOADED),
        (500, Outcome.ENGINE_FAILED),
        (501, Outcome.INVALID),
        (503, Outcome.OVERLOADED),
    ],
)
async def test_a_status_means_the_same_where_tokens_are_asked_for(rig: Rig, status: int, outcome: Outcome) -> None:
    async def answer(call: HeardCall) -> None:
        await call.say(whole(b'{"error":"mine"}', status=status))

    rig.answer = answer
    await rig.session.send(dispatch=(engine_request("a"),))
    await rig.session.until(lambda: "a" in rig.session.ends)
    assert rig.outcome("a") is outcome


async def test_an_engine_that_says_nothing_and_does_nothing_is_not_shown_as_moving(rig: Rig) -> None:
    asked = asyncio.Event()
    go = asyncio.Event()

    async def answer(call: HeardCall) -> None:
        asked.set()
        await go.wait()
        await call.say(whole(b"{}"))

    def seq() -> int:
        return rig.session.load.load.trace_seq if rig.session.load is not None else 0

    async def pages() -> int:
        """How often the state's number moves while four pages are read."""
        before, heard = seq(), len(rig.server.heard)
        await until(lambda: len([c for c in rig.server.heard[heard:] if c.line.startswith("GET /metrics")]) >= 4)
        return seq() - before

    rig.answer = answer
    rig.page = PAGE + b"vllm:generation_tokens_total 5.0\nhttp_requests_total 7.0\n"
    assert await pages() >= 2, "without work there is nothing to stand still with"
    await rig.session.send(forward=(forwarded("a"),))
    await asked.wait()
    await pages()
    rig.page = rig.page.replace(b"http_requests_total 7.0", b"http_requests_total 9.0")
    assert await pages() == 0
    rig.page = rig.page.replace(b"tokens_total 5.0", b"tokens_total 6.0")
    assert await pages() == 1
    # One that does not tell how it gets on is believed to.
    rig.page = PAGE
    assert await pages() >= 2
    go.set()
    await rig.session.until(lambda: "a" in rig.session.ends)


async def test_an_answer_that_was_cut_at_its_limit_says_so(rig: Rig) -> None:
    async def answer(call: HeardCall) -> None:
        await call.say(whole(b'{"choices":[{"finish_reason":"length"}],"usage":{"completion_tokens":30}}'))

    rig.answer = answer
    await rig.session.send(forward=(forwarded("a"),))
    await rig.session.until(lambda: "a" in rig.session.ends)
    assert rig.outcome("a") is Outcome.LENGTH


async def test_a_connection_that_breaks_is_the_engines_failure(rig: Rig) -> None:
    async def answer(call: HeardCall) -> None:
        await call.say(CHUNKED + chunk(EVENT))
        call.close()

    rig.answer = answer
    await rig.session.send(forward=(forwarded("a"),))
    await rig.session.until(lambda: "a" in rig.session.ends)
    assert rig.outcome("a") is Outcome.ENGINE_FAILED
    assert "broke" in rig.session.ends["a"].detail
    assert bytes(rig.session.data["a"]) == EVENT


async def test_a_long_body_comes_in_parts(rig: Rig) -> None:
    async def answer(call: HeardCall) -> None:
        await call.say(whole(b"%d" % len(call.body)))

    rig.answer = answer
    part = bytes(range(256)) * 1024
    await rig.session.send(forward=(forwarded("a", body=part, later_bytes=7 * len(part)),))
    for _ in range(7):
        await rig.session.send(body={"a": part, "unknown": b"dropped"})
    await rig.session.until(lambda: "a" in rig.session.ends)
    assert rig.heard[0].body == part * 8


async def test_a_body_is_taken_as_its_engine_reads_it(rig: Rig) -> None:
    async def answer(call: HeardCall) -> None:
        await call.say(whole(b"%d" % len(call.body)))

    rig.answer = answer
    rig.server.reads_bodies.clear()
    part = bytes(range(256)) * 1024
    parts = 128
    assert rig.session.welcome is not None
    window_bytes = rig.session.welcome.body_window_bytes
    assert len(part) < window_bytes < parts * len(part) // 4
    taken = rig.session.taken
    await rig.session.send(forward=(forwarded("a", body=part, later_bytes=(parts - 1) * len(part)),))
    sent = 1
    quiet = 0
    while quiet < 50:
        if sent * len(part) - taken.get("a", 0) < window_bytes:
            await rig.session.send(body={"a": part})
            sent += 1
            quiet = 0
        quiet += 1
        await asyncio.sleep(0.002)
    # What is taken lies in the sockets' buffers, which are the system's to size.
    assert sent < parts // 2, "an engine that reads nothing must stop its client"
    rig.server.reads_bodies.set()
    while sent < parts:
        if sent * len(part) - taken["a"] < window_bytes:
            await rig.session.send(body={"a": part})
            sent += 1
        await asyncio.sleep(0.001)
    await rig.session.until(lambda: "a" in rig.session.ends)
    assert rig.heard[0].body == part * parts
    assert taken["a"] == parts * len(part)


async def test_more_than_the_announced_body_ends_the_call(rig: Rig) -> None:
    await rig.session.send(forward=(forwarded("a", body=b"x", later_bytes=5),))
    await rig.session.send(body={"a": b"y" * 6})
    await rig.session.until(lambda: "a" in rig.session.ends)
    assert rig.outcome("a") is Outcome.ENGINE_FAILED
    await rig.session.send(forward=(forwarded("b", body=b"xxx", later_bytes=-1),))
    await rig.session.until(lambda: "b" in rig.session.ends)
    assert rig.outcome("b") is Outcome.INVALID
    assert "longer than announced" in rig.session.ends["b"].detail


async def test_an_answer_that_nobody_takes_is_held_and_goes_on_when_it_is(rig: Rig) -> None:
    size_bytes = 24 * 1024 * 1024

    async def answer(call: HeardCall) -> None:
        await call.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size_bytes)
        await call.say(b"x" * size_bytes)

    rig.answer = answer
    await rig.session.send(forward=(forwarded("slow"),))
    await rig.session.until(lambda: len(rig.session.data.get("slow", b"")) > UNCONSUMED_BYTES)
    for _ in range(50):
        await asyncio.sleep(0.002)
    came = len(rig.session.data["slow"])
    assert came < 2 * UNCONSUMED_BYTES
    rig.answer = None
    consumed = 0
    while "slow" not in rig.session.ends:
        came = len(rig.session.data["slow"])
        if came > consumed:
            await rig.session.send(consumed={"slow": came - consumed, "unknown": 5})
            consumed = came
        await asyncio.sleep(0.001)
    assert len(rig.session.data["slow"]) == size_bytes


async def test_abort_and_leaving_break_calls_off_in_the_engine(rig: Rig) -> None:
    left: list[bytes] = []

    async def answer(call: HeardCall) -> None:
        await call.say(CHUNKED + chunk(EVENT))
        await call.left()
        left.append(call.body)

    rig.answer = answer
    await rig.session.send(forward=(forwarded("a", body=b"a"), forwarded("b", body=b"b")))
    await rig.session.until(lambda: {"a", "b"} <= rig.session.heads.keys())
    await rig.session.send(abort=("a",))
    await rig.session.until(lambda: "a" in rig.session.ends)
    assert rig.outcome("a") is Outcome.CANCELLED
    await until(lambda: left == [b"a"])
    assert "b" not in rig.session.ends
    await rig.session.leave()
    await until(lambda: left == [b"a", b"b"])
    await until(lambda: rig.node.load().reserved == 0)


async def test_a_call_that_is_no_work_for_the_engine_keeps_its_name(rig: Rig) -> None:
    async def answer(call: HeardCall) -> None:
        await call.say(whole(b"{}"))

    rig.answer = answer
    await rig.session.send(forward=(forwarded("a", target="/v1/completions/render", prompt_tokens=0),))
    await rig.session.until(lambda: "a" in rig.session.ends)
    assert ("x-request-id", "a") in rig.heard[0].headers


async def test_shutting_down_loses_the_call_with_the_node(rig: Rig) -> None:
    async def answer(call: HeardCall) -> None:
        await call.say(CHUNKED + chunk(EVENT))
        await call.left()

    rig.answer = answer
    await rig.session.send(forward=(forwarded("a"),))
    await rig.session.until(lambda: "a" in rig.session.heads)
    await rig.predictor.stop()
    await rig.session.until(lambda: "a" in rig.session.ends)
    assert rig.outcome("a") is Outcome.NODE_LOST
    assert "shutting down" in rig.session.ends["a"].detail


async def test_a_name_that_runs_and_a_request_that_is_none_are_refused(rig: Rig) -> None:
    async def answer(call: HeardCall) -> None:
        await call.left()

    rig.answer = answer
    await rig.session.send(forward=(forwarded("a"), forwarded("a"), forwarded("b", target="no path"), forwarded("")))
    await rig.session.until(lambda: {"b", ""} <= rig.session.ends.keys())
    assert rig.outcome("b") is Outcome.INVALID
    assert "no request of HTTP" in rig.session.ends["b"].detail
    assert rig.outcome("") is Outcome.INVALID
    assert "a" not in rig.session.ends
    await rig.session.send(abort=("a",))
    await rig.session.until(lambda: "a" in rig.session.ends)


async def test_tokens_and_calls_share_a_session(rig: Rig) -> None:
    async def answer(call: HeardCall) -> None:
        if call.line.startswith("POST /v1/completions"):
            piece = b'data: {"choices":[{"index":0,"text":"x","finish_reason":"stop","token_ids":[120]}]}\n\n'
            await call.say(whole(piece + b"data: [DONE]\n\n", kind="text/event-stream"))
        else:
            await call.say(CHUNKED + chunk(EVENT) + LAST)

    rig.answer = answer
    names = [f"r{i}" for i in range(40)]
    await rig.session.send(
        forward=tuple(forwarded(f"f-{name}") for name in names),
        dispatch=tuple(engine_request(name) for name in names),
    )
    await rig.session.until(lambda: len(rig.session.ends) == 80)
    assert all(rig.outcome(name) is Outcome.STOP for name in rig.session.ends)
    assert all(rig.session.tokens[name] == [120] for name in names)
    assert all(bytes(rig.session.data[f"f-{name}"]) == EVENT for name in names)


async def test_a_node_that_cannot_says_so_and_another_may_try() -> None:
    predictor = Predictor(PredictorConfig(node_id="n1", listen="127.0.0.1:0", tokenizer="bytes"))
    await predictor.bind()
    await predictor.start()
    assert predictor.node is not None
    async with open_channel(str(predictor.address)) as channel:
        session = await SessionClient(channel).begin()
        if session.welcome is not None and session.welcome.config.forwards:
            predictor.node.requests._forwarder = None
        await session.send(forward=(forwarded("a"),))
        await session.until(lambda: "a" in session.ends)
        assert codec.outcome_from_wire(session.ends["a"].outcome) is Outcome.NO_NODE
        assert "takes no calls" in session.ends["a"].detail
        await session.leave()
    await predictor.stop()

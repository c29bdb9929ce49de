"""A session of an earlier release, said again to today's node and to today's gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from protos import codec
from protos.runtime.protocol import NUMBER
from protos.v1 import astrolabe_dispatch_pb2 as dispatch_pb
from protos.v1 import astrolabe_predict_pb2 as pb
from simcore.types import Outcome
from tests.e2e.in_process import detail, running, status, until
from tests.e2e.predictor_daemon import EOF, daemon
from tests.e2e.scripted_node import ScriptedNode
from tests.wire.filled import add_unknown_fields
from tests.wire.record import NODE
from tests.wire.recorded import SESSION, Recorded, load, read, releases

pytestmark = pytest.mark.e2e

RELEASE = releases()[-1]
"""The one before this, or this one until the next."""
NEWER = NUMBER + 5
PATIENCE_S = 40.0


def sessions() -> dict[int, list[Recorded]]:
    """By number of the call."""
    found: dict[int, list[Recorded]] = {}
    for row in load(RELEASE):
        if row.method == SESSION and row.call > 0:
            found.setdefault(row.call, []).append(row)
    return found


def busiest() -> list[Recorded]:
    return max(sessions().values(), key=lambda rows: sum("dispatches" in row.meaning for row in rows))


def begun(channel: Any, method: str) -> Any:
    """A call whose messages are bytes."""
    return channel.stream_stream(method)()


def as_sent(message: Any, newer: bool) -> bytes:
    if newer:
        add_unknown_fields(message)
    sent: bytes = message.SerializeToString()
    return sent


@pytest.fixture(scope="module")
def node_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with daemon(tmp_path_factory.mktemp("node"), **{**NODE, "node_id": "today"}) as child:
        yield child.address


@pytest.mark.parametrize("newer", [False, True], ids=["as recorded", "with fields of a newer release"])
async def test_today_s_node_answers_a_recorded_gateway(node_address: str, newer: bool) -> None:
    rows = busiest()
    said = [pb.GatewayFrame.FromString(row.raw) for row in rows if row.way == "request"]
    heard = [pb.NodeFrame.FromString(row.raw) for row in rows if row.way == "response"]
    forecast = {a.ask_id for frame in heard for a in frame.answers if a.HasField("forecast")}
    ends = {p.request_id: p for frame in heard for p in frame.parts if p.HasField("outcome")}
    tokens: dict[str, list[int]] = {}
    for frame in heard:
        for told in frame.parts:
            tokens.setdefault(told.request_id, []).extend(told.token_ids)
    assert forecast
    assert len(ends) >= 3
    answers: dict[int, pb.Answer] = {}
    ended: dict[str, pb.StreamPart] = {}
    came: dict[str, list[int]] = {}
    async with grpc.aio.insecure_channel(node_address) as channel, asyncio.timeout(PATIENCE_S):
        call = begun(channel, SESSION)
        for order in said:
            order.ClearField("retire")
            await call.write(as_sent(order, newer))
        welcome = pb.NodeFrame.FromString(await call.read())
        assert welcome.welcome.node_id == "today"
        while not (ends.keys() <= ended.keys() and forecast <= answers.keys()):
            raw = await call.read()
            assert raw is not EOF, await call.details()
            frame = pb.NodeFrame.FromString(raw)
            answers |= {answer.ask_id: answer for answer in frame.answers}
            for told in frame.parts:
                came.setdefault(told.request_id, []).extend(told.token_ids)
                if told.HasField("outcome"):
                    ended[told.request_id] = told
        call.cancel()
    assert all(answers[ask_id].HasField("forecast") for ask_id in forecast)
    assert {i: end.outcome for i, end in ended.items() if i in ends} == {i: end.outcome for i, end in ends.items()}
    # Of answers that were cut short the recording leaves out frames.
    whole = [i for i, end in ends.items() if end.usage.output_tokens == len(tokens[i]) > 0]
    assert whole
    # Emulated engines make the same tokens of the same request.
    assert {i: came.get(i) for i in whole} == {i: tokens[i] for i in whole}


@pytest.mark.parametrize("newer", [False, True], ids=["as recorded", "with fields of a newer release"])
async def test_today_s_node_answers_recorded_calls(node_address: str, newer: bool) -> None:
    services = ("/astrolabe.v1.Predict/", "/astrolabe.v1.Engine/")
    said = [row for row in load(RELEASE) if row.way == "request" and row.call > 0 and row.method != SESSION]
    calls = [row for row in said if row.method.startswith(services)]
    assert len({row.method for row in calls}) == 8
    async with grpc.aio.insecure_channel(node_address) as channel, asyncio.timeout(PATIENCE_S):
        for row in calls:
            call = begun(channel, row.method)
            await call.write(as_sent(read(row.method, row.way, row.raw), newer))
            await call.done_writing()
            assert await call.read() is not EOF, f"{row.method}: {await call.details()}"
            call.cancel()


class RecordedNode(ScriptedNode):
    """Says what a recorded node has said, to whoever asks now: of its words only the names are new."""

    def __init__(self, newer: bool) -> None:
        super().__init__("recorded")
        self._newer = newer
        frames = [pb.NodeFrame.FromString(row.raw) for row in busiest() if row.way == "response"]
        welcome = next(frame for frame in frames if frame.HasField("welcome"))
        self.node_id = welcome.welcome.node_id
        self.welcome = pb.NodeFrame.FromString(as_sent(welcome, newer))
        self._answer = next(a for f in frames for a in f.answers if a.HasField("forecast"))
        parts = [told for frame in frames for told in frame.parts]
        (whole,) = {p.request_id for p in parts if p.request_id.startswith("plain")}
        self._parts = [told for told in parts if told.request_id == whole]
        self._load = next(frame for frame in frames if frame.HasField("load"))
        self.asked = 0
        self.on_frame = self._reply

    def tokens(self) -> list[int]:
        return [i for told in self._parts for i in told.token_ids]

    def _reply(self, frame: pb.GatewayFrame) -> None:
        for ask in frame.asks:
            self.asked += 1
            answer = pb.Answer.FromString(self._answer.SerializeToString())
            answer.ask_id = ask.ask_id
            self._tell(pb.NodeFrame(answers=[answer]))
        for dispatched in frame.dispatches:
            for told in self._parts:
                renamed = pb.StreamPart.FromString(told.SerializeToString())
                renamed.request_id = dispatched.request.request_id
                self._tell(pb.NodeFrame(parts=[renamed], load=self._load.load))

    def _tell(self, frame: pb.NodeFrame) -> None:
        self.say(pb.NodeFrame.FromString(as_sent(frame, self._newer)))


@pytest.mark.parametrize("newer", [False, True], ids=["as recorded", "with fields of a newer release"])
async def test_today_s_gateway_works_with_a_recorded_node_and_client(newer: bool) -> None:
    node = RecordedNode(newer)
    await node.start()
    (said,) = (
        dispatch_pb.GenerateRequest.FromString(row.raw)
        for row in load(RELEASE)
        if row.meaning.get("request_id") == "plain"
        and row.method.endswith("Dispatch/Generate")
        and row.way == "request"
    )
    try:
        async with running(node.address, policy="min_total_latency") as (gateway, stub):
            await until(lambda: status(gateway, node.node_id) == "up")
            request = dispatch_pb.GenerateRequest.FromString(as_sent(said, newer))
            chunks = [chunk async for chunk in stub.Generate(request, timeout=PATIENCE_S)]
            assert [i for chunk in chunks for i in chunk.token_ids] == node.tokens()
            assert chunks[-1].outcome == codec.outcome_to_wire(Outcome.LENGTH)
            asked = await stub.Place(dispatch_pb.PlaceRequest(request_id="p", prompt_tokens=9, max_output_tokens=9))
            assert asked.node_id == node.node_id
            assert node.asked >= 1
    finally:
        await node.stop()


async def test_a_gateway_says_in_one_line_that_a_node_is_too_new(node: ScriptedNode) -> None:
    assert node.welcome is not None
    node.welcome.welcome.protocol.CopyFrom(pb.Protocol(number=NEWER, oldest=NEWER, release="9.0.0"))
    async with running(node.address) as (gateway, _):
        await until(lambda: "upgrade this gateway" in detail(gateway))
        assert gateway.nodes.listing().nodes[0].status == "down"
        assert f"the node speaks protocol {NEWER} (release 9.0.0), this gateway protocol" in detail(gateway)


async def test_a_node_that_is_a_step_ahead_serves(node: ScriptedNode) -> None:
    assert node.welcome is not None
    node.welcome.welcome.protocol.CopyFrom(pb.Protocol(number=NUMBER + 1, oldest=NUMBER, release="0.2.0"))
    async with running(node.address) as (gateway, _):
        await until(lambda: status(gateway, "n") == "up")


async def test_a_node_says_in_one_line_that_a_gateway_is_too_new(node_address: str) -> None:
    async with grpc.aio.insecure_channel(node_address) as channel, asyncio.timeout(PATIENCE_S):
        call = begun(channel, SESSION)
        newest = pb.Protocol(number=NEWER, oldest=NEWER, release="9.0.0")
        await call.write(pb.GatewayFrame(hello=pb.Hello(gateway_id="g", protocol=newest)).SerializeToString())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await to_its_end(call)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert (refused.value.details() or "").endswith("upgrade this node")


async def to_its_end(call: Any) -> None:
    while await call.read() is not EOF:
        pass

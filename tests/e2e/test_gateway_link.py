"""The gateway against nodes that misbehave in ways a real one does not on demand. In-process, real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from gateway.config import GatewayConfig, NodeEntry
from gateway.main import Gateway
from protos import codec
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from simcore.types import Outcome
from tests.e2e.scripted_node import ScriptedNode, load

pytestmark = pytest.mark.e2e

FAST: dict[str, Any] = {
    "listen": "127.0.0.1:0",
    "policy": "least_requests",
    "tokenizer": "bytes",
    "reconnect_max_s": 0.2,
    "keepalive_s": 0.5,
    "drain_grace_s": 0.2,
}


async def until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - what other processes do sets no event here
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(*entries: str | NodeEntry, **options: Any) -> AsyncIterator[tuple[Gateway, Any]]:
    """A gateway in this process and a client of it; afterwards nothing may be left under way."""
    gateway = Gateway(GatewayConfig(nodes=entries, **{**FAST, **options}))
    await gateway.start()
    try:
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            yield gateway, DispatchStub(channel)
        await until(lambda: not gateway.pump.streams)
        gateway.pump.router.check_quiescent()
    finally:
        await gateway.stop()


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNode]:
    scripted = ScriptedNode("n")
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
async def other() -> AsyncIterator[ScriptedNode]:
    scripted = ScriptedNode("o")
    await scripted.start()
    yield scripted
    await scripted.stop()


def status(gateway: Gateway, node_id: str) -> str:
    return {n.node_id: n.status for n in gateway.nodes.wire().nodes}.get(node_id, "absent")


def detail(gateway: Gateway) -> str:
    return gateway.nodes.wire().nodes[0].detail


def ask(text: str = "hello", **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=text, sampling=types_pb.SamplingParams(max_tokens=8), **fields)


def part(request_id: str, tokens: bytes, outcome: Outcome | None = None) -> predict_pb.NodeFrame:
    message = predict_pb.StreamPart(request_id=request_id, token_ids=tokens)
    if outcome is not None:
        message.outcome = codec.outcome_to_wire(outcome)
        message.usage.CopyFrom(types_pb.Usage(prompt_tokens=5, output_tokens=8))
    return predict_pb.NodeFrame(parts=[message])


async def dispatched(node: ScriptedNode) -> predict_pb.Dispatched:
    """The next dispatch that the node gets."""
    async with asyncio.timeout(5):
        while True:
            frame = await node.received.get()
            if frame.dispatches:
                return frame.dispatches[0]


async def test_tokens_reach_the_client_as_text_cut_at_characters(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        got = await dispatched(node)
        assert (got.dispatch_seq, bytes(got.request.prompt_token_ids)) == (1, b"hello")
        assert got.request.sampling.max_tokens == 8
        euro = "€".encode()
        node.say(part("r1", b"a" + euro[:1]))
        first = await call.read()
        assert (first.text, first.node_id, first.request_id) == ("a", "n", "r1")
        assert dict(await call.initial_metadata())["x-astrolabe-node"] == "n"
        node.say(part("r1", euro[1:], Outcome.STOP))
        last = await call.read()
        assert (last.text, last.outcome, last.usage.output_tokens) == ("€", types_pb.OUTCOME_STOP, 8)
        assert not last.node_id
        assert await call.code() == grpc.StatusCode.OK


async def test_a_lost_session_before_the_first_token_sends_the_request_elsewhere(
    node: ScriptedNode, other: ScriptedNode
) -> None:
    async with running(node.address, other.address, policy="round_robin") as (gateway, stub):
        await until(lambda: status(gateway, "n") == status(gateway, "o") == "up")
        call = stub.Generate(ask(request_id="r1"))
        nodes = {"n": node, "o": other}
        await until(lambda: bool(gateway.pump.streams) and gateway.pump.streams["r1"].node_id in nodes)
        hit = nodes.pop(gateway.pump.streams["r1"].node_id)
        (spare,) = nodes.values()
        await dispatched(hit)
        hit.say(None)
        await dispatched(spare)
        spare.say(part("r1", b"xy", Outcome.STOP))
        chunk = await call.read()
        assert (chunk.text, chunk.node_id) == ("xy", spare.node_id)
        explanation = await stub.Explain(pb.ExplainRequest(request_id="r1"))
        assert [d.attempt for d in explanation.decisions] == [1, 2]
        await until(lambda: status(gateway, hit.node_id) == "up")
        assert hit.sessions == 2


async def test_after_the_first_token_a_lost_node_ends_the_request_with_what_came(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        await dispatched(node)
        node.say(part("r1", b"abc"))
        assert (await call.read()).text == "abc"
        node.say(None)
        last = await call.read()
        assert (last.outcome, last.usage.output_tokens) == (types_pb.OUTCOME_NODE_LOST, 3)
        assert await call.code() == grpc.StatusCode.UNAVAILABLE
        assert "after 3 tokens" in await call.details()
        assert dict(await call.trailing_metadata())["x-astrolabe-outcome"] == "node_lost"


async def test_the_node_that_comes_back_under_its_name_serves_again(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        await node.stop()
        await until(lambda: status(gateway, "n") == "down")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(ask()).read()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        await node.start()
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r2"))
        assert (await dispatched(node)).dispatch_seq == 1
        node.say(part("r2", b"x", Outcome.STOP))
        assert (await call.read()).text == "x"


async def test_a_client_that_leaves_is_aborted_on_the_node(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        await dispatched(node)
        call.cancel()
        async with asyncio.timeout(5):
            frame = await node.received.get()
        assert list(frame.abort_request_ids) == ["r1"]


async def test_cancel_ends_the_clients_call(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        await dispatched(node)
        assert (await stub.Cancel(pb.CancelRequest(request_id="r1"))).found
        assert await call.code() == grpc.StatusCode.CANCELLED
        assert not (await stub.Cancel(pb.CancelRequest(request_id="r1"))).found


async def test_a_slow_client_is_ended_not_buffered(node: ScriptedNode) -> None:
    async with running(node.address, max_buffered_tokens=1000) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        await dispatched(node)
        for _ in range(60):
            # Far more than the flow-control window of a client that reads nothing.
            node.say(part("r1", b"x" * 100_000))
            await asyncio.sleep(0)
        await until(lambda: not gateway.pump.streams)
        explanation = gateway.pump.router.explain("r1")
        assert explanation is not None
        assert explanation.output_tokens < 6_000_000
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
        assert await call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "too slowly" in await call.details()


async def test_an_id_or_a_key_in_use_is_refused_while_the_request_lives(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        first = stub.Generate(ask(request_id="r1", idempotency_key="k"))
        await dispatched(node)
        for again in (ask(request_id="r1"), ask(request_id="r2", idempotency_key="k")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Generate(again).read()
            assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
            assert "r1" in (caught.value.details() or "")
        node.say(part("r1", b"x", Outcome.STOP))
        assert (await first.read()).text == "x"
        assert await first.code() == grpc.StatusCode.OK
        again = stub.Generate(ask(request_id="r1", idempotency_key="k"))
        await dispatched(node)
        node.say(part("r1", b"y", Outcome.STOP))
        assert (await again.read()).text == "y"


async def test_a_placement_is_reserved_on_its_node(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        decision = await stub.Place(pb.PlaceRequest(request_id="p1", prompt_tokens=7, max_output_tokens=9))
        assert decision.node_id == "n"
        async with asyncio.timeout(5):
            reserved = await node.reserved.get()
        assert (reserved.candidate.request_id, reserved.candidate.prompt_tokens) == ("p1", 7)


async def test_when_every_forecast_fails_the_fallback_places(node: ScriptedNode) -> None:
    def refuse(frame: predict_pb.GatewayFrame) -> None:
        answers = [predict_pb.Answer(ask_id=a.ask_id, error="no trace yet") for a in frame.asks]
        if answers:
            node.say(predict_pb.NodeFrame(answers=answers))

    node.on_frame = refuse
    async with running(node.address, policy="min_total_latency") as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        await dispatched(node)
        node.say(part("r1", b"x", Outcome.STOP))
        assert (await call.read()).text == "x"
        (decision,) = (await stub.Explain(pb.ExplainRequest(request_id="r1"))).decisions
        assert decision.policy == "least_requests"
        assert "no trace yet" in decision.reason


async def test_late_forecasts_are_not_waited_for(node: ScriptedNode) -> None:
    async with running(node.address, policy="min_total_latency", forecast_timeout_ms=30.0) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        await dispatched(node)
        node.say(part("r1", b"x", Outcome.STOP))
        assert (await call.read()).text == "x"
        (decision,) = (await stub.Explain(pb.ExplainRequest(request_id="r1"))).decisions
        assert decision.policy == "least_requests"
        assert decision.decision_s >= 0.03
        assert "0.03 s" in decision.reason


async def test_two_nodes_of_one_name_are_told_apart(node: ScriptedNode) -> None:
    twin = ScriptedNode("n")
    await twin.start()
    try:
        async with running(node.address) as (gateway, _):
            await until(lambda: status(gateway, "n") == "up")
            gateway.nodes.set_entries([NodeEntry(address=node.address), NodeEntry(address=twin.address)])
            await until(lambda: any("is that of the node at" in n.detail for n in gateway.nodes.wire().nodes))
            assert [n.status for n in gateway.nodes.wire().nodes] == ["up", "down"]
    finally:
        await twin.stop()


async def test_a_node_that_calls_itself_otherwise_is_not_used(node: ScriptedNode) -> None:
    async with running(NodeEntry(address=node.address, name="other")) as (gateway, _):
        await until(lambda: "calls itself 'n'" in detail(gateway))
        assert status(gateway, "other") == "down"


async def test_a_port_of_something_else_is_named_as_such() -> None:
    stranger = grpc.aio.server()
    port = stranger.add_insecure_port("127.0.0.1:0")
    await stranger.start()
    try:
        async with running(f"127.0.0.1:{port}") as (gateway, _):
            await until(lambda: "no Predict.Session" in detail(gateway))
    finally:
        await stranger.stop(0)


async def test_nonsense_from_a_node_ends_its_session_only(node: ScriptedNode, other: ScriptedNode) -> None:
    async with running(node.address, other.address) as (gateway, _):
        await until(lambda: status(gateway, "n") == status(gateway, "o") == "up")
        node.say(predict_pb.NodeFrame(parts=[predict_pb.StreamPart(request_id="r", outcome=99)]))  # type: ignore[arg-type]
        await until(lambda: "another version" in detail(gateway) or node.sessions == 2)
        assert status(gateway, "o") == "up"
        await until(lambda: status(gateway, "n") == "up")


async def test_a_connection_that_goes_silent_is_noticed(node: ScriptedNode) -> None:
    """Between gateway and node stands a relay that stops passing bytes on, as a broken network does."""
    relay = Relay(node.address)
    await relay.start()
    try:
        async with running(relay.address) as (gateway, _):
            await until(lambda: status(gateway, "n") == "up")
            relay.frozen = True
            frozen_s = time.monotonic()
            await until(lambda: status(gateway, "n") == "down", 10)
            assert time.monotonic() - frozen_s < 5
            relay.frozen = False
            await until(lambda: status(gateway, "n") == "up")
    finally:
        await relay.stop()


async def test_reload_adds_nodes_drains_the_removed_and_sets_the_policy(
    node: ScriptedNode, other: ScriptedNode
) -> None:
    async with running(node.address, drain_grace_s=5.0) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        await dispatched(node)
        gateway.reload(GatewayConfig(**{**FAST, "nodes": (other.address,), "policy": "random", "drain_grace_s": 5.0}))
        await until(lambda: status(gateway, "o") == "up")
        assert (await stub.ListNodes(pb.ListNodesRequest())).policy == "random"
        # The request on the node that left goes on to its end.
        node.say(part("r1", b"done", Outcome.STOP))
        assert (await call.read()).text == "done"
        await until(lambda: [n.node_id for n in gateway.pump.router.nodes()] == ["o"])


async def test_shutdown_lets_answers_finish_and_refuses_new_ones(node: ScriptedNode) -> None:
    async with running(node.address, drain_grace_s=5.0) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        await dispatched(node)
        stopping = asyncio.create_task(gateway.stop())
        await asyncio.sleep(0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(ask(request_id="r2")).read()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in (caught.value.details() or "")
        node.say(part("r1", b"end", Outcome.STOP))
        assert (await call.read()).text == "end"
        await stopping


async def test_shutdown_ends_what_outlives_the_grace(node: ScriptedNode) -> None:
    async with running(node.address, drain_grace_s=0.1) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        await dispatched(node)
        await gateway.stop()
        assert await call.code() == grpc.StatusCode.UNAVAILABLE
        assert "shut down" in await call.details()
        async with asyncio.timeout(5):
            frame = await node.received.get()
        assert list(frame.abort_request_ids) == ["r1"]


async def test_load_of_a_node_is_listed(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        note = predict_pb.LoadNote(load=codec.load_to_wire(load("n", waiting=3)))
        watch = stub.WatchNodes(pb.WatchNodesRequest(min_interval_s=0.05))
        assert (await watch.read()).nodes[0].load.waiting == 0
        node.say(predict_pb.NodeFrame(load=note))
        assert (await watch.read()).nodes[0].load.waiting == 3
        watch.cancel()


class Relay:
    """Passes bytes both ways between a listener of its own and `target`, until `frozen`."""

    def __init__(self, target: str) -> None:
        self.frozen = False
        self.address = ""
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.partition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._pass_on(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                if not self.frozen:
                    sink.write(data)
                    await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()

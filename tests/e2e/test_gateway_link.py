"""The gateway against nodes that misbehave in ways a real one does not on demand."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from gateway.config import NodeEntry
from gateway.main import Gateway
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import Outcome
from tests.e2e.in_process import ask, detail, dispatched, part, running, status, until
from tests.e2e.scripted_node import ScriptedNode

pytestmark = pytest.mark.e2e


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
        assert (last.text, last.outcome, last.usage.output_tokens) == ("€", types_pb.OUTCOME_STOP, 4)
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
        again = await dispatched(spare)
        assert again.request.request_id != "r1"
        spare.say(part(again.request.request_id, b"xy", Outcome.STOP))
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


class _EndsItsNodes:
    """What a scaler with a connector whose nodes end with the gateway does when that stops."""

    def __init__(self, node: ScriptedNode, gateway: Gateway) -> None:
        self._node, self._gateway = node, gateway

    async def stop(self) -> None:
        await self._node.stop()
        await until(lambda: status(self._gateway, "n") in ("down", "absent"))


@pytest.mark.parametrize("ends", [False, True], ids=["nodes-go-on", "nodes-end-with-it"])
async def test_a_gateway_that_stops_warns_of_no_node_that_it_leaves(
    node: ScriptedNode, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    async with running(node.address) as (gateway, _):
        await until(lambda: status(gateway, "n") == "up")
        if ends:
            monkeypatch.setattr(gateway, "scaling", _EndsItsNodes(node, gateway))
        with capture_logs() as lines:
            await gateway.stop()
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == []
    assert [line["node"] for line in lines if line["event"] == "node is down"] == ["n"]


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


@pytest.mark.parametrize("speaks", [True, False])
async def test_a_session_that_is_over_leaves_no_call_behind(node: ScriptedNode, speaks: bool) -> None:
    """Nor a connection, which goes with its call."""

    def calls() -> int:
        return sum(isinstance(o, grpc.aio.StreamStreamCall) for o in gc.get_objects())

    async with running(node.address) as (gateway, _):
        await until(lambda: status(gateway, "n") == "up")
        gc.collect()
        gc.disable()
        try:
            if not speaks:
                await node.stop()
            for number in range(3):
                if speaks:
                    node.say(None)
                    await until(lambda n=number: node.sessions == n + 2 and status(gateway, "n") == "up")  # type: ignore[misc]
                else:
                    await asyncio.sleep(0.3)
            # That of the session of now.
            await until(lambda: calls() <= 1)
        finally:
            gc.enable()


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
            await until(lambda: any("is that of the node at" in n.detail for n in gateway.nodes.listing().nodes))
            assert [n.status for n in gateway.nodes.listing().nodes] == ["up", "down"]
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


async def test_a_node_whose_connection_lives_while_it_says_nothing_is_suspected_then_cut_off(
    node: ScriptedNode, other: ScriptedNode
) -> None:
    async with running(node.address, other.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == status(gateway, "o") == "up")
        node.answers_pings = False
        await until(lambda: "no word" in gateway.nodes.listing().nodes[0].alarm, deadline_s=2.0)
        assert status(gateway, "n") == "up"
        calls = [stub.Generate(ask(request_id=f"r{i}")) for i in range(4)]
        await until(lambda: [s.node_id for s in gateway.pump.streams.values()] == ["o"] * 4)
        await until(lambda: status(gateway, "n") == "down", deadline_s=2.0)
        assert "its connection lives" in detail(gateway)
        assert status(gateway, "o") == "up"
        node.answers_pings = True
        await until(lambda: status(gateway, "n") == "up")
        for i in range(4):
            other.say(part(f"r{i}", b"x", Outcome.STOP))
        for call in calls:
            assert [c.text async for c in call] == ["x"]


async def test_a_begun_answer_goes_on_at_the_other_node_and_late_words_of_the_first_are_dropped(
    node: ScriptedNode, other: ScriptedNode
) -> None:
    async with running(node.address, other.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == status(gateway, "o") == "up")
        call = stub.Generate(ask(request_id="r1"))
        nodes = {"n": node, "o": other}
        await until(lambda: bool(gateway.pump.streams) and gateway.pump.streams["r1"].node_id in nodes)
        hit = nodes.pop(gateway.pump.streams["r1"].node_id)
        (spare,) = nodes.values()
        await dispatched(hit)
        hit.say(part("r1", b"abc"))
        assert (await call.read()).text == "abc"
        hit.say(part("r1", b"", Outcome.ENGINE_FAILED))
        again = await dispatched(spare)
        assert bytes(again.request.prompt_token_ids) == b"helloabc"
        assert again.request.sampling.max_tokens == 8 - 3
        hit.say(part("r1", b"XYZ", Outcome.STOP))
        spare.say(part("r1", b"XYZ"))
        spare.say(part(again.request.request_id, b"de", Outcome.STOP))
        last = await call.read()
        assert (last.text, last.outcome) == ("de", types_pb.OUTCOME_STOP)
        assert (last.usage.prompt_tokens, last.usage.output_tokens) == (5, 5)
        explanation = await stub.Explain(pb.ExplainRequest(request_id="r1"))
        assert [d.attempt for d in explanation.decisions] == [1, 2]
        assert explanation.actual.usage.output_tokens == 5


async def test_a_frozen_trace_behind_a_live_engine_is_seen_while_it_answers_and_the_node_serves_on(
    node: ScriptedNode,
) -> None:
    async with running(node.address, policy="llumnix_freeness") as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        await dispatched(node)
        async with asyncio.timeout(20):
            while "frozen" not in gateway.nodes.listing().nodes[0].alarm:
                node.say(part("r1", b"a"))
                await call.read()
                await asyncio.sleep(0.02)
        again = stub.Generate(ask(request_id="r2"))
        await dispatched(node)
        for name in ("r1", "r2"):
            node.say(part(name, b"z", Outcome.STOP))
        assert (await call.read()).text == "z"
        assert [c.text async for c in again] == ["z"]
        decision = (await stub.Explain(pb.ExplainRequest(request_id="r2"))).decisions[0]
        assert decision.policy == "least_requests"


async def test_a_node_that_retires_gets_nothing_new_and_says_itself_when_it_serves_again(
    node: ScriptedNode, other: ScriptedNode
) -> None:
    async with running(node.address, other.address, policy="round_robin") as (gateway, stub):
        await until(lambda: status(gateway, "n") == status(gateway, "o") == "up")
        link = gateway.nodes.find("n")
        assert link is not None
        link.retire(False)
        async with asyncio.timeout(5):
            while (await node.received.get()).retire != predict_pb.RETIREMENT_RETIRE:
                pass
        assert status(gateway, "n") == "up", "the node has the word"
        # The dispatch crosses the node's word, and is refused.
        calls = [stub.Generate(ask(request_id=f"r{i}")) for i in range(2)]
        crossed = await dispatched(node)
        refusal = part(crossed.request.request_id, b"", Outcome.NO_NODE)
        refusal.leaving.CopyFrom(predict_pb.LeavingState(retiring=True))
        node.say(refusal)
        for _ in range(2):
            there = await dispatched(other)
            other.say(part(there.request.request_id, b"x", Outcome.STOP))
        for call in calls:
            assert [c.text async for c in call] == ["x"]
        assert (status(gateway, "n"), link.retiring, link.empty) == ("retiring", True, False)
        node.say(predict_pb.NodeFrame(leaving=predict_pb.LeavingState(retiring=True, empty=True)))
        await until(lambda: link.empty)
        node.say(predict_pb.NodeFrame(leaving=predict_pb.LeavingState()))
        await until(lambda: status(gateway, "n") == "up")
        assert (link.retiring, link.empty) == (False, False)


async def test_a_node_that_retires_says_so_before_anything_is_sent_there(node: ScriptedNode) -> None:
    assert node.welcome is not None
    node.welcome.leaving.CopyFrom(predict_pb.LeavingState(retiring=True, empty=True))
    async with running(node.address) as (gateway, _):
        await until(lambda: status(gateway, "n") == "retiring")
        link = gateway.nodes.find("n")
        assert link is not None
        assert link.empty
        node.welcome.ClearField("leaving")
        node.say(None)
        await until(lambda: status(gateway, "n") == "up")
        assert not link.empty, "another daemon is another node"

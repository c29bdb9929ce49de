"""The gateway over time: connections that die silently, reloads, shutdowns, watches."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.config import NodeEntry
from gateway.ready import SERVICE
from protos import codec
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from simcore.types import Outcome
from tests.e2e.in_process import Relay, ask, configured, dispatched, part, running, status, until
from tests.e2e.scripted_node import ScriptedNode, load

pytestmark = pytest.mark.e2e


async def test_a_connection_that_goes_silent_is_noticed(node: ScriptedNode) -> None:
    """Between gateway and node stands a relay that stops passing bytes on, as a broken network does."""
    relay = Relay(node.address)
    await relay.start()
    try:
        async with running(relay.address) as (gateway, _):
            await until(lambda: status(gateway, "n") == "up")
            relay.frozen = True
            # TCP by itself would go on trying for a quarter of an hour.
            await until(lambda: status(gateway, "n") == "down", 30)
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
        gateway.reload(configured(other.address, policy="random", drain_grace_s=5.0))
        await until(lambda: status(gateway, "o") == "up")
        assert (await stub.ListNodes(pb.ListNodesRequest())).policy == "random"
        # The request on the node that left goes on to its end.
        node.say(part("r1", b"done", Outcome.STOP))
        assert (await call.read()).text == "done"
        await until(lambda: [n.node_id for n in gateway.pump.router.nodes()] == ["o"])


async def test_a_node_that_is_named_again_while_it_leaves_stays(node: ScriptedNode) -> None:
    """As when a name service leaves an address out of one answer."""
    async with running(node.address, drain_grace_s=5.0) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        await dispatched(node)
        entries = gateway.config.entries()
        gateway.nodes.set_entries([])
        gateway.nodes.set_entries(entries)
        node.say(part("r1", b"done", Outcome.STOP))
        assert (await call.read()).text == "done"
        await until(lambda: status(gateway, "n") == "up")
        after = stub.Generate(ask(request_id="r2"))
        await dispatched(node)
        node.say(part("r2", b"too", Outcome.STOP))
        assert (await after.read()).text == "too"
        assert node.sessions == 1
        assert [n.status for n in gateway.pump.router.nodes()] == ["up"]


async def test_a_node_that_gets_a_name_while_it_runs_requests_serves_on(node: ScriptedNode) -> None:
    async with running(node.address, drain_grace_s=5.0) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        await dispatched(node)
        gateway.nodes.set_entries([NodeEntry(address=node.address, name="n")])
        for _ in range(6):
            node.say(part("r1", b"."))
            assert (await call.read()).text == "."
            assert node.sessions == 1, "the new link waits for the old one, which has the name"
        node.say(part("r1", b"done", Outcome.STOP))
        assert (await call.read()).text == "done"
        await until(lambda: node.sessions == 2 and [n.status for n in gateway.pump.router.nodes()] == ["up"])
        assert status(gateway, "n") == "up"


async def test_a_gateway_that_stops_says_so_and_still_serves_until_nobody_calls(node: ScriptedNode) -> None:
    async with running(node.address, lame_duck_s=10.0, drain_grace_s=5.0) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            begun = stub.Generate(ask(request_id="r1"))
            await dispatched(node)
            stopping = asyncio.create_task(gateway.stop())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            late = stub.Generate(ask(request_id="r2"))
            await dispatched(node)
            node.say(part("r2", b"too", Outcome.STOP))
            assert (await late.read()).text == "too"
            # A fifth of the time without a call is enough; the answer under way has its own grace.
            await until(gateway.intake.closing.is_set)
            node.say(part("r1", b"end", Outcome.STOP))
            assert (await begun.read()).text == "end"
            async with asyncio.timeout(4):
                await stopping
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await DispatchStub(channel).Generate(ask(request_id="r3")).read()
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


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

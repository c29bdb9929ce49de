"""Clients and proxies that ping all the time keep their connection, and the slow answer on it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from protos.runtime.channels import keepalive
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from protos.v1.astrolabe_predict_pb2_grpc import PredictStub
from simcore.types import Outcome
from tests.e2e.in_process import ask, dispatched, part, running, status, until
from tests.e2e.predictor_daemon import daemon
from tests.e2e.scripted_node import ScriptedNode

pytestmark = pytest.mark.e2e

SILENCE_S = 6.0
"""gRPC's own limit forgives two pings and ends the connection at the third."""


def pinging(every_s: float) -> list[tuple[str, int | str]]:
    # With connections of its own: channels of one process share them.
    return [*keepalive(every_s=every_s, patience_s=5.0), ("grpc.use_local_subchannel_pool", 1)]


async def test_a_client_that_pings_every_second_keeps_its_slow_answer(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, _):
        await until(lambda: status(gateway, "n") == "up")
        async with grpc.aio.insecure_channel(gateway.address, options=pinging(1.0)) as channel:
            stub: Any = DispatchStub(channel)
            call = stub.Generate(ask(request_id="slow"))
            await dispatched(node)
            await asyncio.sleep(SILENCE_S)
            node.say(part("slow", b"late", Outcome.STOP))
            assert "".join([chunk.text async for chunk in call]) == "late"


async def test_it_may_ping_without_calls_too(node: ScriptedNode) -> None:
    async with (
        running(node.address) as (gateway, _),
        grpc.aio.insecure_channel(gateway.address, options=pinging(1.0)) as channel,
    ):
        await channel.channel_ready()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.wait_for_state_change(grpc.ChannelConnectivity.READY), SILENCE_S)


async def test_pings_beyond_the_configured_interval_end_the_connection(node: ScriptedNode) -> None:
    async with (
        running(node.address, min_ping_interval_s=60.0) as (gateway, _),
        grpc.aio.insecure_channel(gateway.address, options=pinging(0.2)) as channel,
    ):
        await channel.channel_ready()
        await asyncio.wait_for(channel.wait_for_state_change(grpc.ChannelConnectivity.READY), SILENCE_S)


async def test_a_node_takes_any_pings(tmp_path: Path) -> None:
    with daemon(tmp_path) as child:
        async with grpc.aio.insecure_channel(child.address, options=pinging(0.1)) as channel:
            stub: Any = PredictStub(channel)
            await stub.GetState(predict_pb.GetStateRequest(), timeout=5.0)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(channel.wait_for_state_change(grpc.ChannelConnectivity.READY), 2.0)

"""Real processes: a node that one gateway retires gets nothing from any other, and cuts nobody off."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from deploy.gateway_channel import blocking_channel
from deploy.local_cluster import Child
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from tests.e2e.cluster import MakeCluster, is_idle, listed, until
from tests.e2e.predictor_daemon import SessionClient

pytestmark = pytest.mark.e2e


async def retire(address: str, *, undo: bool = False) -> tuple[bool, bool]:
    """Says it as any gateway does; what the node says to that."""
    async with grpc.aio.insecure_channel(address) as channel:
        session = await SessionClient(channel).begin()
        wish = predict_pb.RETIREMENT_UNDO if undo else predict_pb.RETIREMENT_RETIRE
        # The pong comes after what the node says of it.
        await session.call.write(predict_pb.GatewayFrame(retire=wish, ping=1))
        await session.until(lambda: any(frame.pong for frame in session.frames))
        said = [frame.leaving for frame in session.frames if frame.HasField("leaving")]
        await session.leave()
        return (said[-1].retiring, said[-1].empty) if said else (False, False)


def generate(stub: Any, tokens: int) -> Any:
    """An answer that stays where it is: no other node may go on with it."""
    sampling = types_pb.SamplingParams(max_tokens=tokens, ignore_eos=True)
    request = pb.GenerateRequest(text="x" * 100, sampling=sampling, policy="round_robin", resume=pb.RESUME_OFF)
    return stub.Generate(request, timeout=60.0)


def test_a_node_that_one_retires_gets_nothing_from_any(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(nodes=2, predictor={"time_scale": 4.0})
    child = Child("gateway-2", "gateway", {**cluster.gateway.options, "gateway_id": "two"}, tmp_path)
    child.start()
    child.wait_ready(time.monotonic() + 30.0)
    leaving, address = cluster.nodes[0].options["node_id"], cluster.nodes[0].address
    try:
        with cluster.stub() as one, blocking_channel(child.address) as channel:
            stubs = [one, DispatchStub(channel)]
            until(lambda: all(len(listed(s)) == 2 for s in stubs), what="both gateways see both nodes")
            long = [generate(one, 1500) for _ in range(2)]
            (held,) = [call for call in long if next(call).node_id == leaving]
            assert asyncio.run(retire(address)) == (True, False)
            until(lambda: all(listed(s)[leaving].status == "retiring" for s in stubs), what="both know")
            for stub in stubs:
                for _ in range(6):
                    assert next(generate(stub, 8)).node_id != leaving
            assert asyncio.run(retire(address, undo=True)) == (False, False), "it has a request"
            until(lambda: all(listed(s)[leaving].status == "up" for s in stubs), what="both know that it stays")
            assert leaving in {next(generate(stubs[1], 8)).node_id for _ in range(4)}
            assert asyncio.run(retire(address)) == (True, False)
            *_, last = held
            assert (last.outcome, last.usage.output_tokens) == (types_pb.OUTCOME_LENGTH, 1500), "nobody was cut off"
            until(lambda: asyncio.run(retire(address, undo=True)) == (True, True), what="it has left, for good")
            for stub in stubs:
                assert next(generate(stub, 8)).node_id != leaving
            for call in long:
                call.cancel()
            until(lambda: all(is_idle(s) for s in stubs), what="everything at rest")
    finally:
        child.kill()

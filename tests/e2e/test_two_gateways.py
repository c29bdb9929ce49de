"""Real processes: two gateways over the same nodes."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.gateway_channel import blocking_channel
from deploy.local_cluster import Child, LocalCluster
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from tests.e2e.cluster import MakeCluster, is_idle, listed, until

pytestmark = pytest.mark.e2e

NODES = 4
REQUESTS = 64


def second_gateway(cluster: LocalCluster, folder: Path) -> Child:
    child = Child("gateway-2", "gateway", {**cluster.gateway.options, "gateway_id": "two"}, folder)
    child.start()
    child.wait_ready(time.monotonic() + 30.0)
    return child


def sees_all(stub: Any) -> bool:
    nodes = listed(stub)
    return len(nodes) == NODES and all(n.status == "up" and n.HasField("load") for n in nodes.values())


def request_for(tokens: int, policy: str = "") -> pb.GenerateRequest:
    sampling = types_pb.SamplingParams(max_tokens=tokens, ignore_eos=True)
    return pb.GenerateRequest(text="x" * 300, sampling=sampling, policy=policy)


def test_two_gateways_spread_requests_and_one_that_comes_back_knows_everything(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster(nodes=NODES, predictor={"time_scale": 1.0, "max_num_seqs": 48, "num_blocks": 2000})
    child = second_gateway(cluster, tmp_path)
    try:
        with cluster.stub() as one, blocking_channel(child.address) as channel:
            two = DispatchStub(channel)
            until(lambda: sees_all(two), what="the second gateway sees all nodes")
            _requests_of_both_spread(one, two)
            until(lambda: is_idle(one) and is_idle(two), what="everything at rest")
            calls = [one.Generate(request_for(1600), timeout=120.0) for _ in range(24)]
            until(lambda: running(one) == 24, what="the first gateway's requests run")
            child.kill()
            child.start()
            child.wait_ready(time.monotonic() + 30.0)
            until(lambda: running(two) == 24, deadline_s=10.0, what="the new gateway knows of the other's requests")
            for call in calls:
                assert next(call).node_id, "they never noticed"
                call.cancel()
            until(lambda: is_idle(one) and is_idle(two), what="everything at rest")
    finally:
        child.kill()


def running(stub: Any) -> int:
    """Requests that run on all nodes, as the gateway knows it."""
    try:
        return sum(n.load.running for n in listed(stub).values())
    except grpc.RpcError:
        return 0


def _requests_of_both_spread(one: Any, two: Any) -> None:
    """The first gateway sends its half to two nodes alone; the second hears of that from the nodes, and gives nearly
    all of its own to the other two. One that knew of its own requests only would make it 24 and 8."""
    for node_id in ("node-0", "node-1"):
        one.Drain(pb.DrainRequest(node_id=node_id), timeout=5)
    calls = []
    for i in range(REQUESTS):
        gateway = one if i < REQUESTS // 2 else two
        calls.append(gateway.Generate(request_for(1600, "llumnix_freeness"), timeout=120.0))
        until(lambda i=i: running(one) == running(two) == i + 1, what=f"both gateways know of request {i + 1}")  # type: ignore[misc]
    where = Counter(next(call).node_id for call in calls)
    assert sum(where.values()) == REQUESTS
    assert len(where) == NODES
    assert min(where.values()) >= 12, where
    assert max(where.values()) <= 20, where
    for call in calls:
        call.cancel()
    for node_id in ("node-0", "node-1"):
        one.Drain(pb.DrainRequest(node_id=node_id, undo=True), timeout=5)

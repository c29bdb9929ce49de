"""Real processes: two gateways over the same nodes."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
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
BURST = 64


def second_gateway(cluster: LocalCluster, folder: Path) -> Child:
    child = Child("gateway-2", "gateway", {**cluster.gateway.options, "gateway_id": "two"}, folder)
    child.start()
    child.wait_ready(time.monotonic() + 30.0)
    return child


def sees_all(stub: Any) -> bool:
    nodes = listed(stub)
    return len(nodes) == NODES and all(n.status == "up" and n.HasField("load") for n in nodes.values())


def request_for(tokens: int) -> pb.GenerateRequest:
    sampling = types_pb.SamplingParams(max_tokens=tokens, ignore_eos=True)
    return pb.GenerateRequest(text="x" * 300, sampling=sampling)


def node_of(stub: Any, tokens: int) -> str:
    chunks = list(stub.Generate(request_for(tokens), timeout=45.0))
    assert chunks[-1].usage.output_tokens == tokens
    return str(chunks[0].node_id)


def test_two_gateways_spread_a_burst_and_one_that_comes_back_knows_everything(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster(nodes=NODES, predictor={"time_scale": 4.0, "max_num_seqs": 48, "num_blocks": 2000})
    child = second_gateway(cluster, tmp_path)
    try:
        with (
            cluster.stub() as one,
            blocking_channel(child.address) as channel,
            ThreadPoolExecutor(BURST) as clients,
        ):
            two = DispatchStub(channel)
            until(lambda: sees_all(two), what="the second gateway sees all nodes")
            _a_burst_spreads(one, two, clients)
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


def _a_burst_spreads(one: Any, two: Any, clients: ThreadPoolExecutor) -> None:
    """16 to each node if all were known to all; at random a node would get between 9 and 23. Nobody ends before the
    last has come: answers of 400 tokens take 2 s and more."""
    where = Counter(clients.map(lambda i: node_of((one, two)[i % 2], 400), range(BURST)))
    assert sum(where.values()) == BURST
    assert len(where) == NODES
    assert min(where.values()) >= 11, where
    assert max(where.values()) <= 21, where

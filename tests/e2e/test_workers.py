"""Several gateway processes behind one pair of ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import urllib.request
from typing import Any

import grpc
import psutil
import pytest

from deploy.local_cluster import LocalCluster
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from tests.e2e.cluster import MakeCluster, until
from tests.e2e.http_client import RawClient

pytestmark = pytest.mark.e2e

WORKERS = 2
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


def workers(cluster: LocalCluster) -> list[psutil.Process]:
    return psutil.Process(cluster.gateway.pid).children()


def listeners(cluster: LocalCluster) -> set[int]:
    """Processes that accept on the HTTP port."""
    port = int(cluster.gateway.http_address.rpartition(":")[2])
    found = set()
    for process in workers(cluster):
        # One may die between the list and the look.
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = process.net_connections("tcp")
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
                found.add(process.pid)
    return found


async def many(cluster: LocalCluster, count: int) -> list[int]:
    """Requests on connections of their own, which the kernel spreads over the workers."""

    async def one(number: int) -> int:
        async with RawClient(cluster.gateway.http_address) as client:
            client.post("/v1/completions", {"prompt": "hi", "max_tokens": 2, "request_id": f"m{number}"})
            return (await client.reply(30)).status

    return await asyncio.gather(*(one(n) for n in range(count)))


def stubs(cluster: LocalCluster, count: int) -> list[Any]:
    return [DispatchStub(grpc.insecure_channel(cluster.address, options=OWN_CONNECTION)) for _ in range(count)]


def metric(cluster: LocalCluster, name: str) -> float:
    page = urllib.request.urlopen(f"{cluster.url}/metrics", timeout=5).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


def test_workers_act_as_one_gateway(make_cluster: MakeCluster) -> None:
    """One cluster, many looks at it: starting processes is what costs."""
    cluster = make_cluster(nodes=2, gateway={"workers": WORKERS, "policy": "least_requests"})
    assert len(workers(cluster)) == WORKERS
    assert listeners(cluster) == {p.pid for p in workers(cluster)}
    assert asyncio.run(many(cluster, 40)) == [200] * 40
    until(lambda: metric(cluster, "astrolabe_requests_total") == 40.0, what="all requests on one page")
    asked = stubs(cluster, 8)
    _any_worker_explains_any_request(asked)
    _any_worker_cancels_any_request(asked)
    _any_worker_moves_any_request(asked)
    _policies_and_drains_reach_all(asked)
    _an_idempotency_key_holds_across_workers(asked)
    _a_dead_worker_is_replaced_and_knows_what_operators_said(cluster)


def _any_worker_explains_any_request(asked: list[Any]) -> None:
    for number in range(0, 40, 10):
        for stub in asked:
            told = stub.Explain(pb.ExplainRequest(request_id=f"m{number}"), timeout=5)
            assert told.actual.usage.output_tokens == 2


def _any_worker_cancels_any_request(asked: list[Any]) -> None:
    sampling = types_pb.SamplingParams(max_tokens=1500, ignore_eos=True)
    for number, stub in enumerate(asked):
        request_id = f"c{number}"
        call = stub.Generate(pb.GenerateRequest(request_id=request_id, text="x", sampling=sampling), timeout=30)
        next(iter(call))
        listed = asked[-1 - number].ListNodes(pb.ListNodesRequest(), timeout=5)
        assert sum(n.in_flight for n in listed.nodes) >= 1
        assert asked[-1 - number].Cancel(pb.CancelRequest(request_id=request_id), timeout=5).found
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() == grpc.StatusCode.CANCELLED


def _any_worker_moves_any_request(asked: list[Any]) -> None:
    sampling = types_pb.SamplingParams(max_tokens=1500, ignore_eos=True, temperature=0.0)
    for number, stub in enumerate(asked[:4]):
        request_id = f"v{number}"
        call = stub.Generate(pb.GenerateRequest(request_id=request_id, text="x", sampling=sampling), timeout=30)
        at = next(iter(call)).node_id
        other = "node-1" if at == "node-0" else "node-0"
        told = asked[-1 - number].Move(pb.MoveRequest(request_id=request_id, node=other), timeout=5).move
        assert (told.source, told.destination) == (at, other)
        with pytest.raises(grpc.RpcError) as refused:
            asked[-1 - number].Move(pb.MoveRequest(request_id=request_id, node="node-7"), timeout=5)
        assert isinstance(refused.value, grpc.Call)
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        call.cancel()


def _policies_and_drains_reach_all(asked: list[Any]) -> None:
    asked[0].SetPolicy(pb.SetPolicyRequest(policy="random"), timeout=5)
    asked[0].Drain(pb.DrainRequest(node_id="node-0"), timeout=5)
    for stub in asked:
        listed = stub.ListNodes(pb.ListNodesRequest(), timeout=5)
        assert listed.policy == "random"
        assert {n.node_id: n.status for n in listed.nodes} == {"node-0": "draining", "node-1": "up"}


def _an_idempotency_key_holds_across_workers(asked: list[Any]) -> None:
    sampling = types_pb.SamplingParams(max_tokens=1500, ignore_eos=True)
    first = asked[0].Generate(pb.GenerateRequest(text="x", sampling=sampling, idempotency_key="k"), timeout=30)
    next(iter(first))
    for stub in asked:
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(pb.GenerateRequest(text="x", sampling=sampling, idempotency_key="k"), timeout=5))
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
    first.cancel()


def _a_dead_worker_is_replaced_and_knows_what_operators_said(cluster: LocalCluster) -> None:
    victim = workers(cluster)[0]
    victim.send_signal(signal.SIGKILL)
    until(lambda: len(listeners(cluster) - {victim.pid}) == WORKERS, what="a new worker")

    def all_agree() -> bool:
        views = [stub.ListNodes(pb.ListNodesRequest(), timeout=5) for stub in stubs(cluster, 8)]
        return all(view.policy == "random" and {n.status for n in view.nodes} == {"draining", "up"} for view in views)

    until(all_agree, what="the new worker to have taken over policy and drain")
    assert asyncio.run(many(cluster, 20)) == [200] * 20
    log = [json.loads(line) for line in cluster.gateway.log_path.read_text().splitlines()]
    assert sum("a worker has died" in line["event"] for line in log) == 1


def test_a_worker_that_cannot_start_stops_all_with_its_reason(make_cluster: MakeCluster) -> None:
    with pytest.raises(Exception, match=r"keys\.toml: no such file"):
        make_cluster(nodes=1, gateway={"workers": WORKERS, "keys": "keys.toml"})

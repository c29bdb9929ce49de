"""Real processes: requests that no node can take are held, placed in turn, or refused with a time to come back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from tests.e2e.cluster import MakeCluster, is_idle, until

pytestmark = pytest.mark.e2e

SEATS, FEW, ROOM = 4, 4, 6


def request_for(request_id: str, tokens: int) -> pb.GenerateRequest:
    sampling = types_pb.SamplingParams(max_tokens=tokens, ignore_eos=True)
    return pb.GenerateRequest(request_id=request_id, text="hello", sampling=sampling)


def answer(stub: Any, request_id: str, timeout_s: float) -> list[pb.GenerateChunk]:
    return list(stub.Generate(request_for(request_id, 5), timeout=timeout_s))


def held(stub: Any) -> pb.NodeList:
    found = stub.ListNodes(pb.ListNodesRequest(), timeout=5.0)
    assert isinstance(found, pb.NodeList)
    return found


@pytest.mark.parametrize("policy", ["min_total_latency", "least_requests"])
def test_held_requests_are_placed_in_turn_and_those_too_many_are_refused(
    make_cluster: MakeCluster, policy: str
) -> None:
    cluster = make_cluster(
        nodes=1,
        predictor={"max_num_seqs": SEATS, "time_scale": 10.0},
        gateway={"policy": policy, "hold": "always", "hold_max_requests": ROOM},
    )
    with cluster.stub() as stub, ThreadPoolExecutor(16) as clients:
        long = [stub.Generate(request_for(f"long-{i}", 1500), timeout=60.0) for i in range(SEATS)]
        assert all(next(call).node_id == "node-0" for call in long)
        short = [clients.submit(answer, stub, f"short-{i}", 60.0) for i in range(FEW)]
        until(lambda: held(stub).held == FEW, what="the short ones are held")
        late = [clients.submit(answer, stub, f"late-{i}", 2.0) for i in range(12)]
        ends: list[Any] = [future.exception() for future in late]
        full = [e for e in ends if isinstance(e, grpc.Call) and e.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert len(full) >= 12 - (ROOM - FEW), ends
        for refusal in full:
            trailing = {str(key): value for key, value in refusal.trailing_metadata()}
            assert float(trailing["retry-after-s"]) > 0
            assert "try again in" in str(refusal.details())
        until(lambda: held(stub).held == FEW, what="deadlines of those held are over")
        for call in long:
            call.cancel()
        for chunks in [future.result() for future in short]:
            assert chunks[-1].usage.output_tokens == 5
        until(lambda: held(stub).held == 0 and is_idle(stub), what="everything at rest")
        explained = stub.Explain(pb.ExplainRequest(request_id="short-0"), timeout=5.0)
        assert explained.decisions[0].node_id == "node-0"

"""Gateway, daemon and vLLM server as processes, and what tests ask of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from deploy.local_cluster import ClusterSpec, LocalCluster
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_predict_pb2_grpc import PredictStub
from tests.vllm.servers import Server

NODE = {"engine": "vllm", "tokenizer": "bytes", "engine_wait_s": 400}


@contextmanager
def chain(
    server: Server, folder: Path, *, gateway: dict[str, Any] | None = None, **options: Any
) -> Iterator[LocalCluster]:
    """A daemon beside the server and a gateway before it. `options` are the daemon's."""
    folder.mkdir(exist_ok=True)
    cluster = LocalCluster(
        ClusterSpec(
            nodes=1,
            gateway_port=0,
            first_node_port=0,
            predictor={**NODE, "engine_url": server.url, **options},
            gateway={"tokenizer": "bytes", "reconnect_max_s": 0.3, "keepalive_s": 10.0, **(gateway or {})},
        ),
        folder,
    )
    try:
        cluster.start(timeout_s=240.0)
        yield cluster
    finally:
        cluster.stop()


def ask(
    name: str, prompt: list[int], *, max_tokens: int, ignore_eos: bool = True, priority: int = 0
) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        request_id=name,
        token_ids=pb.TokenIds(ids=prompt),
        priority=priority,
        sampling=types_pb.SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=ignore_eos),
    )


def tokens_of(stub: Any, asked: pb.GenerateRequest) -> list[int]:
    tokens: list[int] = []
    for chunk in stub.Generate(asked, timeout=60.0):
        tokens.extend(chunk.token_ids)
    return tokens


def state(cluster: LocalCluster) -> types_pb.NodeState:
    with grpc.insecure_channel(cluster.nodes[0].address) as channel:
        answer: types_pb.NodeState = PredictStub(channel).GetState(predict_pb.GetStateRequest(), timeout=5.0)
        return answer


def forecast(cluster: LocalCluster, *, prompt_tokens: int, output_tokens: int) -> types_pb.Forecast:
    """What the daemon foresees for a request of known length."""
    candidate = types_pb.Candidate(
        request_id="if",
        prompt_tokens=prompt_tokens,
        max_output_tokens=output_tokens,
        belief=types_pb.LengthBelief(atoms_tokens=[output_tokens]),
    )
    with grpc.insecure_channel(cluster.nodes[0].address) as channel:
        reply = PredictStub(channel).Predict(predict_pb.PredictRequest(candidates=[candidate]), timeout=5.0)
        answer: types_pb.Forecast = reply.forecasts[0]
        return answer


def is_quiet(cluster: LocalCluster, server: Server) -> bool:
    """Nothing anywhere, in the daemon's mirror and in the engine's own metrics, and all blocks free."""
    seen = state(cluster)
    return (
        seen.synchronised
        and not (seen.running or seen.waiting or seen.reserved)
        and seen.free_blocks == seen.config.num_blocks
        and server.metric("vllm:num_requests_running") == 0
        and server.metric("vllm:num_requests_waiting") == 0
        and server.metric("vllm:kv_cache_usage_perc") == 0
    )


def works(cluster: LocalCluster, name: str) -> Callable[[], bool]:
    def attempt() -> bool:
        try:
            with cluster.stub() as stub:
                return len(tokens_of(stub, ask(f"{name}-{time.monotonic_ns()}", [1, 2, 3], max_tokens=5))) == 5
        except grpc.RpcError:
            return False

    return attempt

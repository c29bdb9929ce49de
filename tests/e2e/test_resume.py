"""A node dies in the middle of answers: the clients notice nothing, or are told in plain words."""

from __future__ import annotations

import random
import signal
import threading
from typing import Any

import grpc
import pytest

from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from tests.e2e.cluster import MakeCluster, until

pytestmark = pytest.mark.e2e


class Reader(threading.Thread):
    """One client, and what it has got so far."""

    def __init__(self, stub: Any, request: pb.GenerateRequest) -> None:
        super().__init__(daemon=True)
        self.tokens: list[int] = []
        self.logprobs: list[Any] = []
        self.node_id = ""
        self.last: pb.GenerateChunk | None = None
        self.error: grpc.RpcError | None = None
        self._call = stub.Generate(request, timeout=60)

    def has_begun(self) -> bool:
        return bool(self.tokens)

    def run(self) -> None:
        try:
            for chunk in self._call:
                self.node_id = self.node_id or chunk.node_id
                self.tokens.extend(chunk.token_ids)
                self.logprobs.extend(chunk.logprobs)
                self.last = chunk
        except grpc.RpcError as error:
            self.error = error


def ask(name: str, prompt: list[int], max_tokens: int | None = None, **fields: Any) -> pb.GenerateRequest:
    sampling = types_pb.SamplingParams(max_tokens=max_tokens, **fields.pop("sampling", {"temperature": 0.0}))
    return pb.GenerateRequest(request_id=name, token_ids=pb.TokenIds(ids=prompt), sampling=sampling, **fields)


def read_all(stub: Any, request: pb.GenerateRequest) -> Reader:
    reader = Reader(stub, request)
    reader.run()
    assert reader.error is None
    return reader


def under_way(readers: list[Reader], tokens: int) -> bool:
    running = [r for r in readers if r.is_alive()]
    assert running, "all answers were over before a node was killed"
    return any(len(r.tokens) >= tokens for r in running)


def test_killed_nodes_leave_no_trace_in_the_answers(make_cluster: MakeCluster) -> None:
    """Greedy answers of natural length, every other one with logprobs; two nodes of three are killed one after the
    other, each amid answers."""
    seed = random.SystemRandom().randrange(1 << 30)
    rng = random.Random(seed)
    prompts = [[rng.randrange(97, 123) for _ in range(rng.randrange(5, 60))] for _ in range(12)]
    asked = [{"temperature": 0.0, "logprobs": 2 if i % 2 else None} for i in range(len(prompts))]
    cluster = make_cluster(
        nodes=3, predictor={"time_scale": 4.0}, gateway={"policy": "least_requests"}, expect_deaths=True
    )
    with cluster.stub() as stub:
        readers = [Reader(stub, ask(f"r{i}", prompt, 400, sampling=asked[i])) for i, prompt in enumerate(prompts)]
        for reader in readers:
            reader.start()
        for node in cluster.nodes[:2]:
            until(lambda: under_way(readers, 50), what="answers under way")
            node.signal(signal.SIGKILL)
        for reader in readers:
            reader.join(60)
        for reader in readers:
            assert reader.error is None
        told = [stub.Explain(pb.ExplainRequest(request_id=f"r{i}"), timeout=5) for i in range(len(prompts))]
        assert any(len(t.decisions) > 1 for t in told), "no answer was interrupted"
        whole = [read_all(stub, ask(f"whole{i}", p, 400, sampling=asked[i])) for i, p in enumerate(prompts)]
        for i, reader in enumerate(readers):
            where = f"seed {seed}, request {i}, decided {len(told[i].decisions)} times"
            assert reader.tokens == whole[i].tokens, where
            assert reader.logprobs == whole[i].logprobs, where
            assert len(reader.logprobs) == (len(reader.tokens) if i % 2 else 0), where
            assert reader.last is not None
            assert reader.last.usage.prompt_tokens == len(prompts[i])
            assert reader.last.usage.output_tokens == len(whole[i].tokens)
            assert told[i].actual.usage.prompt_tokens == len(prompts[i])
            assert told[i].actual.usage.output_tokens == len(whole[i].tokens)


def test_where_going_on_would_not_be_exact_the_client_is_told_what_it_has(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(
        nodes=2, predictor={"time_scale": 2.0}, gateway={"policy": "least_requests"}, expect_deaths=True
    )
    seeded = {"temperature": 0.8, "seed": 7, "ignore_eos": True}
    greedy = {"temperature": 0.0, "ignore_eos": True}
    cases = [
        ("seeded", ask("seeded", [5] * 9, 900, sampling=seeded), False),
        ("best-effort", ask("best-effort", [5] * 9, 900, sampling=seeded, resume=pb.RESUME_BEST_EFFORT), True),
        ("off", ask("off", [5] * 9, 900, sampling=greedy, resume=pb.RESUME_OFF), False),
        ("greedy", ask("greedy", [5] * 9, 900, sampling=greedy), True),
    ]
    with cluster.stub() as stub:
        # Two of each, so that each is on both nodes: the second four go round the other way.
        readers: list[tuple[Reader, bool]] = []
        for name, request, goes_on in [*cases, *cases[1:], cases[0]]:
            copy = pb.GenerateRequest()
            copy.CopyFrom(request)
            copy.request_id = f"{name}-{len(readers)}"
            reader = Reader(stub, copy)
            reader.start()
            until(reader.has_begun, what=f"first token of {name}")
            readers.append((reader, goes_on))
        victim = readers[0][0].node_id
        next(n for n in cluster.nodes if n.name == victim).signal(signal.SIGKILL)
        for reader, goes_on in readers:
            reader.join(60)
            if reader.node_id != victim or goes_on:
                assert reader.error is None
                assert len(reader.tokens) == 900
                continue
            assert isinstance(reader.error, grpc.Call)
            assert reader.error.code() is grpc.StatusCode.UNAVAILABLE
            assert "not resumed" in (reader.error.details() or "")
            assert reader.last is not None
            assert reader.last.outcome == types_pb.OUTCOME_NODE_LOST
            assert reader.last.usage.output_tokens == len(reader.tokens) > 0
        until(
            lambda: all(n.in_flight == 0 for n in stub.ListNodes(pb.ListNodesRequest()).nodes), what="no request left"
        )

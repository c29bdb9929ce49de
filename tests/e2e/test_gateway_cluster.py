"""Real processes: a gateway before emulated nodes, and everything that happens to requests on the way."""

from __future__ import annotations

import concurrent.futures
import random
import signal
import threading
import time
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.core.decision.policies.registry import policy_names
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from tests.e2e.cluster import MakeCluster, is_idle, listed, until

pytestmark = pytest.mark.e2e


def ask(
    text: str = "hello there", *, max_tokens: int | None = 20, tokens: int | None = None, **fields: Any
) -> pb.GenerateRequest:
    """`tokens`: the answer's true length, which the emulated engine obeys through max_tokens and ignore_eos."""
    if tokens is not None:
        sampling = types_pb.SamplingParams(max_tokens=tokens, ignore_eos=True)
    else:
        sampling = types_pb.SamplingParams(max_tokens=max_tokens)
    return pb.GenerateRequest(text=text, sampling=sampling, **fields)


def answer(stub: Any, request: pb.GenerateRequest, timeout_s: float = 30.0) -> list[pb.GenerateChunk]:
    return list(stub.Generate(request, timeout=timeout_s))


def refused(stub: Any, request: pb.GenerateRequest) -> grpc.Call:
    with pytest.raises(grpc.RpcError) as caught:
        answer(stub, request)
    error = caught.value
    assert isinstance(error, grpc.Call)
    return error


def test_answers_bad_requests_and_operators_calls(make_cluster: MakeCluster) -> None:
    """One cluster, many looks at it: starting processes is what costs."""
    cluster = make_cluster(nodes=2, predictor={"reservation_ttl_s": 1.0})
    with cluster.stub() as stub:
        _text_and_token_ids_stream_and_end_with_usage(stub)
        _max_tokens_absent_means_what_the_context_leaves(stub)
        _bad_requests_are_refused_and_disturb_nothing(stub)
        _a_deadline_ends_the_request_on_the_node_too(stub)
        _place_explain_and_policies(stub)
        _drained_nodes_get_nothing(stub)
        until(lambda: is_idle(stub), what="everything at rest")
    with grpc.insecure_channel(cluster.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "astrolabe.v1.Dispatch"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


def _text_and_token_ids_stream_and_end_with_usage(stub: Any) -> None:
    call = stub.Generate(ask(tokens=17, request_id="by-text"), timeout=30)
    chunks = list(call)
    metadata = dict(call.initial_metadata())
    assert metadata["x-astrolabe-node"] == chunks[0].node_id
    assert metadata["x-request-id"] == chunks[0].request_id == "by-text"
    assert sum(len(c.token_ids) for c in chunks) == 17
    assert "".join(c.text for c in chunks) == bytes(t for c in chunks for t in c.token_ids).decode()
    assert [c.HasField("outcome") for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].outcome == types_pb.OUTCOME_LENGTH
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.output_tokens) == (len("hello there"), 17)

    by_ids = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=range(97, 120)), sampling=types_pb.SamplingParams(max_tokens=5, ignore_eos=True)
    )
    chunks = answer(stub, by_ids)
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.output_tokens) == (23, 5)
    assert chunks[0].request_id.startswith("r-")

    call = stub.Generate(ask(tokens=1), metadata=(("x-request-id", "from-metadata"),), timeout=30)
    assert next(iter(call)).request_id == "from-metadata"


def _max_tokens_absent_means_what_the_context_leaves(stub: Any) -> None:
    request = pb.GenerateRequest(text="x" * 2000, sampling=types_pb.SamplingParams(ignore_eos=True))
    assert answer(stub, request)[-1].usage.output_tokens == 48
    request.sampling.max_tokens = 1000
    assert answer(stub, request)[-1].usage.output_tokens == 48


def _bad_requests_are_refused_and_disturb_nothing(stub: Any) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    cases = [
        (ask("x" * 2048), invalid, "2048"),
        (ask("x" * 3000), invalid, "3000"),
        (ask(max_tokens=0), invalid, "max_tokens must be >= 1, got 0"),
        (ask(max_tokens=-5), invalid, "got -5"),
        (ask(""), invalid, "prompt is empty"),
        (pb.GenerateRequest(), invalid, "prompt is empty"),
        (ask(policy="min_total_latenc"), invalid, "did you mean 'min_total_latency'"),
        (ask(request_id="x" * 200), invalid, "128"),
        (ask(slo=pb.Slo(deadline_s=-1)), invalid, "slo.deadline_s"),
        (ask(belief=types_pb.LengthBelief(atoms_tokens=[5, 3])), invalid, "belief"),
        (pb.GenerateRequest(text="x", sampling=types_pb.SamplingParams(temperature=-1)), invalid, "temperature"),
        (pb.GenerateRequest(text="x", sampling=types_pb.SamplingParams(top_p=1.5)), invalid, "top_p"),
        (pb.GenerateRequest(text="x", sampling=types_pb.SamplingParams(stop=[""])), invalid, "stop string"),
    ]
    for request, code, words in cases:
        error = refused(stub, request)
        assert error.code() == code, error.details()
        assert words in (error.details() or "")
    error = refused(stub, ask(model="gpt-9"))
    assert error.code() in (invalid, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE)
    assert "gpt-9" in (error.details() or "")
    assert answer(stub, ask(tokens=3))[-1].usage.output_tokens == 3


def _a_deadline_ends_the_request_on_the_node_too(stub: Any) -> None:
    error = refused(stub, ask(tokens=1500, slo=pb.Slo(deadline_s=0.2), request_id="late"))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: is_idle(stub), what="the late request off its node")
    explanation = stub.Explain(pb.ExplainRequest(request_id="late"), timeout=5)
    assert explanation.actual.outcome == types_pb.OUTCOME_DEADLINE


def _place_explain_and_policies(stub: Any) -> None:
    decision = stub.Place(pb.PlaceRequest(request_id="p", prompt_tokens=50, max_output_tokens=60), timeout=5)
    assert decision.node_id in ("node-0", "node-1")
    assert decision.policy == "min_total_latency"
    assert {s.node_id for s in decision.scores} == {"node-0", "node-1"}
    assert all(s.cost > 0 and (s.HasField("forecast") or "to be tested" in s.note) for s in decision.scores)
    explanation = stub.Explain(pb.ExplainRequest(request_id="p"), timeout=5)
    assert explanation.decisions[0].node_id == decision.node_id

    answer(stub, ask(tokens=9, request_id="why"))
    explanation = stub.Explain(pb.ExplainRequest(request_id="why"), timeout=5)
    assert explanation.decisions[0].reason
    assert explanation.actual.outcome == types_pb.OUTCOME_LENGTH
    assert explanation.actual.usage.output_tokens == 9
    assert 0 < explanation.actual.ttft_s <= explanation.actual.e2e_s

    with pytest.raises(grpc.RpcError, match="nothing is known"):
        stub.Explain(pb.ExplainRequest(request_id="never"), timeout=5)
    with pytest.raises(grpc.RpcError, match="did you mean 'random'"):
        stub.SetPolicy(pb.SetPolicyRequest(policy="ramdom"), timeout=5)
    previous = "min_total_latency"
    for name in policy_names():
        assert stub.SetPolicy(pb.SetPolicyRequest(policy=name), timeout=5).previous == previous
        answer(stub, ask(tokens=2, request_id=f"by-{name}"))
        decided = stub.Explain(pb.ExplainRequest(request_id=f"by-{name}"), timeout=5).decisions[0]
        assert decided.policy == name
        previous = name
    assert stub.SetPolicy(pb.SetPolicyRequest(policy="min_lunmnix_load"), timeout=5).previous == previous
    assert stub.SetPolicy(pb.SetPolicyRequest(policy="round_robin"), timeout=5).previous == "llumnix_freeness"


def _drained_nodes_get_nothing(stub: Any) -> None:
    stub.Drain(pb.DrainRequest(node_id="node-0"), timeout=5)
    assert listed(stub)["node-0"].status == "draining"
    assert {answer(stub, ask(tokens=1))[0].node_id for _ in range(6)} == {"node-1"}
    stub.Drain(pb.DrainRequest(node_id="node-0", undo=True), timeout=5)
    assert listed(stub)["node-0"].status == "up"
    assert {answer(stub, ask(tokens=1))[0].node_id for _ in range(6)} == {"node-0", "node-1"}
    with pytest.raises(grpc.RpcError, match="configured nodes: node-0, node-1"):
        stub.Drain(pb.DrainRequest(node_id="node-7"), timeout=5)


def test_clients_that_leave_at_random_leave_nothing_behind(make_cluster: MakeCluster) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    cluster = make_cluster(nodes=3)
    plans = [(f"c{i}", rng.randint(5, 120), rng.random() * 0.4 if i % 3 == 0 else None) for i in range(50)]
    with grpc.insecure_channel(cluster.address) as channel:
        stub: Any = DispatchStub(channel)

        def client(request_id: str, tokens: int, leaves_after_s: float | None) -> int | None:
            call = stub.Generate(ask(tokens=tokens, request_id=request_id), timeout=50)
            if leaves_after_s is not None:
                threading.Timer(leaves_after_s, call.cancel).start()
            try:
                count: int | None = sum(len(c.token_ids) for c in call)
            except grpc.RpcError:
                count = None
            assert (call.code() == grpc.StatusCode.CANCELLED) == (count is None)
            return count

        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            got = list(pool.map(lambda plan: client(*plan), plans))
        for (_, tokens, leaves), count in zip(plans, got, strict=True):
            assert count == tokens or (leaves is not None and count is None)
        assert sum(count is None for count in got) >= 5, "hardly anybody left: the test shows nothing"
        until(lambda: is_idle(stub), what="all counters back at zero")


def test_one_client_that_leaves_frees_its_node_before_the_answer_is_done(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=1, predictor={"time_scale": 1.0})
    with cluster.stub() as stub:
        # At 0.02 s a token and more the engine is busy with it for longer than the node is waited for.
        call = stub.Generate(ask(tokens=1900, request_id="leaves"), timeout=50)
        next(call)
        until(lambda: listed(stub)["node-0"].load.running == 1, what="the request to run")
        call.cancel()
        until(lambda: is_idle(stub), what="the node at rest")
        ended = stub.Explain(pb.ExplainRequest(request_id="leaves"), timeout=5).actual
        assert ended.outcome == types_pb.OUTCOME_CLIENT_LEFT
        assert 0 < ended.usage.output_tokens < 1900


def test_a_crashed_node_costs_no_request_and_comes_back(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(
        nodes=2,
        predictor={"time_scale": 1.0, "max_num_seqs": 1},
        gateway={"policy": "round_robin"},
        expect_deaths=True,
    )
    with grpc.insecure_channel(cluster.address) as channel:
        stub: Any = DispatchStub(channel)
        # One request runs on each node, the others wait for their first token.
        runners = [stub.Generate(ask(tokens=200, request_id=f"run-{i}"), timeout=50) for i in range(2)]
        firsts = {next(call).node_id: call for call in runners}
        waiting = [stub.Generate(ask(tokens=5, request_id=f"wait-{i}"), timeout=50) for i in range(4)]
        until(lambda: all(n.in_flight == 3 for n in listed(stub).values()), what="all placed")
        cluster.nodes[0].kill()
        until(lambda: listed(stub)["node-0"].status == "down", what="the crash seen")
        for i, call in enumerate(waiting):
            chunks = list(call)
            assert chunks[-1].usage.output_tokens == 5
            assert chunks[0].node_id == "node-1"
            decisions = stub.Explain(pb.ExplainRequest(request_id=f"wait-{i}"), timeout=5).decisions
            assert [d.node_id for d in decisions] in (["node-1"], ["node-0", "node-1"])
        for call in firsts.values():
            assert list(call)[-1].usage.output_tokens == 200

        cluster.nodes[0].start()
        until(lambda: listed(stub)["node-0"].status == "up", deadline_s=40, what="the node back")
        assert {answer(stub, ask(tokens=1))[0].node_id for _ in range(4)} == {"node-0", "node-1"}
        until(lambda: is_idle(stub), what="everything at rest")


def test_without_any_node_requests_are_unavailable_and_health_says_so(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=1, expect_deaths=True)
    with grpc.insecure_channel(cluster.address) as channel:
        stub: Any = DispatchStub(channel)
        running = stub.Generate(ask(tokens=1900), timeout=50)
        next(running)
        cluster.nodes[0].kill()
        with pytest.raises(grpc.RpcError) as caught:
            list(running)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        error = refused(stub, ask())
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        health = health_pb2_grpc.HealthStub(channel)
        reply = health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_shutdown_under_load_ends_every_client_and_every_node_request(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=1, predictor={"time_scale": 1.0}, gateway={"drain_grace_s": 0.3}, expect_deaths=True)
    with grpc.insecure_channel(cluster.address) as channel:
        stub: Any = DispatchStub(channel)
        calls = [stub.Generate(ask(tokens=1500), timeout=50) for _ in range(5)]
        for call in calls:
            next(call)
        cluster.gateway.signal(signal.SIGTERM)
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert cluster.gateway.wait(5) == 0
    cluster.gateway.start()
    cluster.gateway.wait_ready(time.monotonic() + 20)
    with cluster.stub() as stub:
        until(lambda: "node-0" in listed(stub) and listed(stub)["node-0"].status == "up" and is_idle(stub))

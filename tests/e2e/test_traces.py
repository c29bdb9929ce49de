"""One trace from the client over gateway and daemon to the engine, between real processes."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator

import pytest

from protos.v1 import astrolabe_dispatch_pb2 as pb
from tests.e2e.cluster import MakeCluster, until
from tests.e2e.collector import Collector, attributes
from tests.e2e.engine_server import EngineServer
from tests.e2e.test_resume import Reader, ask

pytestmark = pytest.mark.e2e

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def engine() -> Iterator[EngineServer]:
    server = EngineServer()
    yield server
    server.close()


def test_one_trace_over_client_gateway_daemon_and_engine(
    make_cluster: MakeCluster, collector: Collector, engine: EngineServer
) -> None:
    cluster = make_cluster(
        nodes=1,
        predictor={"engine": "openai_metrics", "engine_url": engine.url, "otlp_endpoint": collector.endpoint},
        gateway={"otlp_endpoint": collector.endpoint},
    )
    body = json.dumps({"prompt": "why", "max_tokens": 5}).encode()
    headers = {"content-type": "application/json", "traceparent": TRACEPARENT}
    with urllib.request.urlopen(urllib.request.Request(f"{cluster.url}/v1/completions", body, headers), timeout=30):
        pass
    with cluster.stub() as stub:
        assert list(stub.Generate(ask("by-grpc", [97], 5), metadata=(("traceparent", TRACEPARENT),), timeout=30))
    logged = [child.log_path for child in cluster.children()]
    cluster.stop()
    until(lambda: len(collector.spans) == 8, what="four spans of each of two requests")
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    requests, attempts = collector.named("astrolabe.request"), collector.named("astrolabe.attempt")
    at_node = collector.named("astrolabe.node.request")
    assert {request.parent_span_id.hex() for request in requests} == {PARENT}
    assert [attempt.parent_span_id for attempt in attempts] == [request.span_id for request in requests]
    assert [span.parent_span_id for span in at_node] == [attempt.span_id for attempt in attempts]
    assert engine.contexts == [f"00-{TRACE}-{span.span_id.hex()}-01" for span in at_node]
    assert {collector.services[span.span_id] for span in requests} == {"astrolabe-gateway"}
    assert {collector.services[span.span_id] for span in at_node} == {"astrolabe-predictor"}
    assert attributes(at_node[0])["astrolabe.node"] == "node-0"
    for path in logged:
        told = [json.loads(line) for line in path.read_text().splitlines() if '"request finished"' in line]
        assert [line["trace_id"] for line in told] == [TRACE, TRACE], path.name


def test_the_queue_and_a_move_are_spans_and_stages_hang_below_the_move(
    make_cluster: MakeCluster, collector: Collector
) -> None:
    cluster = make_cluster(
        nodes=2,
        predictor={"time_scale": 3.0, "max_num_seqs": 2, "otlp_endpoint": collector.endpoint},
        gateway={"policy": "least_requests", "hold": "always", "otlp_endpoint": collector.endpoint},
    )
    endless = {"ignore_eos": True}
    with cluster.stub() as stub:
        readers = [Reader(stub, ask(f"r{i}", [97] * 300, 60, sampling=endless)) for i in range(5)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
            assert reader.error is None
        last = Reader(stub, ask("moved", [97] * 300, 600, sampling=endless))
        last.start()
        until(last.has_begun, what="an answer to move")
        elsewhere = {"node-0": "node-1", "node-1": "node-0"}[last.node_id]
        assert not stub.Move(pb.MoveRequest(request_id="moved", node=elsewhere), timeout=5).refusal
        last.join(60)
        assert last.error is None
    cluster.stop()
    requests = {attributes(span)["astrolabe.request_id"]: span for span in collector.named("astrolabe.request")}
    assert sorted(requests) == ["moved", *(f"r{i}" for i in range(5))]
    places = {span.span_id: span for span in collector.named("astrolabe.place")}
    queues = collector.named("astrolabe.queue")
    assert queues, "four places, five requests"
    for queue in queues:
        place = places[queue.parent_span_id]
        assert place.start_time_unix_nano <= queue.start_time_unix_nano < queue.end_time_unix_nano
    (move,) = collector.named("astrolabe.move")
    assert move.parent_span_id == requests["moved"].span_id
    told = attributes(move)
    assert (told["astrolabe.outcome"], told["astrolabe.destination"]) == ("moved", elsewhere)
    assert told["astrolabe.stages"] >= 1
    attempts = [a for a in collector.named("astrolabe.attempt") if a.parent_span_id == requests["moved"].span_id]
    assert [attributes(a)["astrolabe.node"] for a in attempts] == [last.node_id, elsewhere]
    stages = [span for span in collector.named("astrolabe.node.request") if span.parent_span_id == move.span_id]
    assert len(stages) == told["astrolabe.stages"]
    assert all(span.trace_id == move.trace_id for span in stages)


def test_without_an_endpoint_the_context_goes_through_and_names_the_log_lines(
    make_cluster: MakeCluster, engine: EngineServer
) -> None:
    cluster = make_cluster(nodes=1, predictor={"engine": "openai_metrics", "engine_url": engine.url})
    with cluster.stub() as stub:
        assert list(stub.Generate(ask("a", [97], 5), metadata=(("traceparent", TRACEPARENT),), timeout=30))
        assert list(stub.Generate(ask("b", [97], 5), timeout=30))
    cluster.stop()
    assert engine.contexts == [TRACEPARENT, ""]
    for child in cluster.children():
        lines = [line for line in child.log_path.read_text().splitlines() if '"request finished"' in line]
        assert [re.findall(r'"trace_id":"(\w+)"', line) for line in lines] == [[TRACE], []]

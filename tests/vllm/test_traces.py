"""OpenTelemetry: vLLM's own spans hang below the daemon's, below the gateway's, below the client's."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.collector import Collector
from tests.vllm.chains import ask, chain, tokens_of
from tests.vllm.servers import real_server, until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def test_one_trace_over_client_gateway_daemon_and_vllm(
    vllm_python: str, tiny_model: Path, collector: Collector, tmp_path: Path
) -> None:
    server = real_server(
        vllm_python,
        tiny_model,
        tmp_path,
        extra=["--otlp-traces-endpoint", collector.endpoint],
        environ={"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_SERVICE_NAME": "vllm"},
    )
    spans = {"otlp_endpoint": collector.endpoint}
    try:
        server.start().wait_ready()
        with chain(server, tmp_path / "chain", gateway=spans, **spans) as cluster, cluster.stub() as stub:
            asked = ask("as-tokens", [5] * 20, max_tokens=4)
            asked.traceparent = TRACEPARENT
            assert len(tokens_of(stub, asked)) == 4
            # A call that is handed on as it came: by its own header.
            body = json.dumps({"prompt": "why", "max_tokens": 4, "echo": True}).encode()
            headers = {"content-type": "application/json", "traceparent": TRACEPARENT}
            call = urllib.request.Request(f"{cluster.url}/v1/completions", body, headers)
            with urllib.request.urlopen(call, timeout=60) as answer:
                assert json.load(answer)["usage"]["completion_tokens"] == 4
        until(lambda: len(collector.named("llm_request")) == 2, what="vLLM's own spans")
    finally:
        server.stop()
    ours = [s for s in collector.spans if collector.services[s.span_id].startswith("astrolabe")]
    vllms = collector.named("llm_request")
    requests, attempts = collector.named("astrolabe.request"), collector.named("astrolabe.attempt")
    at_node = collector.named("astrolabe.node.request")
    assert {span.trace_id.hex() for span in (*ours, *vllms)} == {TRACE}
    assert [r.parent_span_id.hex() for r in requests] == [PARENT, PARENT]
    assert [a.parent_span_id for a in attempts] == [r.span_id for r in requests]
    assert [n.parent_span_id for n in at_node] == [a.span_id for a in attempts]
    assert {v.parent_span_id for v in vllms} == {n.span_id for n in at_node}

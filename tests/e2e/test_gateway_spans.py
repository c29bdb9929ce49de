"""OpenTelemetry: one span per request, the client's trace goes through to the engine, and what ends it is on it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from simcore.types import Outcome
from tests.e2e.in_process import ask, dispatched, part, running, status, until
from tests.e2e.scripted_node import ScriptedNode

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the extra `otel`"
)
pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra `otel`")
pytestmark = pytest.mark.e2e

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """A real OTLP/HTTP endpoint that keeps what comes."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                request = trace_service.ExportTraceServiceRequest.FromString(body)
                collector.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNode]:
    node = ScriptedNode("n")
    await node.start()
    yield node
    await node.stop()


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


async def test_the_engine_gets_the_clients_trace_below_the_gateways_span(
    collector: Collector, node: ScriptedNode
) -> None:
    async with running(node.address, otlp_endpoint=collector.endpoint) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1", traceparent=f"00-{TRACE}-{PARENT}-01"))
        sent = (await dispatched(node)).request
        node.say(part("r1", b"ab", Outcome.STOP))
        while (await call.read()).HasField("outcome") is False:
            pass
        left = stub.Generate(ask(request_id="r2"))
        await dispatched(node)
        left.cancel()
        await until(lambda: not gateway.pump.streams)
    await until(lambda: len(collector.spans) == 2)
    first, second = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    assert first.trace_id.hex() == TRACE
    assert first.parent_span_id.hex() == PARENT
    assert sent.traceparent == f"00-{TRACE}-{first.span_id.hex()}-01"
    told = attributes(first)
    assert (told["astrolabe.request_id"], told["astrolabe.node"], told["astrolabe.outcome"]) == ("r1", "n", "stop")
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (5, 2)
    assert [event.name for event in first.events] == ["placed", "first token"]
    assert first.start_time_unix_nano <= first.events[0].time_unix_nano <= first.end_time_unix_nano
    assert "hello" not in str(first), "no prompts in spans"
    assert not second.parent_span_id
    assert attributes(second)["astrolabe.outcome"] == "client_left"


async def test_without_a_collector_requests_run_and_nothing_is_made_up(node: ScriptedNode) -> None:
    async with running(node.address, otlp_endpoint="http://127.0.0.1:9/v1/traces") as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1"))
        await dispatched(node)
        node.say(part("r1", b"ab", Outcome.STOP))
        assert (await call.read()).text == "ab"


async def test_without_spans_the_clients_context_goes_through_unchanged(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        call = stub.Generate(ask(request_id="r1", traceparent=f"00-{TRACE}-{PARENT}-01"))
        assert (await dispatched(node)).request.traceparent == f"00-{TRACE}-{PARENT}-01"
        node.say(part("r1", b"ab", Outcome.STOP))
        assert (await call.read()).text == "ab"

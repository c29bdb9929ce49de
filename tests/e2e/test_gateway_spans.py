"""OpenTelemetry: the spans of a request, the client's trace goes through to the engine, and what ends it is on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from simcore.types import Outcome
from tests.e2e.collector import Collector, attributes
from tests.e2e.in_process import ask, dispatched, part, running, status, until
from tests.e2e.scripted_node import ScriptedNode

pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra `otel`")
pytestmark = pytest.mark.e2e

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


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
    await until(lambda: len(collector.spans) == 6)
    first, second = collector.named("astrolabe.request")
    attempt, _ = collector.named("astrolabe.attempt")
    place, _ = collector.named("astrolabe.place")
    assert first.trace_id.hex() == TRACE
    assert first.parent_span_id.hex() == PARENT
    assert sent.traceparent == f"00-{TRACE}-{attempt.span_id.hex()}-01"
    assert {span.parent_span_id for span in (attempt, place)} == {first.span_id}
    assert place.end_time_unix_nano <= attempt.start_time_unix_nano <= attempt.end_time_unix_nano
    told = attributes(first)
    assert (told["astrolabe.request_id"], told["astrolabe.node"], told["astrolabe.outcome"]) == ("r1", "n", "stop")
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (5, 2)
    assert [event.name for event in first.events] == ["placed", "first token"]
    assert first.start_time_unix_nano <= first.events[0].time_unix_nano <= first.end_time_unix_nano
    assert "hello" not in str(first), "no prompts in spans"
    assert not second.parent_span_id
    assert second.trace_id != first.trace_id
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


async def test_another_attempt_has_a_span_of_its_own(
    collector: Collector, node: ScriptedNode, other: ScriptedNode
) -> None:
    async with running(node.address, other.address, otlp_endpoint=collector.endpoint) as (gateway, stub):
        await until(lambda: (status(gateway, "n"), status(gateway, "o")) == ("up", "up"))
        call = stub.Generate(ask(request_id="r1"))
        await until(lambda: bool(gateway.pump.streams) and gateway.pump.streams["r1"].node_id != "")
        at = node if gateway.pump.streams["r1"].node_id == "n" else other
        beside = other if at is node else node
        first = (await dispatched(at)).request
        at.say(part("r1", b"", Outcome.ENGINE_FAILED))
        second = (await dispatched(beside)).request
        beside.say(part(second.request_id, b"ab", Outcome.STOP))
        while (await call.read()).HasField("outcome") is False:
            pass
    await until(lambda: len(collector.spans) == 5)
    (request,) = collector.named("astrolabe.request")
    attempts = collector.named("astrolabe.attempt")
    assert [attributes(a)["astrolabe.node"] for a in attempts] == [at.node_id, beside.node_id]
    assert {a.parent_span_id for a in attempts} == {request.span_id}
    assert [r.traceparent.split("-")[2] for r in (first, second)] == [a.span_id.hex() for a in attempts]

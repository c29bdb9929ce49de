"""Envoy's external processing, spoken by the test in the place of a proxy: which answers, and what stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec
import pytest
from google.protobuf import struct_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.ext_proc import wire
from gateway.intake.callers import KeyEntry, KeyFile, digest, new_key, write_keys
from gateway.main import Gateway
from protos import codec
from protos.runtime.config import ConfigError
from protos.v1 import envoy_external_processor_pb2 as pb
from protos.v1.envoy_external_processor_pb2_grpc import ExternalProcessorStub
from simcore.types import Outcome
from tests.e2e.in_process import configured, dispatched, running, status, until
from tests.e2e.scripted_node import CONFIG, ScriptedNode

pytestmark = pytest.mark.e2e

ENGINE = "127.0.0.9:8000"
COMPLETIONS = "/v1/completions"
Mode = pb.ProcessingMode


def reachable(node: ScriptedNode, address: str = ENGINE) -> ScriptedNode:
    """The node, its engine within the reach of proxies."""
    assert node.welcome is not None
    config = msgspec.structs.replace(CONFIG, address=address)
    node.welcome.welcome.config.CopyFrom(codec.config_to_wire(config))
    return node


class Proxy:
    """One HTTP request of a proxy."""

    def __init__(self, address: str, request_mode: int, response_mode: int) -> None:
        self._channel: Any = grpc.aio.insecure_channel(address)
        stub: Any = ExternalProcessorStub(self._channel)
        self.call = stub.Process()
        self._config: pb.ProtocolConfiguration | None = pb.ProtocolConfiguration(
            request_body_mode=request_mode,  # type: ignore[arg-type]
            response_body_mode=response_mode,  # type: ignore[arg-type]
        )

    async def say(self, **message: Any) -> None:
        config, self._config = self._config, None
        await self.call.write(pb.ProcessingRequest(protocol_config=config, **message))

    async def head(self, path: str = COMPLETIONS, *, ends: bool = False, subset: Any = None, **headers: str) -> None:
        lines = {":method": "GET" if ends else "POST", ":path": path, ":authority": "h", **headers}
        metadata = pb.Metadata()
        if subset is not None:
            space = struct_pb2.Struct()
            space.update({wire.SUBSET: subset})
            metadata.filter_metadata[wire.SUBSET_SPACE].CopyFrom(space)
        await self.say(request_headers=as_headers(lines, ends=ends), metadata_context=metadata)

    async def heard(self) -> pb.ProcessingResponse:
        async with asyncio.timeout(10):
            reply = await self.call.read()
        assert isinstance(reply, pb.ProcessingResponse), "the call has ended"
        return reply

    async def answer(self, status: int, *pieces: bytes, content_type: str = "application/json") -> None:
        """What the engine says, up to its end."""
        head = as_headers({":status": str(status), "content-type": content_type}, ends=not pieces)
        await self.say(response_headers=head)
        await self.heard()
        for number, piece in enumerate(pieces, start=1):
            await self.say(response_body=pb.HttpBody(body=piece, end_of_stream=number == len(pieces)))
            await self.heard()

    async def close(self) -> None:
        await self.call.done_writing()
        async with asyncio.timeout(10):
            assert not isinstance(await self.call.read(), pb.ProcessingResponse)
        await self._channel.close()

    async def leave(self) -> None:
        self.call.cancel()
        await self._channel.close()


def as_headers(lines: dict[str, str], *, ends: bool = False) -> pb.HttpHeaders:
    made = [pb.HeaderValue(key=name.replace("_", "-"), raw_value=value.encode()) for name, value in lines.items()]
    return pb.HttpHeaders(headers=pb.HeaderMap(headers=made), end_of_stream=ends)


def body(**fields: Any) -> pb.HttpBody:
    said = json.dumps({"model": "m", "prompt": "hello", "max_tokens": 8, **fields}).encode()
    return pb.HttpBody(body=said, end_of_stream=True)


def destination(reply: pb.ProcessingResponse) -> str:
    """Where it is to go, by header and metadata alike."""
    part = reply.request_headers if reply.HasField("request_headers") else reply.request_body
    named = {o.header.key: o.header.raw_value.decode() for o in part.response.header_mutation.set_headers}
    told = reply.dynamic_metadata.fields["envoy.lb"].struct_value.fields[wire.DESTINATION].string_value
    assert named[wire.DESTINATION] == told
    return told


def refusal(reply: pb.ProcessingResponse) -> tuple[int, str, dict[str, str]]:
    """Status, code and headers of an answer in the engine's stead."""
    said = reply.immediate_response
    headers = {o.header.key: o.header.raw_value.decode() for o in said.headers.set_headers}
    return said.status.code, json.loads(said.body)["error"]["code"], headers


@contextlib.asynccontextmanager
async def before(*nodes: ScriptedNode, **options: Any) -> AsyncIterator[Gateway]:
    addresses = [node.address for node in nodes]
    async with running(*addresses, ext_proc_listen="127.0.0.1:0", **options) as (gateway, _):
        for node in nodes:
            await until(lambda node=node: status(gateway, node.node_id) == "up")  # type: ignore[misc]
        yield gateway


def asking(
    gateway: Gateway, request_mode: int = Mode.FULL_DUPLEX_STREAMED, response_mode: int = Mode.FULL_DUPLEX_STREAMED
) -> Proxy:
    return Proxy(gateway.ext_proc_address, request_mode, response_mode)


def in_flight(gateway: Gateway) -> int:
    return sum(node.in_flight for node in gateway.pump.router.nodes())


async def aborted(node: ScriptedNode) -> Sequence[str]:
    """What the node is next told that has ended."""
    async with asyncio.timeout(5):
        while not (ids := (await node.received.get()).abort_request_ids):
            pass
    return list(ids)


async def test_a_body_handed_over_comes_back_behind_the_decision(node: ScriptedNode) -> None:
    async with before(reachable(node)) as gateway:
        proxy = asking(gateway)
        await proxy.head(x_request_id="r")
        said = body()
        await proxy.say(request_body=pb.HttpBody(body=said.body[:10]))
        await proxy.say(request_body=pb.HttpBody(body=said.body[10:], end_of_stream=True))
        assert destination(await proxy.heard()) == ENGINE
        back = (await proxy.heard()).request_body.response.body_mutation.streamed_response
        assert (back.body, back.end_of_stream) == (said.body, True)
        sent = await dispatched(node)
        assert sent.WhichOneof("work") == "announced"
        candidate = sent.announced.candidate
        assert (candidate.request_id, candidate.prompt_tokens, candidate.max_output_tokens) == ("r", 5, 8)
        assert in_flight(gateway) == 1
        usage = {"usage": {"prompt_tokens": 5, "completion_tokens": 7}, "choices": [{"finish_reason": "length"}]}
        await proxy.answer(200, json.dumps(usage).encode())
        assert in_flight(gateway) == 0
        assert await aborted(node) == ["r"]
        await proxy.close()
        explained = gateway.pump.router.explain("r")
        assert explained is not None
        assert (explained.outcome, explained.output_tokens, explained.lane) == (Outcome.LENGTH, 7, "by_proxy")


async def test_a_body_that_comes_whole_is_left_as_it_is(node: ScriptedNode) -> None:
    async with before(reachable(node)) as gateway:
        proxy = asking(gateway, Mode.BUFFERED, Mode.STREAMED)
        await proxy.head()
        assert (await proxy.heard()).HasField("request_headers")
        await proxy.say(request_body=body(stream=True))
        reply = await proxy.heard()
        assert destination(reply) == ENGINE
        assert not reply.request_body.response.HasField("body_mutation")
        events = [f'data: {{"choices":[{{"text":"{c}"}}]}}\n\n'.encode() for c in "abc"]
        await proxy.answer(200, *events, b"data: [DONE]\n\n", content_type="text/event-stream")
        await proxy.close()
        assert gateway.pump.streams == {}


async def test_trailers_end_a_request_and_an_answer_too(node: ScriptedNode) -> None:
    async with before(reachable(node)) as gateway:
        proxy = asking(gateway)
        await proxy.head()
        await proxy.say(request_body=pb.HttpBody(body=body().body))
        await proxy.say(request_trailers=pb.HttpTrailers())
        assert destination(await proxy.heard()) == ENGINE
        assert not (await proxy.heard()).request_body.response.body_mutation.streamed_response.end_of_stream
        assert (await proxy.heard()).HasField("request_trailers")
        await proxy.say(response_headers=as_headers({":status": "200"}))
        await proxy.heard()
        await proxy.say(response_body=pb.HttpBody(body=b"{}"))
        await proxy.heard()
        assert in_flight(gateway) == 1
        await proxy.say(response_trailers=pb.HttpTrailers())
        assert (await proxy.heard()).HasField("response_trailers")
        assert in_flight(gateway) == 0
        await proxy.close()


async def test_where_answers_are_not_shown_a_request_ends_with_the_head(node: ScriptedNode) -> None:
    async with before(reachable(node)) as gateway:
        proxy = asking(gateway, Mode.BUFFERED, Mode.NONE)
        await proxy.head()
        await proxy.heard()
        await proxy.say(request_body=body())
        await proxy.heard()
        await proxy.say(response_headers=as_headers({":status": "200"}))
        assert (await proxy.heard()).HasField("response_headers")
        assert in_flight(gateway) == 0
        await proxy.close()


@pytest.mark.parametrize("phase", ["asked", "placed", "answering"])
async def test_a_proxy_that_leaves_leaves_nothing_behind(node: ScriptedNode, phase: str) -> None:
    async with before(reachable(node)) as gateway:
        proxy = asking(gateway)
        await proxy.head(x_request_id="r")
        if phase != "asked":
            await proxy.say(request_body=body())
            await proxy.heard()
            await proxy.heard()
        if phase == "answering":
            await proxy.say(response_headers=as_headers({":status": "200"}))
            await proxy.heard()
        await proxy.leave()
        await until(lambda: in_flight(gateway) == 0)
        if phase != "asked":
            assert await aborted(node) == ["r"]


async def test_a_request_that_waits_in_the_queue_may_be_given_up(node: ScriptedNode) -> None:
    assert node.welcome is not None
    busy = node.welcome.load.load
    busy.waiting, busy.running, busy.free_blocks = 400, 256, 0
    async with before(reachable(node), hold="always") as gateway:
        proxy = asking(gateway)
        await proxy.head()
        await proxy.say(request_body=body())
        await until(lambda: gateway.pump.router.queue_status().held == 1)
        await proxy.leave()
        await until(lambda: gateway.pump.router.queue_status().held == 0)


@pytest.mark.parametrize(("subset", "code"), [([], 503), (["10.1.1.1:80"], 503), ([ENGINE, "10.1.1.1:80"], 0)])
async def test_the_subset_of_endpoints(node: ScriptedNode, subset: list[str], code: int) -> None:
    async with before(reachable(node)) as gateway:
        proxy = asking(gateway)
        await proxy.head(subset=subset)
        await proxy.say(request_body=body())
        reply = await proxy.heard()
        if code:
            assert refusal(reply)[:2] == (code, "no_node")
        else:
            assert destination(reply) == ENGINE
        await proxy.leave()


async def test_what_cannot_be_placed_is_answered_at_once(node: ScriptedNode) -> None:
    async with before(reachable(node), max_call_bytes=8 * 1024 * 1024) as gateway:
        for path, fields, code, label in (
            (COMPLETIONS, {"model": "nope"}, 404, "model_not_found"),
            ("/metrics", {}, 404, "unknown"),
            (COMPLETIONS, {"prompt": "x" * (9 * 1024 * 1024)}, 413, "too_large"),
        ):
            proxy = asking(gateway)
            await proxy.head(path)
            data = body(**fields).body
            for begin in range(0, len(data), 1024 * 1024):
                piece = data[begin : begin + 1024 * 1024]
                is_last = begin + 1024 * 1024 >= len(data)
                await proxy.say(request_body=pb.HttpBody(body=piece, end_of_stream=is_last))
            assert refusal(await proxy.heard())[:2] == (code, label)
            await proxy.close()


async def test_no_node_is_a_503_that_says_when_to_come_again() -> None:
    async with before() as gateway:
        proxy = asking(gateway)
        await proxy.head()
        await proxy.say(request_body=body())
        code, label, headers = refusal(await proxy.heard())
        assert (code, label, int(headers["retry-after"]) >= 1) == (503, "no_node", True)
        await proxy.close()


async def test_a_mode_that_hides_the_request_is_said_to_be_wrong(node: ScriptedNode) -> None:
    async with before(reachable(node)) as gateway:
        proxy = asking(gateway, Mode.STREAMED)
        await proxy.head()
        said = (await proxy.heard()).immediate_response
        assert said.status.code == 500
        assert b"request_body_mode is STREAMED" in said.body
        await proxy.close()


@pytest.mark.parametrize(
    ("code", "details", "outcome"),
    [
        (500, "via_upstream", Outcome.ENGINE_FAILED),
        (503, "upstream_reset_before_response_started{connection_failure}", Outcome.ENGINE_FAILED),
        (429, "via_upstream", Outcome.OVERLOADED),
        (400, "", Outcome.INVALID),
    ],
)
async def test_how_an_engine_that_fails_is_taken(node: ScriptedNode, code: int, details: str, outcome: Outcome) -> None:
    async with before(reachable(node)) as gateway:
        proxy = asking(gateway)
        await proxy.head(x_request_id="r")
        await proxy.say(request_body=body())
        await proxy.heard()
        await proxy.heard()
        told = struct_pb2.Struct()
        told.update({wire.CODE_DETAILS: details})
        await proxy.say(
            response_headers=as_headers({":status": str(code)}, ends=True),
            attributes={"envoy.filters.http.ext_proc": told},
        )
        await proxy.heard()
        await proxy.close()
        explained = gateway.pump.router.explain("r")
        assert explained is not None
        assert explained.outcome is outcome


async def test_keys_are_asked_for_and_go_no_further(node: ScriptedNode, tmp_path: Path) -> None:
    key = new_key()
    file = tmp_path / "keys.toml"
    write_keys(file, KeyFile(keys=(KeyEntry(name="team", sha256=digest(key).hex()),)))
    async with before(reachable(node), keys=str(file)) as gateway:
        proxy = asking(gateway)
        await proxy.head()
        await proxy.say(request_body=body())
        code, label, headers = refusal(await proxy.heard())
        assert (code, label, headers["www-authenticate"]) == (401, "no_key", "Bearer")
        await proxy.close()
        proxy = asking(gateway)
        await proxy.head(authorization=f"Bearer {key}")
        await proxy.say(request_body=body())
        reply = await proxy.heard()
        assert destination(reply) == ENGINE
        assert "authorization" in reply.request_headers.response.header_mutation.remove_headers
        await proxy.leave()


async def test_health_as_the_protocol_has_it(node: ScriptedNode) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    names = ("envoy.service.ext_proc.v3.ExternalProcessor", "readiness", "liveness")

    async def said(gateway: Gateway, name: str) -> int:
        async with grpc.aio.insecure_channel(gateway.ext_proc_address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            return int((await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)).status)

    async with before(node) as gateway:
        assert [await said(gateway, name) for name in names] == [serving] * 3
    async with before() as gateway:
        assert [await said(gateway, name) for name in names] == [not_serving, not_serving, serving]


async def test_a_busy_port_is_said_at_once() -> None:
    async with before() as gateway:
        second = Gateway(configured(ext_proc_listen=gateway.ext_proc_address))
        try:
            with pytest.raises(ConfigError, match="--ext-proc-listen"):
                await second.start()
        finally:
            await second.stop()


async def test_a_port_alone_is_at_the_host_where_the_node_is_reached(node: ScriptedNode) -> None:
    async with before(reachable(node, ":8123")) as gateway:
        assert gateway.nodes.engine_address("n") == "127.0.0.1:8123"


async def test_a_node_that_does_not_say_where_its_engine_is_gets_none(node: ScriptedNode) -> None:
    async with before(node) as gateway:
        proxy = asking(gateway)
        await proxy.head()
        await proxy.say(request_body=body())
        assert refusal(await proxy.heard())[:2] == (503, "no_node")
        await proxy.close()

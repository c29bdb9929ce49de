"""A gateway inside the test's own event loop, before scripted nodes: every word on both sides is the test's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from gateway.config import GatewayConfig, NodeEntry, load
from gateway.main import Gateway
from protos import codec
from protos.runtime.options import tables
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from simcore.types import Outcome
from tests.e2e.scripted_node import ScriptedNode

FAST: dict[str, Any] = {
    "listen": "127.0.0.1:0",
    "http_listen": "127.0.0.1:0",
    "policy": "least_requests",
    "tokenizer": "bytes",
    "reconnect_max_s": 0.2,
    "keepalive_s": 0.5,
    "lame_duck_s": 0.0,
    "drain_grace_s": 0.2,
}


async def until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - what other processes do sets no event here
            await asyncio.sleep(0.01)


def configured(*entries: str | NodeEntry, **options: Any) -> GatewayConfig:
    """A configuration by the names of command-line options, on top of `FAST`."""
    return load(None, {**tables(GatewayConfig, {**FAST, **options}), "nodes": entries})


@contextlib.asynccontextmanager
async def running(*entries: str | NodeEntry, **options: Any) -> AsyncIterator[tuple[Gateway, Any]]:
    """A gateway in this process and a client of it; afterwards nothing may be left under way."""
    gateway = Gateway(configured(*entries, **options))
    await gateway.start()
    try:
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            yield gateway, DispatchStub(channel)
        await until(lambda: not gateway.pump.streams)
        gateway.pump.router.check_quiescent()
    finally:
        await gateway.stop()


def status(gateway: Gateway, node_id: str) -> str:
    return {n.node_id: n.status for n in gateway.nodes.listing().nodes}.get(node_id, "absent")


def detail(gateway: Gateway) -> str:
    return gateway.nodes.listing().nodes[0].detail


def ask(text: str = "hello", **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=text, sampling=types_pb.SamplingParams(max_tokens=8), **fields)


def part(request_id: str, tokens: bytes, outcome: Outcome | None = None) -> predict_pb.NodeFrame:
    message = predict_pb.StreamPart(request_id=request_id, token_ids=tokens)
    if outcome is not None:
        message.outcome = codec.outcome_to_wire(outcome)
        message.usage.CopyFrom(types_pb.Usage(prompt_tokens=5, output_tokens=8))
    return predict_pb.NodeFrame(parts=[message])


async def dispatched(node: ScriptedNode) -> predict_pb.Dispatched:
    """The next dispatch that the node gets."""
    async with asyncio.timeout(5):
        # One frame may bring several.
        while not node.unread_dispatches:
            node.unread_dispatches.extend((await node.received.get()).dispatches)
    return node.unread_dispatches.popleft()


class Relay:
    """Passes bytes both ways between a listener of its own and `target`, until `frozen`."""

    def __init__(self, target: str) -> None:
        self.frozen = False
        self.address = ""
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.partition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._pass_on(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                if not self.frozen:
                    sink.write(data)
                    await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()

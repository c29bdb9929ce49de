"""A node whose every word the test decides: for what a real one never says on purpose."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from protos import codec
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1.astrolabe_predict_pb2_grpc import PredictServicer, add_PredictServicer_to_server
from simcore.types import EngineConfig, NodeLoad

CONFIG = EngineConfig(model="m", max_model_len_tokens=4096, num_blocks=1000)


def load(node_id: str, *, waiting: int = 0) -> NodeLoad:
    return NodeLoad(
        node_id=node_id,
        trace_seq=1,
        state_age_s=0.0,
        running=0,
        waiting=waiting,
        free_blocks=1000,
        total_blocks=1000,
        waiting_prompt_blocks=0,
        unprocessed_tokens=0,
        preemptions_total=0,
    )


class ScriptedNode(PredictServicer):  # type: ignore[misc, unused-ignore]
    """Serves `Predict.Session`; frames come in through `received`, go out through `say`."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.welcome: pb.NodeFrame | None = pb.NodeFrame(
            welcome=pb.Welcome(node_id=node_id, config=codec.config_to_wire(CONFIG), profile="gpu/m"),
            load=pb.LoadNote(load=codec.load_to_wire(load(node_id))),
        )
        """The first frame; None: silence."""
        self.sessions = 0
        self.received: asyncio.Queue[pb.GatewayFrame] = asyncio.Queue()
        self.unread_dispatches: deque[pb.Dispatched] = deque()
        """Of frames that were taken from `received` for one dispatch."""
        self.reserved: asyncio.Queue[pb.ReserveRequest] = asyncio.Queue()
        self.on_frame: Callable[[pb.GatewayFrame], None] | None = None
        self.reads = True
        self.answers_pings = True
        self.address = ""
        self._out: asyncio.Queue[pb.NodeFrame | None] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_PredictServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def say(self, frame: pb.NodeFrame | None) -> None:
        """Sends a frame; None ends the session in good order."""
        self._out.put_nowait(frame)

    async def Session(
        self, request_iterator: AsyncIterator[pb.GatewayFrame], context: Any
    ) -> AsyncIterator[pb.NodeFrame]:
        self.sessions += 1
        self._out = asyncio.Queue()
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            if self.welcome is not None:
                yield self.welcome
            while (frame := await self._out.get()) is not None:
                yield frame
        finally:
            reader.cancel()

    async def Reserve(self, request: pb.ReserveRequest, context: Any) -> pb.ReserveReply:
        self.reserved.put_nowait(request)
        return pb.ReserveReply(ttl_s=1.0)

    async def _read(self, frames: AsyncIterator[pb.GatewayFrame]) -> None:
        async for frame in frames:
            if frame.ping and self.answers_pings:
                self.say(pb.NodeFrame(pong=frame.ping))
            self.received.put_nowait(frame)
            if self.on_frame is not None:
                self.on_frame(frame)

    def _absent(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    Predict = Release = GetState = WatchState = GetCalibration = _absent

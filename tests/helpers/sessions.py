"""A gateway's side of a session with a node, without a wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from predictor.node import NodeRuntime
from predictor.session import GatewaySession
from protos.v1 import astrolabe_predict_pb2 as pb

DEADLINE_S = 10.0


class SessionEnd:
    """Sends frames and hears those that come."""

    def __init__(self, node: NodeRuntime) -> None:
        self._came = asyncio.Event()
        self._frames: asyncio.Queue[pb.GatewayFrame] = asyncio.Queue()
        self.task = asyncio.create_task(GatewaySession(node, self).run(self._sent()))

    async def _sent(self) -> AsyncIterator[pb.GatewayFrame]:
        while True:
            yield await self._frames.get()

    def send(self, frame: pb.GatewayFrame) -> None:
        self._frames.put_nowait(frame)

    async def write(self, frame: pb.NodeFrame) -> None:
        self.hear(frame)
        self._came.set()

    def hear(self, frame: pb.NodeFrame) -> None:
        """For those who want to know."""
        raise NotImplementedError

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._came.clear()
                await self._came.wait()

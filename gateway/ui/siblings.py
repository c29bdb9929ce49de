"""The page between the workers of one gateway: each tells its part to those whose pages are open. Shell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc.aio

from gateway.ui.part import PagePart
from gateway.ui.part_wire import part_from_wire, part_to_wire
from gateway.ui.timeline import pause_s
from gateway.ui.view import PartReader
from protos.v1 import astrolabe_workers_pb2 as pb
from protos.v1.astrolabe_workers_pb2_grpc import WorkersServicer

PART_S = 1.0
"""From one part to the next."""
AGAIN_S = 1.0
"""Until a worker that does not answer is asked again."""


class PartTeller(WorkersServicer):
    """The `Workers` service of one worker, on its private socket. `reader` makes one for each that asks."""

    def __init__(self, reader: Callable[[], PartReader]) -> None:
        self._reader = reader

    async def WatchPart(self, request: pb.WatchPartRequest, context: Any) -> AsyncIterator[pb.WorkerPart]:
        reader = self._reader()
        while True:
            yield part_to_wire(reader.read())
            # To all who hear it at the same moment, so that one look at the nodes does for them.
            await asyncio.sleep(pause_s(time.time(), PART_S))


class SiblingParts:
    """Hears the other workers' parts from `open` to `close`. `stubs`: of `Workers`, by the workers' numbers."""

    def __init__(self, stubs: Mapping[int, Any]) -> None:
        self._stubs = stubs
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def workers(self) -> set[int]:
        """Their numbers."""
        return set(self._stubs)

    def open(self, on_part: Callable[[int, PagePart], None], on_lost: Callable[[int], None]) -> None:
        """`on_lost` is called whenever one does not answer, or no longer does; it is asked again by and by."""
        for worker, stub in self._stubs.items():
            task = asyncio.create_task(self._hear(worker, stub, on_part, on_lost), name=f"page of worker {worker}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _hear(
        self, worker: int, stub: Any, on_part: Callable[[int, PagePart], None], on_lost: Callable[[int], None]
    ) -> None:
        while True:
            try:
                async for told in stub.WatchPart(pb.WatchPartRequest()):
                    on_part(worker, part_from_wire(told))
            except grpc.aio.AioRpcError:
                # It has died, or starts anew: its supervisor says so.
                pass
            on_lost(worker)
            await asyncio.sleep(AGAIN_S)

"""The other workers of this gateway, each asked over its private socket."""

from __future__ import annotations

from gateway.workers.slot import WorkerSlot
from protos.runtime.channels import open_channel
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub

OPTIONS = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]


class Siblings:
    """Channels to them; none for a gateway of one process."""

    def __init__(self, slot: WorkerSlot | None) -> None:
        others = [index for index in range(slot.count) if index != slot.index] if slot else []
        self._channels = [open_channel(slot.socket_of(index), options=OPTIONS) for index in others if slot is not None]
        self.stubs = [DispatchStub(channel) for channel in self._channels]

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)

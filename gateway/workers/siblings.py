"""The other workers of this gateway, each asked over its private socket."""

from __future__ import annotations

from gateway.workers.slot import WorkerSlot
from protos.runtime.channels import open_channel
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from protos.v1.astrolabe_workers_pb2_grpc import WorkersStub

OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # What they say is ours: the lines of a log may be long.
    ("grpc.max_receive_message_length", -1),
]


class Siblings:
    """Channels to them; none for a gateway of one process."""

    def __init__(self, slot: WorkerSlot | None) -> None:
        others = [index for index in range(slot.count) if index != slot.index] if slot else []
        channels = {index: open_channel(slot.socket_of(index), options=OPTIONS) for index in others if slot is not None}
        self._channels = channels.values()
        self.stubs = [DispatchStub(channel) for channel in self._channels]
        self.workers = {index: WorkersStub(channel) for index, channel in channels.items()}
        """By their numbers."""

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)

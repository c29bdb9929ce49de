"""A node that plays an engine's own server: takes calls as they come over the wire, answers what the test says."""

from __future__ import annotations

import asyncio

import msgspec

from protos import codec
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_predict_pb2 as pb
from simcore.types import Outcome
from tests.e2e.scripted_node import CONFIG, ScriptedNode, load

PART_BYTES = 256 * 1024


class CallAtNode:
    """One call, its body as far as it has come."""

    def __init__(self, call: engine_pb.ForwardedCall) -> None:
        self.call = call
        self.body = bytearray(call.body)
        self.parts = 1
        self.is_aborted = False
        self.sent_bytes = 0
        self.consumed_bytes = 0

    @property
    def id(self) -> str:
        return self.call.request_id

    @property
    def is_whole(self) -> bool:
        return len(self.body) == self.call.body_bytes

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [(line.name, line.value) for line in self.call.headers]


class ForwardingNode(ScriptedNode):
    """`calls` yields each call once its body is whole; `head`, `data` and `end` answer it."""

    def __init__(self, node_id: str, *, model: str = "m", names: tuple[str, ...] = (), **config: bool) -> None:
        """`config`: what is said of its engine besides."""
        super().__init__(node_id)
        said = msgspec.structs.replace(CONFIG, model=model, other_names=names, forwards=True, **config)
        self.welcome = pb.NodeFrame(
            welcome=pb.Welcome(node_id=node_id, config=codec.config_to_wire(said), profile="gpu/m"),
            load=pb.LoadNote(load=codec.load_to_wire(load(node_id))),
        )
        self.by_id: dict[str, CallAtNode] = {}
        self.calls: asyncio.Queue[CallAtNode] = asyncio.Queue()
        self.frames: list[pb.GatewayFrame] = []
        self.on_frame = self._take

    async def call(self) -> CallAtNode:
        """The next call with its whole body."""
        async with asyncio.timeout(10):
            return await self.calls.get()

    def head(self, call: CallAtNode, status: int = 200, *headers: tuple[str, str]) -> None:
        lines = [engine_pb.Header(name=name, value=value) for name, value in headers]
        self._say(call, head=engine_pb.ForwardedHead(status=status, headers=lines))

    def data(self, call: CallAtNode, data: bytes, output_tokens: int = 0) -> None:
        self._say(call, data=data, output_tokens=output_tokens)

    def end(self, call: CallAtNode, outcome: Outcome = Outcome.STOP, detail: str = "") -> None:
        self._say(call, outcome=codec.outcome_to_wire(outcome), detail=detail)

    def answer(
        self, call: CallAtNode, status: int, body: bytes, outcome: Outcome = Outcome.STOP, *headers: tuple[str, str]
    ) -> None:
        """A whole answer."""
        self.head(call, status, ("content-type", "application/json"), ("content-length", str(len(body))), *headers)
        if body:
            self.data(call, body, 1)
        self.end(call, outcome)

    def _say(self, call: CallAtNode, **fields: object) -> None:
        self.say(pb.NodeFrame(parts=[pb.StreamPart(request_id=call.id, **fields)]))  # type: ignore[arg-type]

    def _take(self, frame: pb.GatewayFrame) -> None:
        self.frames.append(frame)
        for request_id in frame.abort_request_ids:
            if request_id in self.by_id:
                self.by_id[request_id].is_aborted = True
        for dispatched in frame.dispatches:
            if dispatched.WhichOneof("work") == "forward":
                call = self.by_id[dispatched.forward.request_id] = CallAtNode(dispatched.forward)
                if call.is_whole:
                    self.calls.put_nowait(call)
        for part in frame.body_parts:
            call = self.by_id[part.request_id]
            call.body += part.data
            call.parts += 1
            if call.is_whole:
                self.calls.put_nowait(call)
        for consumed in frame.consumed:
            self.by_id[consumed.request_id].consumed_bytes += consumed.bytes

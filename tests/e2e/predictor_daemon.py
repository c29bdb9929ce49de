"""One real predictor daemon for a test module, and a small client of its session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from deploy.local_cluster import Child
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_predict_pb2_grpc import PredictStub

OPTIONS: dict[str, Any] = {
    "node_id": "n1",
    "listen": "127.0.0.1:0",
    "tokenizer": "bytes",
    "max_num_seqs": 16,
    "max_num_batched_tokens": 512,
    "num_blocks": 600,
    "max_model_len_tokens": 2048,
    "time_scale": 20.0,
}
DEADLINE_S = 20.0
EOF: Any = vars(grpc.aio)["EOF"]


@contextmanager
def daemon(folder: Path, **options: Any) -> Iterator[Child]:
    """A running daemon; it must end by itself, with code 0, when asked to."""
    child = Child("predictor", "predictor", {**OPTIONS, **options}, folder)
    child.start()
    try:
        child.wait_ready(time.monotonic() + 50.0)
        yield child
    finally:
        child.signal(15)
        code = child.wait(10.0)
        if code is None:
            child.kill()
    assert code == 0, f"exit code {code}; its log:\n{child.last_words()}"


def until(child: Child, condition: Callable[[], bool]) -> None:
    """What a daemon and its children do comes about, on a busy machine too."""
    deadline_s = time.monotonic() + 100.0
    while not condition():
        assert time.monotonic() < deadline_s, child.last_words()
        time.sleep(0.02)


def engine_request(
    request_id: str, *, prompt_tokens: int = 20, max_tokens: int = 30, first: int = 0
) -> engine_pb.EngineGenerateRequest:
    return engine_pb.EngineGenerateRequest(
        request_id=request_id,
        prompt_token_ids=[(first + i) % 256 for i in range(prompt_tokens)],
        sampling=types_pb.SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        belief=types_pb.LengthBelief(atoms_tokens=[max(1, max_tokens)]),
    )


def candidate(request_id: str, *, prompt_tokens: int = 20, tokens: int = 30) -> types_pb.Candidate:
    return types_pb.Candidate(
        request_id=request_id,
        prompt_tokens=prompt_tokens,
        max_output_tokens=tokens,
        belief=types_pb.LengthBelief(atoms_tokens=[tokens]),
    )


class SessionClient:
    """A gateway's side of one session; keeps everything that came."""

    def __init__(self, channel: grpc.aio.Channel, gateway_id: str = "test") -> None:
        stub: Any = PredictStub(channel)
        self.call = stub.Session()
        self.welcome: pb.Welcome | None = None
        self.frames: list[pb.NodeFrame] = []
        self.tokens: dict[str, list[int]] = {}
        self.heads: dict[str, engine_pb.ForwardedHead] = {}
        self.data: dict[str, bytearray] = {}
        self.output_tokens: dict[str, int] = {}
        """Of forwarded calls, as their parts say."""
        self.ends: dict[str, pb.StreamPart] = {}
        self.answers: dict[int, pb.Answer] = {}
        self.load: pb.LoadNote | None = None
        self.taken: dict[str, int] = {}
        """Bytes of bodies that have gone on to the engine."""
        self._gateway_id = gateway_id
        self._seq = 0
        self._came = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def begin(self) -> SessionClient:
        await self.call.write(pb.GatewayFrame(hello=pb.Hello(gateway_id=self._gateway_id)))
        self._reader = asyncio.create_task(self._read())
        await self.until(lambda: self.welcome is not None)
        return self

    async def send(
        self,
        *,
        dispatch: tuple[engine_pb.EngineGenerateRequest, ...] = (),
        ask: dict[int, types_pb.Candidate] | None = None,
        abort: tuple[str, ...] = (),
        forward: tuple[engine_pb.ForwardedCall, ...] = (),
        body: dict[str, bytes] | None = None,
        consumed: dict[str, int] | None = None,
    ) -> None:
        """`body`: more of it, by request; `consumed`: bytes of the answer, by request."""
        frame = pb.GatewayFrame(
            abort_request_ids=abort,
            body_parts=[pb.BodyPart(request_id=i, data=data) for i, data in (body or {}).items()],
            consumed=[pb.Consumed(request_id=i, bytes=size) for i, size in (consumed or {}).items()],
        )
        for call in forward:
            self._seq += 1
            frame.dispatches.add(dispatch_seq=self._seq, forward=call)
        for request in dispatch:
            self._seq += 1
            frame.dispatches.add(dispatch_seq=self._seq, request=request)
        for ask_id, what in (ask or {}).items():
            frame.asks.add(ask_id=ask_id, candidate=what)
        await self.call.write(frame)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._came.clear()
                await self._came.wait()

    async def leave(self) -> None:
        self.call.cancel()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        while (frame := await self.call.read()) is not EOF:
            self.frames.append(frame)
            if frame.HasField("welcome"):
                self.welcome = frame.welcome
            for answer in frame.answers:
                self.answers[answer.ask_id] = answer
            for part in frame.parts:
                assert part.request_id not in self.ends, "nothing may follow an end"
                self.tokens.setdefault(part.request_id, []).extend(part.token_ids)
                if part.HasField("head"):
                    assert part.request_id not in self.heads, "one head an answer"
                    self.heads[part.request_id] = part.head
                self.data.setdefault(part.request_id, bytearray()).extend(part.data)
                self.output_tokens[part.request_id] = self.output_tokens.get(part.request_id, 0) + part.output_tokens
                if part.HasField("outcome"):
                    self.ends[part.request_id] = part
            for taken in frame.taken:
                self.taken[taken.request_id] = self.taken.get(taken.request_id, 0) + taken.bytes
            if frame.HasField("load"):
                self.load = frame.load
            self._came.set()

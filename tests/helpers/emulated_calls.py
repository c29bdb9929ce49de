"""An emulated engine that is asked by its HTTP API, in-process."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from engine_adapters.base import EngineError, EngineOptions
from engine_adapters.emulated import EmulatedEngine
from engine_adapters.forwarding import BodyFeed, ForwardCall, ReplyData, ReplyEnd, ReplyHead
from simcore.types import EngineConfig
from tests.helpers.step_time import STEP_TIME

CONFIG = EngineConfig(
    model="m",
    other_names=("alias",),
    max_num_seqs=8,
    max_num_batched_tokens=512,
    block_size_tokens=16,
    num_blocks=512,
    max_model_len_tokens=4000,
)
DEADLINE_S = 20.0


class Answered:
    """What came back for one call."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.head: ReplyHead | None = None
        self.chunks: list[ReplyData] = []
        self.last: ReplyEnd | EngineError | None = None
        self.ended = asyncio.Event()

    def take(self, request_id: str, item: ReplyHead | ReplyData | ReplyEnd | EngineError) -> None:
        """The sink."""
        assert request_id == self.request_id
        assert self.last is None, "nothing comes behind the last word"
        if isinstance(item, ReplyHead):
            assert self.head is None, "the head comes once"
            self.head = item
        elif isinstance(item, ReplyData):
            assert self.head is not None, "the head comes first"
            self.chunks.append(item)
        else:
            self.last = item
            self.ended.set()

    @property
    def status(self) -> int:
        assert self.head is not None
        return self.head.status

    @property
    def headers(self) -> dict[str, str]:
        assert self.head is not None
        return dict(self.head.headers)

    @property
    def body(self) -> bytes:
        return b"".join(chunk.data for chunk in self.chunks)

    @property
    def output_tokens(self) -> int:
        return sum(chunk.output_tokens for chunk in self.chunks)

    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self.body
        assert int(self.headers["content-length"]) == len(self.body)
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of its events; `[DONE]` as text. Names are checked against the events' types."""
        assert self.headers["content-type"].startswith("text/event-stream"), self.body
        found = []
        for block in self.body.decode().removesuffix("\n\n").split("\n\n"):
            name, _, data = block.rpartition("data: ")
            tree = data if data == "[DONE]" else json.loads(data)
            assert name in ("", f"event: {tree['type']}\n" if isinstance(tree, dict) and "type" in tree else "")
            found.append(tree)
        return found


class Caller:
    """Calls one engine."""

    def __init__(self, engine: EmulatedEngine) -> None:
        self.engine = engine
        self._names = (f"call{i}" for i in itertools.count())

    def begin(
        self,
        path: str,
        body: Any = None,
        *,
        method: str = "POST",
        content_type: str = "application/json",
        sink: Callable[[Answered], Callable[..., None]] = lambda answered: answered.take,
    ) -> Answered:
        """Sends a call and returns at once."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        answered = Answered(next(self._names))
        call = ForwardCall(
            request_id=answered.request_id,
            method=method,
            target=path,
            headers=(("content-type", content_type),),
            body_bytes=len(data),
        )
        feed = BodyFeed(len(data))
        self.engine.forward(call, feed, sink(answered))
        for start in range(0, len(data), 100):
            feed.feed(data[start : start + 100])
        return answered

    async def call(
        self, path: str, body: Any = None, *, method: str = "POST", content_type: str = "application/json"
    ) -> Answered:
        """Sends a call and waits for its end."""
        answered = self.begin(path, body, method=method, content_type=content_type)
        async with asyncio.timeout(DEADLINE_S):
            await answered.ended.wait()
        assert isinstance(answered.last, ReplyEnd), answered.last
        return answered

    async def get(self, path: str) -> Answered:
        return await self.call(path, method="GET")

    async def until_scheduled(self, count: int) -> None:
        """Waits until so many requests are in the scheduler."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.scheduled()) != count:  # noqa: ASYNC110
                await asyncio.sleep(0)

    def scheduled(self) -> list[str]:
        """Names of the requests in the scheduler."""
        return sorted(self.engine._node.requests)


@asynccontextmanager
async def emulated_caller(*, tokenizer: str = "bytes", config: EngineConfig = CONFIG) -> AsyncIterator[Caller]:
    """An engine that runs; when it is left, nothing may be left of any call."""
    engine = EmulatedEngine(
        EngineOptions(node_id="n", config=config, step_time=STEP_TIME, tokenizer=tokenizer, time_scale=10.0)
    )
    await engine.start()
    try:
        yield Caller(engine)
    finally:
        await engine.close()
    assert not engine._api._calls, "calls are left"
    assert not engine._here, "requests are left"


def limits(**changed: Any) -> EngineConfig:
    """The usual limits with some changed."""
    return msgspec.structs.replace(CONFIG, **changed)

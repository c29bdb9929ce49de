"""A node that costs next to nothing: answers one token per tick for each request, over both ways in.

    python -m bench.micro.stub_engine --port 9101 --http-port 9102 --tick-ms 20

HTTP (`/v1/completions`, for proxies and for clients that go straight to it) and `Predict.Session` (for our gateway)
share one ticker, so whoever stands in front is measured against the same engine. `Dispatch.Generate` is there too,
answered without any engine: what a gRPC front costs at least.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import orjson
import uvloop

from gateway.http.connection import ConnectionLimits, Exchange
from gateway.http.server import HttpServer
from gateway.listen import bound_socket
from protos import codec
from protos.runtime.addresses import HostPort
from protos.v1 import astrolabe_dispatch_pb2 as dispatch_pb
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchServicer, add_DispatchServicer_to_server
from protos.v1.astrolabe_predict_pb2_grpc import PredictServicer, add_PredictServicer_to_server
from simcore.types import EngineConfig, Forecast, NodeLoad, Outcome, Quantiles

MODEL = "stub-model"
TOKEN = ord("x")
_HEAD = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"stub-model","choices":[{"index":0,"text":"x"'
)
_CHUNK = _HEAD + b',"logprobs":null,"finish_reason":null}]}\n\n'
_LAST = _HEAD + b',"logprobs":null,"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
_WHOLE = orjson.dumps(
    {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "text": "x", "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
)
_MODELS = orjson.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "stub"}]})
_JSON = {"content-type": "application/json"}
_LENGTH = codec.outcome_to_wire(Outcome.LENGTH)
_USAGE = types_pb.Usage(prompt_tokens=1, output_tokens=1)
_JSON_LINE = engine_pb.Header(name="content-type", value="application/json")
_EVENTS_LINE = engine_pb.Header(name="content-type", value="text/event-stream")


def _length_line(data_bytes: int) -> engine_pb.Header:
    return engine_pb.Header(name="content-length", value=str(data_bytes))


class StubEngine(PredictServicer):  # type: ignore[misc, unused-ignore]
    """Everything on one event loop."""

    def __init__(self, node_id: str, tick_s: float) -> None:
        self._node_id = node_id
        self._tick_s = tick_s
        self._exchanges: dict[Exchange, int] = {}
        self._sessions: list[_Session] = []

    def handle(self, exchange: Exchange) -> None:
        """One HTTP request."""
        request = exchange.request
        if request.path == "/v1/models":
            exchange.respond(200, _JSON, _MODELS)
        elif request.path != "/v1/completions":
            exchange.respond(200, _JSON, b"{}")
        else:
            body = orjson.loads(request.body)
            if not body.get("stream"):
                exchange.respond(200, _JSON, _WHOLE)
                return
            exchange.start(200, {"content-type": "text/event-stream"})
            exchange.on_left = functools.partial(self._forget, exchange)
            if body["max_tokens"] == 1:
                exchange.send(_LAST, last=True)
            else:
                self._exchanges[exchange] = body["max_tokens"]

    def _forget(self, exchange: Exchange) -> None:
        self._exchanges.pop(exchange, None)

    async def Session(
        self, request_iterator: AsyncIterator[pb.GatewayFrame], context: Any
    ) -> AsyncIterator[pb.NodeFrame]:
        session = _Session(self._node_id)
        self._sessions.append(session)
        reader = asyncio.create_task(session.read(request_iterator))
        try:
            yield session.welcome()
            while True:
                yield await session.next_frame()
        finally:
            reader.cancel()
            self._sessions.remove(session)

    async def tick(self) -> None:
        """Forever: a token for everybody."""
        while True:
            await asyncio.sleep(self._tick_s)
            for exchange, left in list(self._exchanges.items()):
                if left == 1:
                    del self._exchanges[exchange]
                    exchange.send(_LAST, last=True)
                else:
                    self._exchanges[exchange] = left - 1
                    exchange.send(_CHUNK)
            for session in self._sessions:
                session.tick()

    def _absent(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    Predict = Reserve = Release = GetState = WatchState = GetCalibration = _absent


class _Session:
    """One gateway."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._left: dict[str, int] = {}
        self._forwarded: dict[str, int] = {}
        """Calls to be answered in the engine's own words, by what is left of them."""
        self._out = pb.NodeFrame()
        self._has_news = asyncio.Event()
        self._dispatch_seq = 0

    def welcome(self) -> pb.NodeFrame:
        config = EngineConfig(
            model=MODEL, max_num_seqs=4096, num_blocks=1_000_000, max_model_len_tokens=100_000, forwards=True
        )
        return pb.NodeFrame(
            welcome=pb.Welcome(node_id=self._node_id, config=codec.config_to_wire(config), profile="stub/stub"),
            load=self._load(),
        )

    async def read(self, frames: AsyncIterator[pb.GatewayFrame]) -> None:
        async for frame in frames:
            for request_id in frame.abort_request_ids:
                self._left.pop(request_id, None)
                self._forwarded.pop(request_id, None)
            for dispatched in frame.dispatches:
                self._dispatch_seq = dispatched.dispatch_seq
                if dispatched.WhichOneof("work") == "forward":
                    self._forward(dispatched.forward)
                    continue
                tokens = dispatched.request.sampling.max_tokens
                if tokens == 1:
                    self._end(dispatched.request.request_id)
                else:
                    self._left[dispatched.request.request_id] = tokens
            for ask in frame.asks:
                self._out.answers.add(ask_id=ask.ask_id, forecast=self._forecast(ask.candidate.request_id))
            if frame.ping:
                self._out.pong = frame.ping
            if frame.dispatches:
                self._out.load.CopyFrom(self._load())
            self._has_news.set()

    def _forward(self, call: engine_pb.ForwardedCall) -> None:
        body = orjson.loads(call.body)
        if not body.get("stream"):
            head = engine_pb.ForwardedHead(status=200, headers=[_JSON_LINE, _length_line(len(_WHOLE))])
            self._out.parts.add(
                request_id=call.request_id, head=head, data=_WHOLE, output_tokens=1, outcome=_LENGTH, usage=_USAGE
            )
            return
        self._out.parts.add(
            request_id=call.request_id, head=engine_pb.ForwardedHead(status=200, headers=[_EVENTS_LINE])
        )
        if body["max_tokens"] == 1:
            self._end_forwarded(call.request_id)
        else:
            self._forwarded[call.request_id] = body["max_tokens"]

    def _end_forwarded(self, request_id: str) -> None:
        self._out.parts.add(request_id=request_id, data=_LAST, output_tokens=1, outcome=_LENGTH, usage=_USAGE)

    async def next_frame(self) -> pb.NodeFrame:
        await self._has_news.wait()
        self._has_news.clear()
        frame, self._out = self._out, pb.NodeFrame()
        return frame

    def tick(self) -> None:
        for request_id, left in list(self._left.items()):
            if left == 1:
                del self._left[request_id]
                self._end(request_id)
            else:
                self._left[request_id] = left - 1
                self._out.parts.add(request_id=request_id, token_ids=(TOKEN,))
        for request_id, left in list(self._forwarded.items()):
            if left == 1:
                del self._forwarded[request_id]
                self._end_forwarded(request_id)
            else:
                self._forwarded[request_id] = left - 1
                self._out.parts.add(request_id=request_id, data=_CHUNK, output_tokens=1)
        # As a daemon does, it says nothing where there is nothing to say.
        if self._out.parts:
            self._has_news.set()

    def _end(self, request_id: str) -> None:
        self._out.parts.add(request_id=request_id, token_ids=(TOKEN,), outcome=_LENGTH, usage=_USAGE)

    def _load(self) -> pb.LoadNote:
        load = NodeLoad(
            node_id=self._node_id,
            trace_seq=1,
            state_age_s=0.0,
            running=len(self._left),
            waiting=0,
            free_blocks=900_000,
            total_blocks=1_000_000,
            waiting_prompt_blocks=0,
            unprocessed_tokens=0,
            preemptions_total=0,
        )
        return pb.LoadNote(load=codec.load_to_wire(load), dispatch_seq=self._dispatch_seq)

    def _forecast(self, request_id: str) -> types_pb.Forecast:
        constant = Quantiles(0.1, 0.1, 0.1)
        return codec.forecast_to_wire(
            Forecast(
                request_id=request_id,
                node_id=self._node_id,
                ttft_s=constant,
                tpot_s=constant,
                e2e_s=constant,
                preemptions=0.0,
                kv_headroom_blocks=1000,
                harm_s=Quantiles(0.0, 0.0, 0.0),
                trace_seq=1,
                state_age_s=0.0,
                source="simulated",
            )
        )


class BareDispatch(DispatchServicer):  # type: ignore[misc, unused-ignore]
    """The least that a gRPC front in this language can do: one `write` per token, and nothing else."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s

    async def Generate(self, request: dispatch_pb.GenerateRequest, context: Any) -> None:  # type: ignore[override]
        chunk = dispatch_pb.GenerateChunk(token_ids=(TOKEN,), text="x")
        for _ in range(request.sampling.max_tokens - 1):
            await asyncio.sleep(self._tick_s)
            await context.write(chunk)
        chunk.outcome = _LENGTH
        chunk.usage.CopyFrom(types_pb.Usage(prompt_tokens=1, output_tokens=1))
        await context.write(chunk)

    def Forward(self, request_iterator: Any, context: Any) -> Any:
        raise NotImplementedError

    Place = Cancel = Explain = ExplainScaling = ListNodes = WatchNodes = Drain = Move = SetPolicy = StubEngine._absent


async def serve(port: int, http_port: int, tick_s: float) -> None:
    """Until cancelled."""
    engine = StubEngine(f"stub-{port}", tick_s)
    server = grpc.aio.server()
    add_PredictServicer_to_server(engine, server)
    add_DispatchServicer_to_server(BareDispatch(tick_s), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    http = HttpServer(engine.handle, ConnectionLimits())
    await http.start(bound_socket(HostPort("127.0.0.1", http_port), key="http_port"), None)
    await engine.tick()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="of Predict.Session")
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--tick-ms", type=float, default=20.0)
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.http_port, options.tick_ms / 1000))


if __name__ == "__main__":
    main()

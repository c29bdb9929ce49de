"""The gRPC servicers of a node: translation and status codes, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import structlog

from engine_adapters.base import EngineError, RequestRefused
from length_model.core.belief import DEFAULT_PRIOR
from predictor import wire
from predictor.core.estimator import NoForecast
from predictor.node import NodeRuntime
from predictor.requests import End, WrongNode
from predictor.session import GatewaySession, OtherProtocol
from protos import codec
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_engine_pb2_grpc as engine_grpc
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_predict_pb2_grpc as predict_grpc
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import Outcome, TokenLogprobs

log = structlog.get_logger("predictor.service")

WATCH_INTERVAL_S = 0.1

Context = grpc.aio.ServicerContext[Any, Any]


class Gate:
    """Lets calls through once the node is ready, and keeps account of the sessions."""

    def __init__(self) -> None:
        self.sessions: list[GatewaySession] = []
        self._node: NodeRuntime | None = None
        self._why = "the node is starting; wait until its health is SERVING"

    def open(self, node: NodeRuntime) -> None:
        self._node = node

    def close(self) -> None:
        """No new calls from now."""
        self._node = None
        self._why = "the node is shutting down; send the request to another one"

    async def enter(self, context: Context) -> NodeRuntime:
        """The node, or the call ends with UNAVAILABLE."""
        if self._node is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self._why)
        assert self._node is not None
        return self._node


class PredictApi(predict_grpc.PredictServicer):
    """What the node knows and foresees."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictReply:
        node = await self._gate.enter(context)
        try:
            candidates = codec.candidates_from_wire(request.candidates, prior=DEFAULT_PRIOR)
        except ValueError as bad:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(bad))
        reply = pb.PredictReply()
        for position, answer in enumerate(await node.asking.forecast(candidates)):
            if isinstance(answer, NoForecast):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"candidates[{position}]: {answer.reason}")
            else:
                reply.forecasts.append(codec.forecast_to_wire(answer))
        return reply

    async def Reserve(self, request: pb.ReserveRequest, context: Context) -> pb.ReserveReply:
        node = await self._gate.enter(context)
        try:
            candidate = codec.candidate_from_wire(request.candidate, prior=DEFAULT_PRIOR)
            if not candidate.request_id:
                raise ValueError("candidate.request_id: is empty; name the request that will come")
            if not request.ttl_s >= 0:
                raise ValueError(f"ttl_s: must be >= 0 seconds, got {request.ttl_s}")
            if candidate.leaving:
                raise ValueError("candidate.leaving: nothing is reserved for a request that is there; only ask of it")
            if why := node.predictor.estimator.why_never(candidate):
                raise ValueError(f"candidate: {why}")
            node.requests.check_open()
        except ValueError as bad:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(bad))
        except EngineError as closed:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(closed))
        return pb.ReserveReply(ttl_s=node.reserve(candidate, request.ttl_s or None))

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseReply:
        node = await self._gate.enter(context)
        return pb.ReleaseReply(found=node.release(request.request_id))

    async def GetState(self, request: pb.GetStateRequest, context: Context) -> types_pb.NodeState:
        return wire.state(await self._gate.enter(context))

    async def WatchState(self, request: pb.WatchStateRequest, context: Context) -> AsyncIterator[types_pb.NodeState]:
        node = await self._gate.enter(context)
        if not request.min_interval_s >= 0:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"min_interval_s: must be >= 0, got {request.min_interval_s}"
            )
        changed = asyncio.Event()
        changed.set()
        unlisten = node.listen(changed.set)
        try:
            while not node.closing:
                await changed.wait()
                changed.clear()
                yield wire.state(node)
                await asyncio.sleep(request.min_interval_s or WATCH_INTERVAL_S)
        finally:
            unlisten()

    async def GetCalibration(self, request: pb.GetCalibrationRequest, context: Context) -> pb.Calibration:
        return wire.calibration(await self._gate.enter(context))

    # The stubs know only answers that are yielded; this one writes when it has something to say.
    async def Session(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.GatewayFrame], context: Context
    ) -> None:
        session = GatewaySession(await self._gate.enter(context), context)
        self._gate.sessions.append(session)
        try:
            await session.run(request_iterator)
        except OtherProtocol as other:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(other))
        finally:
            self._gate.sessions.remove(session)


class EngineApi(engine_grpc.EngineServicer):
    """What the node does for a request."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def Generate(
        self, request: engine_pb.EngineGenerateRequest, context: Context
    ) -> AsyncIterator[engine_pb.EngineChunk]:
        node = await self._gate.enter(context)
        chunks: asyncio.Queue[engine_pb.EngineChunk] = asyncio.Queue()
        ended = False

        def sink(request_id: str, token_ids: Sequence[int], end: End | None, logprobs: Sequence[TokenLogprobs]) -> None:
            nonlocal ended
            ended = end is not None
            chunks.put_nowait(wire.chunk(token_ids, end, logprobs))

        try:
            node.requests.dispatch(
                wire.engine_request(request, max_model_len_tokens=node.config.max_model_len_tokens),
                codec.belief_from_wire(request.belief),
                sink,
            )
        except (RequestRefused, ValueError) as refused:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refused))
        except EngineError as failed:
            elsewhere = node.closing or isinstance(failed, WrongNode)
            await context.abort(grpc.StatusCode.UNAVAILABLE if elsewhere else grpc.StatusCode.INTERNAL, str(failed))
        try:
            while True:
                chunk = await chunks.get()
                yield chunk
                if chunk.HasField("outcome"):
                    break
        finally:
            if not ended:
                node.requests.abandon([request.request_id])
        if chunk.outcome == codec.outcome_to_wire(Outcome.ENGINE_FAILED):
            await context.abort(grpc.StatusCode.INTERNAL, chunk.detail)
        if chunk.outcome == codec.outcome_to_wire(Outcome.NODE_LOST):
            await context.abort(grpc.StatusCode.UNAVAILABLE, chunk.detail)

    async def Abort(self, request: engine_pb.AbortRequest, context: Context) -> engine_pb.AbortReply:
        node = await self._gate.enter(context)
        return engine_pb.AbortReply(found=await node.requests.abort(request.request_id))

"""The `Length` service: a length model over gRPC. Predictions run in one worker thread, off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from length_model.core.belief import given_produced
from length_model.core.conversation import Role, Turn
from length_model.core.model import LengthModel
from length_model.core.query import LengthQuery, make_query
from length_model.online import LengthForecast, OnlineLengths
from protos import codec
from protos.runtime.addresses import parse_address
from protos.runtime.channels import server_options
from protos.runtime.signals import live_through
from protos.v1 import astrolabe_length_pb2 as pb
from protos.v1 import astrolabe_length_pb2_grpc as pb_grpc

SERVICE = "astrolabe.v1.Length"
MOST_QUERIES = 1024
MOST_MESSAGE_BYTES = 64 << 20
"""Prompts of a megabyte are taken, and many at once."""

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant"}
Context = Any
"""grpc.aio.ServicerContext; its published types do not cover what is used here."""


class LengthApi(pb_grpc.LengthServicer):
    """One instance serves all calls."""

    def __init__(self, lengths: OnlineLengths, worker: ThreadPoolExecutor) -> None:
        self._lengths = lengths
        self._worker = worker

    async def PredictLengths(self, request: pb.PredictLengthsRequest, context: Context) -> pb.PredictLengthsReply:
        await _check_count(len(request.queries), "queries", context)
        forecasts = await self._forecasts(request.queries)
        return pb.PredictLengthsReply(
            predictions=[_prediction(f, q) for f, q in zip(forecasts, request.queries, strict=True)]
        )

    async def ObserveLengths(self, request: pb.ObserveLengthsRequest, context: Context) -> pb.ObserveLengthsReply:
        await _check_count(len(request.observed), "observed", context)
        kept = [o for o in request.observed if o.output_tokens >= 1]
        forecasts = await self._forecasts([o.query for o in kept])
        for forecast, observed in zip(forecasts, kept, strict=True):
            self._lengths.observe(forecast, observed.output_tokens, censored=observed.censored)
        return pb.ObserveLengthsReply(taken=len(kept))

    async def DescribeLengthModel(self, request: pb.DescribeLengthModelRequest, context: Context) -> pb.LengthModelInfo:
        counters = self._lengths.counters
        return pb.LengthModelInfo(
            name=self._lengths.model.name,
            sha256=self._lengths.model.sha256,
            predictions=counters.predictions,
            priors=counters.failed + counters.late,
            observed=counters.observed,
            drifts=self._lengths.drifts,
        )

    async def _forecasts(self, queries: Sequence[pb.LengthQuery]) -> list[LengthForecast]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._worker,
            lambda: self._lengths.forecast_batch([_query(q) for q in queries], [q.max_tokens or None for q in queries]),
        )


async def _check_count(count: int, field: str, context: Context) -> None:
    if count > MOST_QUERIES:
        await context.abort(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"{field}: {count} in one call, at most {MOST_QUERIES}; send several calls",
        )


def _query(message: pb.LengthQuery) -> LengthQuery:
    return make_query(
        message.prompt,
        [Turn(_ROLES.get(t.role, "other"), t.text) for t in message.history],
        model=message.model,
        request_class=message.request_class,
    )


def _prediction(forecast: LengthForecast, query: pb.LengthQuery) -> pb.LengthPrediction:
    belief = given_produced(forecast.belief, query.produced_tokens)
    median = belief.quantile_tokens(0.5)
    return pb.LengthPrediction(
        belief=codec.belief_to_wire(belief),
        mean_tokens=round(belief.mean_tokens),
        p50_tokens=median,
        p90_tokens=belief.quantile_tokens(0.9),
        remaining_p50_tokens=median - query.produced_tokens,
        prior=forecast.hazards is None,
    )


async def serve(model: LengthModel, *, listen: str, ready_file: Path | None = None) -> None:
    """Serves until SIGINT or SIGTERM. Raises ValueError for what is no address, OSError when it cannot be
    bound."""
    log = structlog.get_logger("length")
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="length")
    server = grpc.aio.server(options=server_options(max_message_bytes=MOST_MESSAGE_BYTES))
    lengths = OnlineLengths(model)
    pb_grpc.add_LengthServicer_to_server(LengthApi(lengths, worker), server)
    checks: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    wanted = parse_address(listen, any_port=True)
    try:
        port = server.add_insecure_port(str(wanted))
    except RuntimeError as bad:
        raise OSError(0, str(bad), listen) from None
    await server.start()
    for service in ("", SERVICE):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    address = str(wanted._replace(port=port))
    if ready_file is not None:
        await asyncio.to_thread(ready_file.write_text, address + "\n")
    log.info("length model serves", address=address, model=model.name)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(name, ended.set)
    live_through(signal.SIGHUP)
    await ended.wait()
    await server.stop(grace=5.0)
    worker.shutdown(wait=False, cancel_futures=True)

"""Records what this release says on the wire, for those that come after it: `python -m tests.wire.record`.

Two nodes with emulated engines, a gateway and clients, each call and frame between them through a proxy that keeps its
bytes; and every message of the contract once with all fields set. About a minute. Run it once, for the release that is
about to be made; `tests/wire/recorded/RELEASE` is then never written again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import grpc.aio
from google.protobuf import descriptor_pool, message_factory

from deploy.local_cluster import Child
from protos.runtime.protocol import ours
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_length_pb2 as length_pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from protos.v1.astrolabe_engine_pb2_grpc import EngineStub
from protos.v1.astrolabe_length_pb2_grpc import LengthStub
from protos.v1.astrolabe_predict_pb2_grpc import PredictStub
from tests.wire.filled import fill, variants
from tests.wire.recorded import FOLDER, MODULES, SESSION, Recorded, Way, paths, read, recorded, write
from tests.wire.tap import Tap

NODE: dict[str, Any] = {
    "listen": "127.0.0.1:0",
    "tokenizer": "bytes",
    "max_num_seqs": 16,
    "max_num_batched_tokens": 512,
    "num_blocks": 600,
    "max_model_len_tokens": 2048,
    "time_scale": 20.0,
}
"""Options of a recorded node; a node that is to answer the same gets the same."""
GATEWAY: dict[str, Any] = {
    "listen": "127.0.0.1:0",
    "http_listen": "127.0.0.1:0",
    "tokenizer": "bytes",
    "policy": "min_total_latency",
    "gateway_id": "recorded",
}
START_S = 300.0
FEW = 2
"""How many messages with the same fields are kept of one method."""
ENDLESS_TOKENS = 1900

Rows = list[tuple[str, Way, int, bytes]]


@click.command()
@click.option("--again", is_flag=True, help="Replace what is there: only before the release is out.")
def main(again: bool) -> None:
    release = ours().release
    if (FOLDER / release).exists() and not again:
        raise click.ClickException(f"{release} is recorded; raise the version in pyproject.toml, or say --again")
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(_run(Path(folder)))
    kept = [*_filled(), *_chosen(rows)]
    where = write(release, kept)
    size = sum(path.stat().st_size for path in where.iterdir())
    click.echo(f"{len(kept)} of {len(rows)} messages and the contract of {release}: {size:,} bytes in {where}")


async def _run(folder: Path) -> Rows:
    rows: Rows = []
    numbers = itertools.count(1).__next__

    def keep(method: str, way: Way, number: int, raw: bytes) -> None:
        rows.append((method, way, number, raw))

    with contextlib.ExitStack() as processes:
        nodes = [_child(processes, f"node-{i}", "predictor", {**NODE, "node_id": f"node-{i}"}, folder) for i in (0, 1)]
        async with contextlib.AsyncExitStack() as taps:
            before = [await _tap(taps, node.address, keep, numbers) for node in nodes]
            entries = [tap.address for tap in before]
            gateway = await asyncio.to_thread(
                _child, processes, "gateway", "gateway", {**GATEWAY, "node": entries}, folder
            )
            front = await _tap(taps, gateway.address, keep, numbers)
            async with grpc.aio.insecure_channel(front.address) as channel:
                await _clients(DispatchStub(channel), gateway.http_address)
            async with grpc.aio.insecure_channel(before[0].address) as channel:
                await _node_clients(PredictStub(channel), EngineStub(channel))
            with _length_server(folder) as address:
                lengths = await _tap(taps, address, keep, numbers)
                async with grpc.aio.insecure_channel(lengths.address) as channel:
                    await _length_clients(LengthStub(channel))
    return rows


def _child(processes: contextlib.ExitStack, name: str, command: str, options: dict[str, Any], folder: Path) -> Child:
    child = Child(name, command, options, folder)
    child.start()
    processes.callback(child.wait, 20.0)
    processes.callback(child.signal, 15)
    child.wait_ready(time.monotonic() + START_S)
    return child


async def _tap(taps: contextlib.AsyncExitStack, target: str, keep: Any, numbers: Callable[[], int]) -> Tap:
    tap = await Tap(target, keep, numbers).start()
    taps.push_async_callback(tap.stop)
    return tap


async def _clients(stub: Any, http_address: str) -> None:
    """All calls of `Dispatch`, and requests with all that a client can say."""
    async with asyncio.timeout(60):
        while True:
            listed = await stub.ListNodes(pb.ListNodesRequest())
            if len(listed.nodes) == 2 and all(node.status == "up" for node in listed.nodes):
                break
            await asyncio.sleep(0.05)
    short = types_pb.SamplingParams(max_tokens=8, ignore_eos=True)
    rich = types_pb.SamplingParams(
        max_tokens=6, temperature=0.7, top_p=0.9, top_k=40, seed=7, min_p=0.05, presence_penalty=0.5,
        frequency_penalty=0.25, repetition_penalty=1.125, min_tokens=2, logit_bias={65: 1.5}, bad_words=["zzz"],
        logprobs=2, stop=["never to be seen"], stop_token_ids=[1],
    )  # fmt: skip
    slo = pb.Slo(ttft_s=1.0, tpot_s=0.1, deadline_s=30.0)
    ids = pb.TokenIds(ids=range(40))
    generate = [
        pb.GenerateRequest(request_id="plain", text="Why is the sky blue?", sampling=short),
        pb.GenerateRequest(
            request_id="rich", token_ids=ids, sampling=rich, priority=-1, session="s", slo=slo, idempotency_key="k",
            belief=types_pb.LengthBelief(atoms_tokens=[4, 9]), policy="least_requests", resume=pb.RESUME_BEST_EFFORT,
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ]  # fmt: skip
    for request in generate:
        async for _ in stub.Generate(request):
            pass
    await stub.Explain(pb.ExplainRequest(request_id="plain"))
    await stub.Place(pb.PlaceRequest(request_id="placed", prompt_tokens=30, max_output_tokens=20, slo=slo))
    body = json.dumps({"prompt": "Why?", "max_tokens": 5, "ignore_eos": True, "echo": True}).encode()
    headers = [engine_pb.Header(name="content-type", value="application/json")]
    forward = pb.ForwardRequest(method="POST", target="/v1/completions", headers=headers, body=body)
    async for _ in stub.Forward(iter([forward])):
        pass
    await asyncio.to_thread(_post, f"http://{http_address}/v1/completions", body)
    endless = types_pb.SamplingParams(max_tokens=ENDLESS_TOKENS, ignore_eos=True)
    cancelled = stub.Generate(pb.GenerateRequest(request_id="cancelled", text="On and on", sampling=endless))
    await cancelled.read()
    await stub.Cancel(pb.CancelRequest(request_id="cancelled"))
    with contextlib.suppress(grpc.aio.AioRpcError):
        while not (await cancelled.read()).HasField("outcome"):
            pass
    moved = stub.Generate(pb.GenerateRequest(request_id="moved", text="From here to there", sampling=endless))
    chunk = await moved.read()
    there = "node-1" if chunk.node_id == "node-0" else "node-0"
    await stub.Move(pb.MoveRequest(request_id="moved", node=there))
    while chunk.node_id != there and not chunk.HasField("outcome"):
        chunk = await moved.read()
    moved.cancel()
    await stub.Explain(pb.ExplainRequest(request_id="moved"))
    await stub.SetPolicy(pb.SetPolicyRequest(policy="min_total_latency"))
    watched = stub.WatchNodes(pb.WatchNodesRequest(min_interval_s=0.1))
    await watched.read()
    watched.cancel()
    await stub.Drain(pb.DrainRequest(node_id="node-1", stay=True))
    await stub.Drain(pb.DrainRequest(node_id="node-1", undo=True))


async def _node_clients(predict: Any, engine: Any) -> None:
    """All calls of `Predict` and `Engine` but the session, which the gateway has."""
    belief = types_pb.LengthBelief(atoms_tokens=[20, 50])
    candidate = types_pb.Candidate(request_id="what-if", prompt_tokens=200, max_output_tokens=60, belief=belief)
    sampling = types_pb.SamplingParams(max_tokens=5, ignore_eos=True)
    await predict.Predict(predict_pb.PredictRequest(candidates=[candidate, candidate]))
    await predict.Reserve(predict_pb.ReserveRequest(candidate=candidate, ttl_s=5.0))
    await predict.GetState(predict_pb.GetStateRequest())
    await predict.Release(predict_pb.ReleaseRequest(request_id="what-if"))
    await predict.GetCalibration(predict_pb.GetCalibrationRequest())
    watched = predict.WatchState(predict_pb.WatchStateRequest(min_interval_s=0.2))
    await watched.read()
    watched.cancel()
    async for _ in engine.Generate(
        engine_pb.EngineGenerateRequest(request_id="direct", prompt_token_ids=[1, 2, 3], sampling=sampling)
    ):
        pass
    await engine.Abort(engine_pb.AbortRequest(request_id="direct"))


async def _length_clients(stub: Any) -> None:
    turn = length_pb.ConversationTurn(role="user", text="Hello")
    query = length_pb.LengthQuery(prompt="And then?", history=[turn], model="m", max_tokens=100, produced_tokens=3)
    await stub.PredictLengths(length_pb.PredictLengthsRequest(queries=[query]))
    seen = length_pb.ObservedLength(query=query, output_tokens=12)
    await stub.ObserveLengths(length_pb.ObserveLengthsRequest(observed=[seen]))
    await stub.DescribeLengthModel(length_pb.DescribeLengthModelRequest())


@contextlib.contextmanager
def _length_server(folder: Path) -> Iterator[str]:
    import subprocess

    ready = folder / "lengths.ready"
    program = "from deploy.cli import LENGTH; LENGTH(prog_name='astrolabe length')"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready)],
        stderr=subprocess.DEVNULL,
    )
    try:
        end_s = time.monotonic() + START_S
        while not (ready.exists() and ready.read_text().endswith("\n")):
            if process.poll() is not None or time.monotonic() > end_s:
                raise click.ClickException("the length server does not start")
            time.sleep(0.05)
        yield ready.read_text().strip()
    finally:
        process.terminate()
        process.wait(20.0)


def _post(url: str, body: bytes) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with direct.open(request, timeout=60.0) as answer:
        answer.read()


def _chosen(rows: Rows) -> Iterator[Recorded]:
    """Of a session all that a gateway says, and what a node answers; of all else a few of each shape."""
    shapes: dict[tuple[str, Way, frozenset[str]], int] = {}
    for method, way, number, raw in rows:
        row = recorded(method, way, number, raw)
        shape = (method, way, paths(row.meaning))
        shapes[shape] = shapes.get(shape, 0) + 1
        frame = row.meaning if method == SESSION else {}
        told = set(frame) & {"hello", "dispatches", "asks", "abort_request_ids", "consumed", "body_parts"}
        answered = "welcome" in frame or "answers" in frame or ("parts" in frame and not _is_long(frame))
        if shapes[shape] <= FEW or told or answered:
            yield row


def _is_long(frame: dict[str, Any]) -> bool:
    """Whether it is one of a thousand frames with a token of an answer that has no end."""
    return all(set(part) <= {"request_id", "token_ids"} for part in frame["parts"]) and any(
        part["request_id"].startswith(("cancelled", "moved")) for part in frame["parts"]
    )


def _filled() -> Iterator[Recorded]:
    """Every message that some call sends, with all fields; call 0."""
    pool = descriptor_pool.Default()
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                name = f"/{service.full_name}/{method.name}"
                ways: tuple[tuple[Way, Any], ...] = (("request", method.input_type), ("response", method.output_type))
                for way, kind in ways:
                    for variant in range(variants(kind)):
                        message = message_factory.GetMessageClass(pool.FindMessageTypeByName(kind.full_name))()
                        fill(message, variant)
                        row = recorded(name, way, 0, message.SerializeToString(deterministic=True))
                        assert read(name, way, row.raw) == message
                        yield row


if __name__ == "__main__":
    main()

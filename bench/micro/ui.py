"""What open pages of `/ui` cost a gateway: `python -m bench.micro.ui [--nodes 400] [--viewers 1 8]`.

A real gateway with so many nodes, each of which tells of another load every second, and requests at a steady rate.
Rounds with and without open pages take turns. Printed: the gateway's processor time as a share of one core (median of
the rounds), what the pages add to it, and the bytes that one page gets in a second.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import uvloop

from bench.micro.front import HttpConnection
from bench.micro.process_cost import CostMeter
from bench.micro.stub_engine import MODEL
from deploy.local_cluster import Child
from protos import codec
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_predict_pb2_grpc import PredictServicer, add_PredictServicer_to_server
from simcore.types import EngineConfig, NodeLoad, Outcome

BLOCKS = 10_000
NOTE_S = 1.0
CONNECTIONS = 32
STARTED_S = 120.0


class TellingNodes(PredictServicer):  # type: ignore[misc, unused-ignore]
    """Nodes that tell of another load every second, and answer each request at once."""

    def __init__(self, seed: int) -> None:
        self._numbers = itertools.count()
        self._rng = random.Random(seed)

    async def Session(
        self, request_iterator: AsyncIterator[pb.GatewayFrame], context: Any
    ) -> AsyncIterator[pb.NodeFrame]:
        node_id = f"node-{next(self._numbers)}"
        out: asyncio.Queue[pb.NodeFrame] = asyncio.Queue()
        config = EngineConfig(model=MODEL, num_blocks=BLOCKS, max_model_len_tokens=100_000)
        reader = asyncio.create_task(self._read(request_iterator, out))
        teller = asyncio.create_task(self._tell(node_id, out))
        try:
            welcome = pb.Welcome(node_id=node_id, config=codec.config_to_wire(config), profile="stub/stub")
            yield pb.NodeFrame(welcome=welcome, load=self._note(node_id))
            while True:
                yield await out.get()
        finally:
            reader.cancel()
            teller.cancel()

    async def _read(self, frames: AsyncIterator[pb.GatewayFrame], out: asyncio.Queue[pb.NodeFrame]) -> None:
        usage = types_pb.Usage(prompt_tokens=1, output_tokens=1)
        async for frame in frames:
            reply = pb.NodeFrame(pong=frame.ping) if frame.ping else pb.NodeFrame()
            for dispatched in frame.dispatches:
                part = reply.parts.add(request_id=dispatched.request.request_id, token_ids=(120,), usage=usage)
                part.outcome = codec.outcome_to_wire(Outcome.LENGTH)
            if frame.ping or frame.dispatches:
                out.put_nowait(reply)

    async def _tell(self, node_id: str, out: asyncio.Queue[pb.NodeFrame]) -> None:
        await asyncio.sleep(self._rng.random() * NOTE_S)
        while True:
            out.put_nowait(pb.NodeFrame(load=self._note(node_id)))
            await asyncio.sleep(NOTE_S)

    def _note(self, node_id: str) -> pb.LoadNote:
        running = self._rng.randrange(60)
        load = NodeLoad(
            node_id=node_id,
            trace_seq=1,
            state_age_s=0.0,
            running=running,
            waiting=self._rng.randrange(5),
            free_blocks=BLOCKS - running * 100,
            total_blocks=BLOCKS,
            waiting_prompt_blocks=0,
            unprocessed_tokens=running * 300,
            preemptions_total=0,
        )
        return pb.LoadNote(load=codec.load_to_wire(load), dispatch_seq=2**31)

    def _absent(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    Predict = Reserve = Release = GetState = WatchState = GetCalibration = _absent


class OpenPage:
    """Reads the stream of one page as it comes."""

    def __init__(self, address: str) -> None:
        self.read_bytes = 0
        self._address = address
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        host, _, port = self._address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(b"GET /ui/stream HTTP/1.1\r\nhost: localhost\r\n\r\n")
            while data := await reader.read(1 << 16):
                self.read_bytes += len(data)
        finally:
            writer.close()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def keep_asking(address: str, rate_per_s: float) -> None:
    """One-token requests at that rate, for ever."""
    connections = [HttpConnection(address, "hello") for _ in range(CONNECTIONS)]
    try:
        async with asyncio.TaskGroup() as group:

            async def ask_in_turn(connection: HttpConnection, first_s: float) -> None:
                await asyncio.sleep(first_s)
                while True:
                    await connection.ask(1)
                    await asyncio.sleep(CONNECTIONS / rate_per_s)

            for number, connection in enumerate(connections):
                group.create_task(ask_in_turn(connection, number / rate_per_s))
    finally:
        for connection in connections:
            connection.close()


async def cost(child: Child, viewers: int, seconds: float) -> tuple[float, float]:
    """The gateway's share of a core with so many pages open, and the bytes per second of one page."""
    pages = [OpenPage(child.http_address) for _ in range(viewers)]
    # What is told at first is not what a page that is open costs.
    await asyncio.sleep(2.0)
    before = [page.read_bytes for page in pages]
    pids = [child.pid, *(worker.pid for worker in psutil.Process(child.pid).children())]
    meter = CostMeter(pids)
    await asyncio.sleep(seconds)
    share = meter.read().cpu_share * len(pids)
    read = [page.read_bytes - had for page, had in zip(pages, before, strict=True)]
    for page in pages:
        await page.close()
    return share, statistics.mean(read) / seconds if read else 0.0


async def run(options: argparse.Namespace) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_PredictServicer_to_server(TellingNodes(options.seed), server)
    addresses = [f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}" for _ in range(options.nodes)]
    await server.start()
    settings = {
        "listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "node": addresses,
        "policy": "least_requests",
        "tokenizer": "bytes",
        "lengths": "none",
        # So many sessions with one process are late now and then.
        "keepalive_s": 30.0,
        "workers": options.workers,
    }
    with tempfile.TemporaryDirectory() as folder:
        child = Child("gateway", "gateway", settings, Path(folder))
        child.start()
        try:
            await asyncio.to_thread(child.wait_ready, time.monotonic() + STARTED_S)
            asking = asyncio.create_task(keep_asking(child.http_address, options.rate))
            await asyncio.sleep(options.settle)
            await report(child, options)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        finally:
            child.signal(15)
            await asyncio.to_thread(child.wait, 20)
            await server.stop(0)


async def report(child: Child, options: argparse.Namespace) -> None:
    counts = [0, *options.viewers]
    shares: dict[int, list[float]] = {count: [] for count in counts}
    told: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(options.rounds):
        for count in counts:
            share, bytes_per_s = await cost(child, count, options.seconds)
            shares[count].append(share)
            told[count].append(bytes_per_s)
    print(f"{'pages':>6} {'gateway, of a core':>19} {'added':>8} {'kB/s a page':>12}")
    for count in counts:
        # Rounds beside each other met the same machine.
        added = statistics.median(b - a for a, b in zip(shares[0], shares[count], strict=True)) if count else 0.0
        share = statistics.median(shares[count])
        print(f"{count:6d} {share:18.2%} {added:8.2%} {statistics.median(told[count]) / 1000:12.1f}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=400)
    parser.add_argument("--workers", type=int, default=1, help="processes of the gateway")
    parser.add_argument("--viewers", type=int, nargs="+", default=[1, 8], help="open pages, a row each (at most 16)")
    parser.add_argument("--rate", type=float, default=50.0, help="requests/s meanwhile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one round")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds before the first")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    print(f"python -m bench.micro.ui {' '.join(sys.argv[1:])}")
    machine = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"
    print(
        f"{machine}, Python {platform.python_version()}; {options.nodes} nodes, {options.rate:g} requests/s, "
        f"{options.workers} workers, {options.rounds} rounds of {options.seconds:g} s each"
    )
    uvloop.run(run(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What stands between a client and its engine, in CPU and latency: our two fronts, and other routers, in one run.

    python -m bench.micro.front
    python -m bench.micro.front --peer vllm-router=V/bin/vllm-router --peer sglang-router=S/bin/sglang-router \
        --peer smg=G/bin/smg --peer nginx=/usr/sbin/nginx --peer haproxy=/usr/sbin/haproxy --peer envoy=E/bin/envoy
    python -m bench.micro.front --policy --servers uvicorn granian aiohttp --servers-python F/bin/python

All routers stand before the same stub engines (`bench.micro.stub_engine`) on this machine, which the client shares with
them. They are measured one after the other, in `--rounds`; medians are told. CPU is user + system time of the whole
process tree of what stands in between, so it hardly depends on how busy the machine is; added latency is that of
one-token requests through it less that of requests straight to the engine, sent in turns at an even rate. The prompt is
bytes (`--tokenizer bytes`): tokenization is counted apart, with `--tokenizer qwen2`. Servers
(`bench.micro.http_servers`) give the stub engine's answers themselves, and the row before them is our own HTTP server
doing the same: what the choice of a server costs, without a gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import grpc.aio
import msgspec
import numpy as np
import psutil
import uvloop

from bench.micro.peers import PEERS, free_port, peer
from bench.micro.stub_engine import MODEL
from deploy.local_cluster import Child
from protos.runtime.channels import open_channel
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub

Ask = Callable[[int], Awaitable[None]]
"""One request of so many tokens, read to its end."""
NODES = 4
WARM_REQUESTS = 200


class Target(msgspec.Struct, frozen=True):
    """Something to send requests to."""

    name: str
    address: str
    process: psutil.Process | None
    """Root of what is measured; None for the engine itself."""
    is_grpc: bool = False
    lane: str = "tokens"
    """Of a gateway: what requests are to go by."""


class Figures(msgspec.Struct):
    """One row. CPU in microseconds, latencies in milliseconds."""

    request_us: float = float("nan")
    whole_us: float = float("nan")
    """A request whose answer comes in one piece."""
    chunk_us: float = float("nan")
    tokens_per_s: float = float("nan")
    """Delivered to all streams of the chunk test together."""
    added_p50_ms: float = float("nan")
    added_p99_ms: float = float("nan")


class HttpConnection:
    """One kept-alive connection that understands just enough."""

    def __init__(self, address: str, prompt: str, *, stream: bool = True, lane: str = "tokens") -> None:
        host, _, port = address.rpartition(":")
        self._where = (host, int(port))
        self._prompt = prompt
        self._stream = stream
        # A field that a gateway does not understand, and that asks for nothing.
        self._more = {"include_stop_str_in_output": True} if lane == "pass_through" else {}
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, tokens: int) -> None:
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(*self._where)
        asked = {"model": MODEL, "prompt": self._prompt, "max_tokens": tokens, "stream": self._stream, **self._more}
        body = json.dumps(asked).encode()
        self._writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        if not self._stream:
            await self._read_whole(self._reader)
            return
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            data = await self._reader.read(1 << 16)
            if not data:
                raise ConnectionError(f"{self._where} closed the connection")
            tail = (tail + data)[-16:]

    async def _read_whole(self, reader: asyncio.StreamReader) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        _, _, rest = head.partition(b"content-length:")
        await reader.readexactly(int(rest.partition(b"\r\n")[0]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@contextlib.asynccontextmanager
async def connections(target: Target, count: int, prompt: str, *, stream: bool = True) -> AsyncIterator[list[Ask]]:
    """So many clients of the target: HTTP connections, or calls over one gRPC channel."""
    if target.is_grpc:
        async with open_channel(target.address) as channel:
            stub = DispatchStub(channel)  # type: ignore[no-untyped-call, unused-ignore]

            async def ask(tokens: int) -> None:
                sampling = types_pb.SamplingParams(max_tokens=tokens)
                async for _ in stub.Generate(pb.GenerateRequest(text=prompt, sampling=sampling)):
                    pass

            yield [ask] * count
        return
    opened = [HttpConnection(target.address, prompt, stream=stream, lane=target.lane) for _ in range(count)]
    try:
        yield [c.ask for c in opened]
    finally:
        for connection in opened:
            connection.close()


async def request_us(target: Target, requests: int, prompt: str, *, stream: bool = True, clients: int = 16) -> float:
    """CPU of one request with one token."""
    async with connections(target, clients, prompt, stream=stream) as asks:

        async def work(ask: Ask, count: int) -> None:
            for _ in range(count):
                await ask(1)

        await asyncio.gather(*(work(ask, WARM_REQUESTS // clients) for ask in asks))
        before_s = cpu_s(target)
        await asyncio.gather(*(work(ask, requests // clients) for ask in asks))
        return (cpu_s(target) - before_s) / (requests // clients * clients) * 1e6


async def chunk_us(
    target: Target, streams: int, tokens: int, prompt: str, per_request_us: float
) -> tuple[float, float]:
    """CPU of one more token of a running answer, each a chunk of its own; and tokens/s of all streams together."""
    async with connections(target, streams, prompt) as asks:
        before_s, began_s = cpu_s(target), time.perf_counter()
        await asyncio.gather(*(ask(tokens) for ask in asks))
        used_us, took_s = (cpu_s(target) - before_s) * 1e6, time.perf_counter() - began_s
    return (used_us - streams * per_request_us) / (streams * (tokens - 1)), streams * tokens / took_s


async def added_ms(direct: Target, target: Target, requests: int, rate_per_s: float, prompt: str) -> np.ndarray:
    """Latency of requests through the target less those straight to the engine: p50, p99."""
    times: tuple[list[float], list[float]] = ([], [])
    async with connections(direct, 64, prompt) as straight, connections(target, 64, prompt) as through:

        async def one(number: int) -> None:
            side = number % 2
            await asyncio.sleep(number / rate_per_s)
            began_s = time.perf_counter()
            await (straight, through)[side][number // 2 % 64](1)
            times[side].append(time.perf_counter() - began_s)

        await asyncio.gather(*(one(n) for n in range(2 * requests)))
    near, far = (np.quantile(np.array(t[len(t) // 10 :]) * 1e3, [0.5, 0.99]) for t in times)
    return far - near


def cpu_s(target: Target) -> float:
    if target.process is None:
        return 0.0
    total = 0.0
    for process in (target.process, *target.process.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return float(total)


async def measure(target: Target, direct: Target, options: argparse.Namespace) -> Figures:
    prompt = ("The quick brown fox jumps over the lazy dog. " * (options.prompt_chars // 45 + 1))[
        : options.prompt_chars
    ]
    per_request = await request_us(target, options.requests, prompt)
    whole = float("nan") if target.is_grpc else await request_us(target, options.requests, prompt, stream=False)
    per_chunk, per_s = await chunk_us(target, options.streams, options.tokens, prompt, per_request)
    p50, p99 = await added_ms(direct, target, options.latency_requests, options.rate, prompt)
    return Figures(per_request, whole, per_chunk, per_s, float(p50), float(p99))


@contextlib.contextmanager
def stub_engines(tick_ms: float) -> Iterator[tuple[list[tuple[str, str]], list[int]]]:
    """(gRPC, HTTP) addresses of the engines, and their process ids."""
    ports = [(free_port(), free_port()) for _ in range(NODES)]
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "bench.micro.stub_engine"),
                *(f"--port={grpc_port}", f"--http-port={http_port}", f"--tick-ms={tick_ms}"),
            ]
        )
        for grpc_port, http_port in ports
    ]
    try:
        yield [(f"127.0.0.1:{a}", f"127.0.0.1:{b}") for a, b in ports], [p.pid for p in started]
    finally:
        for process in started:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def gateway(nodes: Sequence[str], policy: str, tokenizer: str, lengths: str) -> Iterator[Child]:
    options = {
        "listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "node": list(nodes),
        "policy": policy,
        "tokenizer": tokenizer,
        "lengths": lengths,
        "log_level": "warning",
    }
    with tempfile.TemporaryDirectory() as folder:
        child = Child("gateway", "gateway", options, Path(folder))
        child.start()
        try:
            child.wait_ready(time.monotonic() + 60)
            yield child
        finally:
            child.signal(15)
            child.wait(10)


@contextlib.contextmanager
def http_server(name: str, python: str, tick_ms: float) -> Iterator[Target]:
    """A server of others that gives the stub engine's answers itself."""
    port = free_port()
    script = str(Path(__file__).with_name("http_servers.py"))
    process = subprocess.Popen([python, script, name, f"--port={port}", f"--tick-ms={tick_ms}"])
    try:
        yield Target(f"{name}, stub answers", f"127.0.0.1:{port}", psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()


async def until_served(target: Target, deadline_s: float = 60.0) -> None:
    """Until requests are answered whole."""
    async with asyncio.timeout(deadline_s):
        while True:
            try:
                async with asyncio.timeout(2), connections(target, 1, "x") as (ask,):
                    await ask(2)
                return
            except (OSError, TimeoutError, grpc.aio.AioRpcError):
                await asyncio.sleep(0.2)


def show(name: str, figures: Figures) -> None:
    print(
        f"  {name:44s} {figures.request_us:8.0f} {figures.whole_us:7.0f} {figures.chunk_us:8.1f} "
        f"{figures.tokens_per_s:9,.0f} {figures.added_p50_ms:10.2f} {figures.added_p99_ms:10.2f}",
        flush=True,
    )


def compared(
    options: argparse.Namespace, engines: Sequence[tuple[str, str]], pids: Sequence[int], stack: contextlib.ExitStack
) -> Iterator[Target]:
    """Everything that is to be measured: started, and running until the stack is closed."""
    last = psutil.Process(pids[-1])
    yield Target("bare grpc.aio, a write per token", engines[-1][0], last, True)
    if options.servers:
        yield Target("our HTTP server, stub answers", engines[-1][1], last)
    for name in options.servers:
        yield stack.enter_context(http_server(name, options.servers_python, options.tick_ms))
    for policy in options.policy:
        for lengths in options.lengths:
            child = stack.enter_context(gateway([e[0] for e in engines], policy, options.tokenizer, lengths))
            root, name = psutil.Process(child.pid), f"{policy} lengths={lengths}"
            for lane in options.lane:
                yield Target(f"gateway HTTP {name}, {lane}", child.http_address, root, lane=lane)
            if "tokens" in options.lane:
                yield Target(f"gateway gRPC {name}", child.address, root, True)
    for given in options.peer:
        name, _, command = given.partition("=")
        balancing, address, process = stack.enter_context(peer(name, command or name, [e[1] for e in engines]))
        yield Target(f"{name} {balancing}", address, psutil.Process(process.pid))


async def run(options: argparse.Namespace) -> None:
    with contextlib.ExitStack() as stack:
        engines, pids = stack.enter_context(stub_engines(options.tick_ms))
        direct = Target("straight to the engine", engines[0][1], None)
        targets = list(compared(options, engines, pids, stack))
        for target in (direct, *targets):
            await until_served(target)
        rounds: list[list[Figures]] = [[] for _ in targets]
        for number in range(options.rounds):
            # There and back again: whoever is measured beside a busy neighbour is not always the same.
            for index in range(len(targets))[:: -1 if number % 2 else 1]:
                rounds[index].append(await measure(targets[index], direct, options))
                print(f"round {number + 1}: {targets[index].name}", file=sys.stderr, flush=True)
    print(
        f"  {'':44s} {'µs CPU / request':>8s} {'whole':>7s} {'/ chunk':>8s} "
        f"{'tokens/s':>9s} {'added p50':>6s} {'p99 ms':>6s}"
    )
    for target, figures in zip(targets, rounds, strict=True):
        show(target.name, Figures(*np.median([msgspec.structs.astuple(f) for f in figures], axis=0)))
    print(f"load average {', '.join(f'{load:.1f}' for load in os.getloadavg())}")


def main() -> None:
    """Prints machine, command and one row per target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", nargs="*", default=["least_requests", "min_total_latency"])
    parser.add_argument("--lengths", nargs="*", default=["none", "hashed"], help="length models of the gateway")
    parser.add_argument(
        "--lane",
        nargs="*",
        default=["tokens"],
        choices=["tokens", "pass_through"],
        help="ways to the engines, over HTTP",
    )
    parser.add_argument("--tokenizer", default="bytes")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help=f"one of {', '.join(PEERS)}, and where its program is; may be repeated",
    )
    parser.add_argument("--servers", nargs="*", default=[], help="uvicorn, granian, aiohttp")
    parser.add_argument(
        "--servers-python", default=sys.executable, metavar="PYTHON", help="of an environment that has them"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of all, in turns")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--tick-ms", type=float, default=20.0)
    parser.add_argument("--latency-requests", type=int, default=500)
    parser.add_argument("--rate", type=float, default=100.0, help="requests/s of the latency test, both ways together")
    parser.add_argument("--prompt-chars", type=int, default=1000)
    options = parser.parse_args()
    print(f"python -m bench.micro.front {' '.join(sys.argv[1:])}")
    print(
        f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, "
        f"Python {platform.python_version()}; {NODES} stub engines, {options.streams} streams of {options.tokens} "
        f"tokens every {options.tick_ms:g} ms, prompts of {options.prompt_chars} characters"
    )
    uvloop.run(run(options))


if __name__ == "__main__":
    main()

"""What the trace costs a real vLLM server: the same server with and without it, in turns, in one run.

    python -m bench.vllm_checks.overhead --python .venv-vllm/bin/python

Two servers with the same emulated device, one of them traced and followed by a reader. In each round each gets the same
256 requests at once and the other has nothing to do; who begins changes from round to round. Output tokens per second,
and the ratio of each round; the traced server itself says what our hooks took per step while all 256 ran.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
import click

from bench.vllm_checks.server import Server, free_port
from engine_adapters.vllm.address import address_for_url
from engine_adapters.vllm.launch import SCHEDULER, emulated_launch
from engine_adapters.vllm.probe import TraceProbe
from simcore.cost.shipped import load_profile
from simcore.types import EngineConfig

TIMED = "bench.vllm_checks.timed_scheduler.TimedTraceScheduler"
TIMES = "hooks.json"


def server_of(python: str, profile: str, folder: Path, *, running: int, traced: bool) -> Server:
    """A server whose blocks hold all requests."""
    port = free_port()
    config = EngineConfig(
        model="m", max_num_seqs=running, max_num_batched_tokens=2048, num_blocks=running * 64, async_scheduling=True
    )
    launch = emulated_launch(
        python,
        folder=folder / f"model-{port}",
        config=config,
        device={"profile": load_profile(profile).name},
        host="127.0.0.1",
        port=port,
        extra=(),
        environ={
            **os.environ,
            "ASTROLABE_TIMED_FILE": str(folder / TIMES),
            "ASTROLABE_TIMED_LEAST": str(running),
        },
    )
    command = list(launch.command)
    at = command.index(SCHEDULER)
    if traced:
        command[at] = TIMED
    else:
        del command[at - 1 : at + 1]
    return Server(command, launch.environment, port=port, folder=folder)


async def tokens_per_s(server: Server, *, running: int, tokens: int) -> float:
    """All requests at once, each answered whole."""
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def one(i: int) -> None:
            body = {"model": "m", "prompt": [i] * 32, "max_tokens": tokens, "ignore_eos": True}
            async with session.post(f"{server.url}/v1/completions", json=body) as answer:
                answer.raise_for_status()
                await answer.read()

        began_s = time.perf_counter()
        await asyncio.gather(*(one(i) for i in range(running)))
        return running * tokens / (time.perf_counter() - began_s)


async def follow(server: Server) -> None:
    async for _ in TraceProbe(address_for_url(server.url, {}), exclusive=False).watch():
        pass


async def rounds(plain: Server, traced: Server, *, count: int, running: int, tokens: int) -> list[float]:
    """Traced over plain throughput, by round; the first, in which everything is warmed up, does not count."""
    reader = asyncio.create_task(follow(traced))
    ratios: list[float] = []
    for i in range(count + 1):
        order = (plain, traced) if i % 2 else (traced, plain)
        speed = {id(s): await tokens_per_s(s, running=running, tokens=tokens) for s in order}
        if i:
            ratios.append(speed[id(traced)] / speed[id(plain)])
            click.echo(
                f"round {i}: plain {speed[id(plain)]:,.0f} tokens/s, traced {speed[id(traced)]:,.0f}, "
                f"ratio {ratios[-1]:.4f}; load average {os.getloadavg()[0]:.1f}",
                err=True,
            )
    reader.cancel()
    return ratios


@click.command()
@click.option("--python", default=lambda: os.environ.get("ASTROLABE_VLLM_PYTHON", ".venv-vllm/bin/python"))
@click.option("--profile", default="a100/llama-2-7b", show_default=True)
@click.option("--running", default=256, show_default=True)
@click.option("--tokens", default=200, show_default=True, help="Of each answer.")
@click.option("--rounds", "count", default=8, show_default=True)
def main(python: str, profile: str, running: int, tokens: int, count: int) -> None:
    """Print the ratio of throughputs with and without the trace, and the trace's time per step."""
    folder = Path(tempfile.mkdtemp(prefix="astrolabe-overhead-"))
    plain = server_of(python, profile, folder, running=running, traced=False)
    traced = server_of(python, profile, folder, running=running, traced=True)
    try:
        for server in (plain, traced):
            server.start()
        for server in (plain, traced):
            server.wait_ready()
        ratios = asyncio.run(rounds(plain, traced, count=count, running=running, tokens=tokens))
    finally:
        for server in (plain, traced):
            server.stop()
    low, _, high = statistics.quantiles(ratios, n=4)
    found = f"median {statistics.median(ratios):.4f}, quartiles {low:.4f} to {high:.4f}, {count} rounds"
    click.echo(f"throughput with the trace over without, {running} running on {profile}: {found}")
    hooks = json.loads((folder / TIMES).read_text())
    for what, name in (("processor time", "cpu_us"), ("by the clock", "clock_us")):
        spread = ", ".join(f"{at} {value:.1f}" for at, value in hooks[name].items())
        click.echo(f"our hooks per step, {what}, us over {hooks['steps']:,} steps: {spread}")


if __name__ == "__main__":
    main()

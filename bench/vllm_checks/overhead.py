"""What the trace costs a real vLLM server: the same server with and without it, in turns, in one run.

    python -m bench.vllm_checks.overhead --python .venv-vllm/bin/python

Two servers with the same emulated device, one of them traced and followed by a reader. In each round each gets the same
requests and the other has nothing to do; who begins changes from round to round. There are three requests for each of
256 seats, and a quarter more clients than seats, so that the batch stays full while requests come and go. Many prompts
begin alike, and the KV cache has no room for all that was ever in it: most steps find, keep and give up blocks. Output
tokens per second, and the ratio of each round; the traced server itself says what our hooks took per step while
all seats, or nearly all, were taken, alone and with what they add to the block pool's own methods (the prefix events).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import click

from bench.vllm_checks.server import Server, free_port
from engine_adapters.vllm.address import address_for_url
from engine_adapters.vllm.launch import SCHEDULER, VOCABULARY, emulated_launch
from engine_adapters.vllm.probe import TraceProbe
from simcore.cost.shipped import load_profile
from simcore.types import EngineConfig

TIMED = "bench.vllm_checks.timed_scheduler.TimedTraceScheduler"
TIMES = "hooks.json"
MEASURES = {
    "hooks_clock_us": "our hooks per step, by the clock, us",
    "hooks_cpu_us": "our hooks per step, processor time, us",
    "hooks_clock_nobody_new_us": "the same by the clock, steps with nobody new",
    "hooks_cpu_nobody_new_us": "the same by processor time, steps with nobody new",
    "with_events_clock_us": "with the prefix events, by the clock, us",
    "with_events_cpu_us": "hooks by processor time and prefix events by the clock, us",
    "watch_us": "of it what timing the events takes, at least, us",
    "events": "prefix events per step",
}


def server_of(python: str, profile: str, folder: Path, *, running: int, traced: bool) -> Server:
    """A server whose blocks hold all requests that run, and what a few of those before them have left."""
    port = free_port()
    config = EngineConfig(
        model="m", max_num_seqs=running, max_num_batched_tokens=2048, num_blocks=running * 28, async_scheduling=True
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
            # A request that has all its tokens leaves its seat a step before the next takes it.
            "ASTROLABE_TIMED_LEAST": str(round(0.95 * running)),
        },
    )
    command = list(launch.command)
    at = command.index(SCHEDULER)
    if traced:
        command[at] = TIMED
    else:
        del command[at - 1 : at + 1]
    return Server(command, launch.environment, port=port, folder=folder)


def bodies(seed: int, *, running: int, tokens: int) -> Iterator[dict[str, object]]:
    """Three requests a seat: prompts of up to 320 tokens of which up to 160 are one of eight beginnings."""
    words = range(256, VOCABULARY - 3)
    beginnings = [random.Random(i).choices(words, k=160) for i in range(8)]
    rng = random.Random(seed)
    for _ in range(3 * running):
        own = rng.choices(words, k=rng.randrange(16, 160))
        prompt = rng.choice(beginnings)[: rng.randrange(160)] + own
        length = rng.randrange(tokens // 2, tokens + tokens // 2)
        yield {"model": "m", "prompt": prompt, "max_tokens": length, "ignore_eos": True}


async def tokens_per_s(server: Server, seed: int, *, running: int, tokens: int) -> float:
    """Each request answered whole, never more at once than there are clients."""
    timeout = aiohttp.ClientTimeout(total=600)
    waiting = bodies(seed, running=running, tokens=tokens)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def client() -> int:
            produced = 0
            for body in waiting:
                async with session.post(f"{server.url}/v1/completions", json=body) as answer:
                    answer.raise_for_status()
                    produced += (await answer.json())["usage"]["completion_tokens"]
            return produced

        began_s = time.perf_counter()
        produced = await asyncio.gather(*(client() for _ in range(running + running // 4)))
        return sum(produced) / (time.perf_counter() - began_s)


async def follow(server: Server) -> None:
    async for _ in TraceProbe(address_for_url(server.url, {}), exclusive=False).watch():
        pass


async def rounds(plain: Server, traced: Server, *, count: int, running: int, tokens: int) -> list[float]:
    """Traced over plain throughput, by round; the first, in which everything is warmed up, does not count."""
    reader = asyncio.create_task(follow(traced))
    ratios: list[float] = []
    for i in range(count + 1):
        order = (plain, traced) if i % 2 else (traced, plain)
        speed = {id(s): await tokens_per_s(s, i, running=running, tokens=tokens) for s in order}
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
@click.option("--tokens", default=200, show_default=True, help="Of an answer, on average.")
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
    times = json.loads((folder / TIMES).read_text())
    for name, what in MEASURES.items():
        spread = ", ".join(f"{at} {value:.1f}" for at, value in times[name].items())
        click.echo(f"{what}: {spread}")
    click.echo(f"{times['steps']:,} steps, half of them timed by each clock")


if __name__ == "__main__":
    main()

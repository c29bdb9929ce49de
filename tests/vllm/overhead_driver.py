# mypy: disable-error-code="import-not-found"
"""Runs inside a vLLM environment: what the trace costs the engine's own thread, step by step, with 256 running.

    python -m tests.vllm.overhead_driver --running 256 --steps 2000 [--prefix-cache 0]

The scheduler is vLLM's own; between planning and taking in the output the thread sleeps as if a device computed.
Prints one JSON object; times in microseconds of the thread's CPU: `hooks` in our code, `pool` in what
keeps the account of the prefix cache (compare it with that of `--prefix-cache 0`),
`step` in all of vLLM and us.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.vllm.scheduler_driver import Engine, TraceReader


def timed(recorder: Any, spent: list[float]) -> None:
    """Adds up the time of the recorder's hooks."""
    for name in ("begin", "planned", "ended", "arrived", "aborting", "preempting"):
        setattr(recorder, name, _timed(getattr(recorder, name), spent))


def timed_pool(pool: Any, spent: list[float]) -> None:
    """Adds up the time of the block pool's methods that say what the prefix cache holds, whoever has wrapped them."""
    for name in ("cache_full_blocks", "get_new_blocks", "take_events"):
        setattr(pool, name, _timed(getattr(pool, name), spent))


def _timed(inner: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def outer(*arguments: Any, **named: Any) -> Any:
        # The thread's own CPU time: what other processes take meanwhile is not ours. The first reading is for a kernel
        # that puts a switch of threads off until the next call of the system.
        time.thread_time()
        began = time.thread_time()
        done = inner(*arguments, **named)
        spent[0] += time.thread_time() - began
        return done

    return outer


def measure(arguments: argparse.Namespace, *, plain: bool, reader: bool) -> dict[str, float]:
    folder = tempfile.mkdtemp(prefix="astrolabe-trace-")
    os.environ["ASTROLABE_TRACE"] = f"unix:{folder}/trace.sock"
    os.environ["ASTROLABE_TRACE_PREFIX_CACHE"] = "0" if plain else arguments.prefix_cache
    options = argparse.Namespace(
        mode="sync",
        policy="fcfs",
        max_num_seqs=arguments.running,
        budget=8192,
        blocks=60_000,
        max_loras=0,
        windows="0",
        drafts=0,
        seed=0,
        plain=plain,
    )
    engine = Engine(options)
    rng = random.Random(0)
    if reader:
        trace = TraceReader(f"{folder}/trace.sock")

        def follow() -> None:
            while True:
                trace.read_one()

        # In a process of its own, as a daemon is: reading must not compete for this interpreter.
        if os.fork() == 0:
            try:
                follow()
            finally:
                os._exit(0)
    spent = [0.0]
    recorder = getattr(engine.scheduler, "_astrolabe", None)
    if recorder is not None:
        timed(recorder, spent)
    pool_spent = [0.0]
    timed_pool(engine.scheduler.kv_cache_manager.block_pool, pool_spent)
    for i in range(arguments.running):
        engine.add(
            f"cmpl-astrolabe=request-{i:05d}=-0-12345678",
            prompt=[rng.randrange(10, 200) for _ in range(rng.randrange(20, 60))],
            max_tokens=3000,
            priority=0,
            ends_at=4000,
        )
    hooks: list[float] = []
    steps: list[float] = []
    pool: list[float] = []
    device_s = arguments.device_ms / 1e3
    process_s = time.process_time()
    for step in range(arguments.steps + 20):
        spent[0] = pool_spent[0] = 0.0
        began = time.thread_time()
        engine.flying.append(engine._plan())
        time.sleep(device_s)
        engine.land()
        ended = time.thread_time()
        if step >= 20:
            hooks.append(spent[0])
            steps.append(ended - began)
            pool.append(pool_spent[0])
    assert len(engine.scheduler.running) == arguments.running
    return {
        "hooks_p50": at(hooks, 0.5),
        "hooks_p99": at(hooks, 0.99),
        "hooks_max": max(hooks) * 1e6,
        "pool_p50": at(pool, 0.5),
        "pool_mean": round(sum(pool) / len(pool) * 1e6, 1),
        "step_p50": at(steps, 0.5),
        "step_p99": at(steps, 0.99),
        # All threads together: the publisher's work is in it.
        "process_mean": round((time.process_time() - process_s) / (arguments.steps + 20) * 1e6, 1),
        "threads": float(threading.active_count()),
    }


def at(values: list[float], q: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(q * len(values)))] * 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--device-ms", type=float, default=5.0)
    parser.add_argument("--prefix-cache", choices=["0", "1", "events"], default="1")
    parser.add_argument("--kind", choices=["plain", "traced", "read"], default="read")
    arguments = parser.parse_args()
    result = measure(arguments, plain=arguments.kind == "plain", reader=arguments.kind == "read")
    sys.stdout.write(json.dumps({"kind": arguments.kind, "running": arguments.running, **result}) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

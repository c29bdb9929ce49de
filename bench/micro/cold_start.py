"""Micro-benchmark: how long a process takes to be ready to simulate, and a node's daemon to serve and to answer, with
and without compiled code in the cache; and what a what-if costs before there is any.
`python -m bench.micro.cold_start`.

Beside the seconds that passed: those of a processor that the process itself took.
"""

from __future__ import annotations

import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import grpc
import msgspec
import psutil

from bench.micro.states import A30_LLAMA2_7B, busy_states
from length_model.core.belief import DEFAULT_PRIOR, truncated
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_predict_pb2_grpc import PredictStub
from simcore.kernel_cache import interpreting
from simcore.lookahead import WhatIf
from simcore.node import SimNode
from simcore.trace import TraceSnapshot
from simcore.types import Candidate, EngineConfig

STARTS = 5
POLL_S = 0.01
PATIENCE_S = 600.0
READY = "from simcore.warmup import warm; warm()"
COMPILED = "kernels are not interpreted any more"
RUNNING = (0, 16, 48, 256)
STATES = 5
PROMPT_TOKENS, MAX_OUTPUT_TOKENS = 200, 2048


class Took(NamedTuple):
    """From the start of a process."""

    wall_s: float
    cpu_s: float

    def __str__(self) -> str:
        return f"{self.wall_s:6.2f} s, {self.cpu_s:6.2f} s of a processor"


class DaemonStart(NamedTuple):
    """From the start of a daemon."""

    serves: Took
    answers: Took
    compiled: Took | None
    """None: its kernels were there."""


def start(cache: str) -> Took:
    """To the first answer of a process."""
    began_s, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", READY], env={**os.environ, "NUMBA_CACHE_DIR": cache}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(time.perf_counter() - began_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def daemon_start(cache: str) -> DaemonStart:
    """Of a daemon that is started as its systemd unit does it: kernels in `cache`, and no home."""
    ready, log_path = Path(cache, "ready"), Path(cache, "log")
    ready.unlink(missing_ok=True)
    options = ["--listen", "127.0.0.1:0", "--tokenizer", "bytes", "--ready-file", str(ready)]
    environ = {**os.environ, "NUMBA_CACHE_DIR": cache, "HOME": "/nonexistent"}
    began_s = time.perf_counter()
    with log_path.open("wb") as log:
        command = [sys.executable, "-m", "deploy.cli", "predictor", *options]
        daemon = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    process = psutil.Process(daemon.pid)

    def took() -> Took:
        times = process.cpu_times()
        return Took(time.perf_counter() - began_s, times.user + times.system)

    def until(condition: Callable[[], bool]) -> Took:
        while not condition():
            if daemon.poll() is not None or time.perf_counter() > began_s + PATIENCE_S:
                raise SystemExit(f"the daemon does not start:\n{log_path.read_text()}")
            time.sleep(POLL_S)
        return took()

    try:
        serves = until(lambda: ready.exists() and ready.stat().st_size > 0)
        with closing(grpc.insecure_channel(msgspec.json.decode(ready.read_bytes())["address"])) as channel:
            asked = types_pb.Candidate(
                request_id="first",
                prompt_tokens=PROMPT_TOKENS,
                max_output_tokens=MAX_OUTPUT_TOKENS,
                belief=types_pb.LengthBelief(atoms_tokens=[100, 400]),
            )
            PredictStub(channel).Predict(pb.PredictRequest(candidates=[asked]), timeout=PATIENCE_S)
        answers = took()
        interprets = "interpreted until" in log_path.read_text()
        compiled = until(lambda: COMPILED in log_path.read_text()) if interprets else None
        return DaemonStart(serves, answers, compiled)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()


def interpreted_ms(config: EngineConfig, snapshots: Sequence[TraceSnapshot]) -> list[tuple[float, float]]:
    """Processor milliseconds of a daemon's first what-if from each state, and of a second one. In a process without
    compiled kernels."""
    asked = Candidate(
        request_id="c", prompt_tokens=PROMPT_TOKENS, max_output_tokens=MAX_OUTPUT_TOKENS, belief=DEFAULT_PRIOR
    )
    what_if = WhatIf("bench", config, A30_LLAMA2_7B)
    belief = truncated(DEFAULT_PRIOR, MAX_OUTPUT_TOKENS)
    found = []
    with interpreting():
        for snapshot in snapshots:
            began_s = time.process_time()
            node = SimNode.from_snapshot(
                snapshot, "bench", A30_LLAMA2_7B, output_tokens=lambda s: s.max_output_tokens, free_at_s=snapshot.at_s
            )
            what_if.rebase_node(node, dict.fromkeys(node.requests, belief), snapshot.at_s)
            what_if.forecast([asked])
            first_s = time.process_time()
            what_if.forecast([asked])
            found.append((1e3 * (first_s - began_s), 1e3 * (time.process_time() - first_s)))
    return found


def states(config: EngineConfig, running: int) -> list[TraceSnapshot]:
    """As a trace tells them, of a node with so many requests."""
    if not running:
        return [SimNode("bench", config, A30_LLAMA2_7B).snapshot(0.0)] * STATES
    return [node.snapshot(node.free_at_s) for node in busy_states(config, running, STATES, seed=0)]


def main() -> None:
    """Prints machine, command and seconds."""
    print("python -m bench.micro.cold_start")
    print(f"{platform.processor() or platform.machine()}, {platform.python_version()}")
    print("from the start of a process to its first answer")
    with tempfile.TemporaryDirectory() as cache:
        print(f"  without a compile cache      {start(cache)} (one process alone)")
        print(f"  with a compile cache         {_middle([start(cache) for _ in range(STARTS)])}")
    print("from the start of a daemon")
    with tempfile.TemporaryDirectory() as cache:
        first = daemon_start(cache)
        print(f"  without a cache, serves      {first.serves}")
        print(f"    answers                    {first.answers}")
        print(f"    has compiled kernels       {first.compiled} besides those of its children")
        later = [daemon_start(cache) for _ in range(STARTS)]
        print(f"  with a cache, serves         {_middle([one.serves for one in later])}")
        print(f"    answers                    {_middle([one.answers for one in later])}")
    print("a what-if before kernels are compiled, milliseconds of a processor: the first from a state, a second one")
    for running in RUNNING:
        seqs = max(48, running)
        config = EngineConfig(
            model="bench", max_num_seqs=seqs, max_num_batched_tokens=512, num_blocks=64 * seqs, async_scheduling=True
        )
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            found = process.submit(interpreted_ms, config, states(config, running)).result()
        first_ms, second_ms = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"  {running:4d} running                {first_ms:6.1f} {second_ms:6.1f}")


def _middle(found: Sequence[Took]) -> str:
    by_time = sorted(found)
    return f"{by_time[len(found) // 2]} (median of {len(found)}, slowest {by_time[-1].wall_s:.2f} s)"


if __name__ == "__main__":
    main()

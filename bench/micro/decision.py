"""Decision time and memory of a real cluster on this machine: emulated nodes, a gateway and an open-loop client.

    python -m bench.micro.decision --nodes 12 --rate 100 --policy min_total_latency
    python -m bench.micro.decision --nodes 12 --rate 100 --policy min_total_latency --processes 1

Decision time is what the gateway reports per request: arrival at the gateway to placement, forecasts fetched. Answers
are short (`--output-tokens`), so that it is the decisions and not the streaming that load the machine. `--processes`:
how many predictors share the nodes, as those of a host with several engines may.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from bench.client.open_loop import ReplayPlan
from bench.client.session import Finished, connected
from bench.workload.arrivals import arrivals_s
from bench.workload.item import WorkloadItem
from deploy.cli import PARENT_PID_VARIABLE
from deploy.local_cluster import NODES_UP_S, POLL_S, START_S, ClusterSpec, LocalCluster


def items(*, rate: float, seconds: float, prompt_tokens: int, output_tokens: int, seed: int) -> list[WorkloadItem]:
    """Poisson arrivals of equal requests."""
    rng = np.random.default_rng(seed)
    times = arrivals_s(rng, kind="poisson", count=int(rate * seconds), rate_per_s=rate)
    return [
        WorkloadItem(
            request_id=f"r{i}", arrival_s=float(at_s), prompt_tokens=prompt_tokens, output_tokens=output_tokens
        )
        for i, at_s in enumerate(times)
    ]


async def run(address: str, plan: ReplayPlan, policy: str) -> Finished:
    async with connected(address) as session:
        return await session.run(plan, policy=policy)


@contextlib.contextmanager
def cluster_of(
    nodes: int, processes: int, folder: Path, *, gateway: Mapping[str, Any], predictor: Mapping[str, Any]
) -> Iterator[tuple[LocalCluster, list[int]]]:
    """A cluster whose nodes are shared out among so many predictors, and their process ids."""
    spec = ClusterSpec(nodes=nodes, gateway_port=0, first_node_port=0, gateway=gateway, predictor=predictor)
    if processes == nodes:
        with LocalCluster(spec, folder) as cluster:
            yield cluster, [node.pid for node in cluster.nodes]
        return
    names = [f"node-{i}" for i in range(nodes)]
    with contextlib.ExitStack() as running:
        predictors = [
            running.enter_context(_predictor(names[i::processes], folder, predictor)) for i in range(processes)
        ]
        deadline_s = time.monotonic() + START_S
        ready = [folder / f"{name}.ready" for name in names]
        while not all(path.exists() for path in ready):
            assert time.monotonic() < deadline_s, "the nodes do not serve in time"
            time.sleep(POLL_S)
        addresses = [json.loads(path.read_bytes())["address"] for path in ready]
        own = msgspec.structs.replace(spec, nodes=0, gateway={**gateway, "node": addresses})
        cluster = running.enter_context(LocalCluster(own, folder))
        cluster.wait_nodes_up(time.monotonic() + NODES_UP_S)
        yield cluster, [process.pid for process in predictors]


@contextlib.contextmanager
def _predictor(names: Sequence[str], folder: Path, options: Mapping[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """One process with these nodes."""
    arguments = [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    for name in names:
        path = folder / f"{name}.toml"
        own = {"node_id": name, "listen": "127.0.0.1:0", "ready_file": str(folder / f"{name}.ready")}
        path.write_bytes(msgspec.toml.encode(own))
        arguments += ["--config", str(path)]
    with (folder / f"{names[0]}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "predictor", *arguments],
            stdout=log,
            stderr=log,
            env={**os.environ, PARENT_PID_VARIABLE: str(os.getpid())},
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def resident_mb(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 2**20


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Prints machine, command, offered and achieved rate, decision percentiles, CPU of each part and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=12)
    parser.add_argument("--processes", type=int, default=0, help="predictors that share the nodes; 0: one each")
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--policy", action="append", help="may be repeated")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=8)
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--sample", type=int, default=0, help="nodes drawn at random per decision; 0: all")
    parser.add_argument("--ask", type=int, default=4, help="nodes asked per decision, those that look best; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    policies = options.policy or ["least_requests", "min_total_latency"]
    given = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in vars(options).items() if k != "policy")
    print(f"python -m bench.micro.decision {given} {' '.join(f'--policy {p}' for p in policies)}")
    print(
        f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}"
    )
    work = items(
        rate=options.rate,
        seconds=options.seconds,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        seed=options.seed,
    )
    gateway_options = {"sample": options.sample, "ask": options.ask}
    predictor_options = {"profile": "a30/llama-2-7b", "time_scale": options.time_scale, "max_num_seqs": 48}
    processes = options.processes or options.nodes
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster_of(options.nodes, processes, Path(folder), gateway=gateway_options, predictor=predictor_options) as (
            cluster,
            predictors,
        ),
    ):
        gateway = cluster.gateway.pid
        for policy in policies:
            plan = ReplayPlan(items=work, run_id=policy, seed=options.seed)
            parts = {"gateway": [gateway], "nodes": predictors, "client": [os.getpid()]}
            before_s = {who: sum(map(cpu_s, pids)) for who, pids in parts.items()}
            done = asyncio.run(run(cluster.address, plan, policy))
            used = ", ".join(
                f"{who} {(sum(map(cpu_s, pids)) - before_s[who]) / len(work) * 1e6:,.0f}" for who, pids in parts.items()
            )
            s = done.summary
            assert s.decision_s is not None, "the gateway says what a decision took"
            p50, p90, p99 = (1e3 * value for value in (s.decision_s.p50, s.decision_s.p90, s.decision_s.p99))
            print(
                f"  {policy:26s} offered {s.offered_rate_per_s:6.1f}/s achieved {s.achieved_rate_per_s:6.1f}/s  "
                f"decision p50 {p50:5.2f} p90 {p90:5.2f} p99 {p99:5.2f} ms  "
                f"CPU µs/request: {used}"
            )
        nodes_mb = [resident_mb(pid) for pid in predictors]
        print(f"  resident: gateway {resident_mb(gateway):.0f} MB, predictor at most {max(nodes_mb):.0f} MB")


if __name__ == "__main__":
    main()

"""A running cluster for calls that are handed on, and what must be left of it when they are over: nothing."""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from deploy.local_cluster import Child, ClusterSpec, LocalCluster
from protos.v1 import astrolabe_dispatch_pb2 as pb
from tests.chaos.call_clients import CallClient, Ended, emulated_body, emulated_text
from tests.chaos.scripted_engines import ScriptedEngine, scripted_engines

EMULATED = 3
"""Nodes 0, 1, 2; those after them have scripted engines."""
SCRIPTED = 3
READY_S = 50.0
PROMPTS = [f"say something about {thing}" for thing in ("tides", "moss", "glass", "bells", "ropes", "salt")]
TOKENS = 120
WHOLE_OUTCOMES = frozenset({"stop", "length"})
OPTIONS: dict[str, Any] = {
    "tokenizer": "bytes",
    "max_num_seqs": 16,
    "max_num_batched_tokens": 512,
    "num_blocks": 1000,
    "max_model_len_tokens": 4096,
}


class CallCluster:
    """The processes, and the texts that the emulated model says."""

    def __init__(self, cluster: LocalCluster, engines: list[ScriptedEngine]) -> None:
        self.cluster = cluster
        self.engines = engines
        self.texts: dict[str, str] = {}
        self.sockets: dict[int, int] = {}
        """Of each process when it was at rest first, without those to its scripted engine."""


@contextmanager
def call_cluster(folder: Path) -> Iterator[CallCluster]:
    with scripted_engines(SCRIPTED) as engines:
        emulated = {"model": "emulated", "time_scale": 6.0}
        scripted = [{"engine": "openai_metrics", "engine_url": engine.url} for engine in engines]
        spec = ClusterSpec(
            nodes=EMULATED + SCRIPTED,
            gateway_port=0,
            first_node_port=0,
            predictor=OPTIONS,
            per_node=(*[emulated] * EMULATED, *scripted),
            gateway={
                "tokenizer": "bytes",
                "keepalive_s": 0.6,
                "reconnect_max_s": 0.2,
                "lame_duck_s": 0.2,
                "drain_grace_s": 2.0,
            },
        )
        with LocalCluster(spec, folder) as cluster:
            yield CallCluster(cluster, engines)


class CallStage:
    """One fault's clients on that cluster."""

    def __init__(self, made: CallCluster, stub: Any, seed: int) -> None:
        self.made = made
        self.cluster = made.cluster
        self.engines = made.engines
        self.stub = stub
        self.seed = seed
        self.rng = random.Random(seed)
        self.clients: list[CallClient] = []
        self._run = f"{time.time_ns():x}"
        self._tasks: list[asyncio.Task[None]] = []
        self._counted: dict[str, float] = {}
        self._log_start = 0

    async def begin(self) -> None:
        """The state to come back to."""
        await self.at_rest()
        for child in self.cluster.children():
            self.made.sockets.setdefault(child.pid, self.sockets_of(child))
        self._counted = await self.counts()
        self._log_start = self.cluster.gateway.log_path.stat().st_size

    def client(self, body: bytes, *, path: str = "/v1/embeddings", **headers: str) -> CallClient:
        name = f"{self._run}-{len(self.clients)}"
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        made = CallClient(name, body, path=path, headers=named)
        self.clients.append(made)
        return made

    def chat(self, prompt: str, *, stream: bool, tokens: int = TOKENS) -> CallClient:
        return self.client(emulated_body(prompt, tokens, stream=stream), path="/v1/chat/completions")

    def send(self, client: CallClient, *, grpc: bool = False) -> CallClient:
        run = client.over_grpc(self.stub) if grpc else client.over_http(self.cluster.gateway.http_address)
        self._tasks.append(asyncio.create_task(run))
        return client

    async def ended(self) -> None:
        await asyncio.gather(*self._tasks)

    async def learn_texts(self) -> None:
        """What the emulated model says to each prompt, from a cluster that is well."""
        for prompt in PROMPTS:
            if prompt not in self.made.texts:
                client = self.send(self.chat(prompt, stream=False))
                await self.ended()
                assert client.ended.status == 200, client.ended.body[:300]
                self.made.texts[prompt] = emulated_text(client.ended.body, stream=False)[0]

    def chat_complaint(self, client: CallClient, prompt: str, *, stream: bool, must_be_whole: bool) -> str:
        """What is wrong with what a chat's client got; empty: nothing."""
        ended: Ended = client.ended
        if ended.left:
            return ""
        if ended.status != 200:
            return f"{client.name}: status {ended.status} {ended.code} {ended.body[:200]!r}"
        if not ended.is_whole:
            return f"{client.name}: broken after {len(ended.body)} bytes {ended.code}" if must_be_whole else ""
        text, complete, failed = emulated_text(ended.body, stream=stream)
        expected = self.made.texts[prompt]
        if complete == failed:
            return f"{client.name}: complete {complete}, failed {failed}"
        if failed and must_be_whole:
            return f"{client.name} failed: {ended.body[-300:]!r}"
        if text != expected[: len(text)] or (complete and text != expected):
            return f"{client.name}: {text!r} is not of {expected!r}"
        return ""

    # --- processes ----------------------------------------------------------------------------------------------------

    @property
    def emulated(self) -> list[Child]:
        return self.cluster.nodes[:EMULATED]

    @property
    def scripted(self) -> list[Child]:
        return self.cluster.nodes[EMULATED:]

    async def again(self, child: Child) -> None:
        """Starts one that has died."""
        child.start()
        await asyncio.to_thread(child.wait_ready, time.monotonic() + READY_S)

    def sockets_of(self, child: Child) -> int:
        """Open ones but those to a scripted engine, which counts them itself."""
        here = sockets(child.pid)
        if child in self.scripted:
            here -= self.engines[self.scripted.index(child)].open
        return here

    # --- what must hold afterwards ------------------------------------------------------------------------------------

    async def nodes(self) -> list[pb.NodeInfo]:
        return list((await self.stub.ListNodes(pb.ListNodesRequest(), timeout=5.0, wait_for_ready=True)).nodes)

    async def counts(self) -> dict[str, float]:
        """The gateway's metrics, summed over what is not a lane."""
        url = f"http://{self.cluster.gateway.http_address}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                lane = sample.labels.get("lane", "")
                name = f"{sample.name}:{lane}" if lane else sample.name
                found[name] = found.get(name, 0.0) + sample.value
        return found

    async def left_over(self) -> str:
        """What is not at rest; empty: nothing."""
        nodes = await self.nodes()
        if len(nodes) != EMULATED + SCRIPTED or any(node.status != "up" for node in nodes):
            return f"nodes {[(node.node_id, node.status, node.detail) for node in nodes]}"
        for node in nodes:
            load = node.load
            if node.in_flight or load.running or load.waiting or load.free_blocks != load.total_blocks:
                return f"{node.node_id} holds {node.in_flight} in flight, {load}"
        counts = await self.counts()
        for gauge in ("requests_running", "requests_held", "held_tokens"):
            if counts[f"astrolabe_{gauge}"]:
                return f"{gauge} = {counts[f'astrolabe_{gauge}']}"
        for engine in self.engines:
            if engine.running:
                return f"scripted engine {engine.index} still answers {engine.running} calls"
        for child in self.cluster.children():
            baseline = self.made.sockets.get(child.pid)
            if baseline is not None and (now := self.sockets_of(child)) > baseline:
                return f"{child.name} has {now} sockets open, {baseline} before"
        return ""

    async def at_rest(self, within_s: float = 20.0) -> None:
        end_s = time.monotonic() + within_s
        while left := await self.left_over():
            assert time.monotonic() < end_s, f"not within {within_s:g} s at rest: {left}"
            await asyncio.sleep(0.05)

    async def check(self, *, same_gateway: bool = True) -> None:
        """Every request has one end, sums agree, nothing is left, nobody met a defect."""
        await self.ended()
        await self.at_rest()
        ends: Counter[str] = Counter()
        outcomes: dict[str, str] = {}
        lanes: Counter[str] = Counter()
        for line in self._new_log_lines():
            assert line.get("level") not in ("error", "critical"), line
            if line["event"] == "request finished":
                ends[line["request_id"]] += 1
                outcomes[line["request_id"]] = line["outcome"]
                lanes[line.get("lane", "tokens")] += 1
        twice = [name for name, count in ends.items() if count > 1]
        assert not twice, f"ended more than once: {twice}"
        assert set(ends) <= {client.name for client in self.clients}
        for client in self.clients:
            if client.ended.status == 200 and client.ended.is_whole and b'"error"' not in client.ended.body[-500:]:
                assert outcomes.get(client.name) in WHOLE_OUTCOMES, (client.name, outcomes.get(client.name))
        if same_gateway:
            counts = await self.counts()
            for lane in ("tokens", "pass_through"):
                name = f"astrolabe_lane_requests_total:{lane}"
                counted = counts.get(name, 0.0) - self._counted.get(name, 0.0)
                assert counted == lanes[lane], f"{counted} requests of lane {lane} counted, {lanes[lane]} in the log"
            total = counts["astrolabe_requests_total"] - self._counted.get("astrolabe_requests_total", 0.0)
            denied = counts.get("astrolabe_denials_total", 0.0) - self._counted.get("astrolabe_denials_total", 0.0)
            assert total == ends.total()
            stayed = [client for client in self.clients if not client.ended.left]
            assert len(stayed) <= total + denied <= len(self.clients), (len(stayed), total, denied, len(self.clients))
        self._check_nodes_logs()

    def _new_log_lines(self) -> Iterator[dict[str, Any]]:
        with self.cluster.gateway.log_path.open("rb") as log:
            log.seek(self._log_start)
            for line in log:
                assert line.startswith(b"{"), f"the gateway says: {line.decode()}"
                yield json.loads(line)

    def _check_nodes_logs(self) -> None:
        for node in self.cluster.nodes:
            ends: Counter[str] = Counter()
            for line in node.log_path.read_bytes().splitlines():
                assert line.startswith(b"{"), f"{node.name} says: {line.decode()}"
                said = json.loads(line)
                assert said.get("level") not in ("error", "critical"), (node.name, said)
                if said["event"] == "request finished":
                    ends[said["request_id"]] += 1
            twice = [name for name, count in ends.items() if count > 1]
            assert not twice, f"{node.name} ended more than once: {twice}"


def sockets(pid: int) -> int:
    """Open sockets of a process."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += str(entry.readlink()).startswith("socket:")
        except OSError:
            # Closed while we looked.
            continue
    return count


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096

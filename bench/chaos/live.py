"""The same faults on real processes: emulated nodes and a gateway, real signals, real clients.

An emulated engine's answer is a function of its prompt, so every client knows every token that it must get: what a
fault loses, doubles or swaps is seen at once.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec

from deploy.local_cluster import Child, ClusterSpec, LocalCluster
from engine_adapters.emulated_answer import Answer
from engine_adapters.tokenizer import tokenizer_info
from protos.runtime.channels import open_channel
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub

NODES = 3
KEEPALIVE_S = 0.6
"""So a node's session is cut off after 1.5 s of silence."""
SETTLE_S = 20.0
"""What a cluster gets to come to rest after a fault."""
READY_S = 50.0
POLL_S = 0.02
WHOLE = frozenset({"OK"})
LOST = frozenset({"UNAVAILABLE", "INTERNAL"})
SLOW = frozenset({"RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED"})


class LiveVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one fault did to real processes; `broken` is empty if all is well."""

    fault: str
    seed: int
    broken: tuple[str, ...]
    outcomes: dict[str, int]
    resumed: int


def spec() -> ClusterSpec:
    """A small cluster in a hurry."""
    engine = {"max_num_seqs": 16, "max_num_batched_tokens": 512, "num_blocks": 1000, "max_model_len_tokens": 4096}
    return ClusterSpec(
        nodes=NODES,
        gateway_port=0,
        first_node_port=0,
        predictor={"tokenizer": "bytes", "time_scale": 6.0, **engine},
        gateway={
            "tokenizer": "bytes",
            "keepalive_s": KEEPALIVE_S,
            "reconnect_max_s": 0.2,
            "max_buffered_tokens": 2000,
            "drain_grace_s": 1.0,
        },
    )


class Client:
    """One request and all that came of it."""

    def __init__(self, name: str, prompt: list[int], tokens: int, **fields: Any) -> None:
        self.name = name
        self.tokens: list[int] = []
        self.code = ""
        self.detail = ""
        self.usage: types_pb.Usage | None = None
        self.asked_tokens = tokens
        self.prompt = prompt
        self.request = pb.GenerateRequest(
            request_id=name,
            token_ids=pb.TokenIds(ids=prompt),
            sampling=types_pb.SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True),
            **fields,
        )

    async def run(self, stub: Any, *, leave_after_s: float | None = None, sleeps_s: float = 0.0) -> None:
        """Until its end. `leave_after_s`: it leaves then. `sleeps_s`: it begins to read only then."""
        call = stub.Generate(self.request, timeout=60.0)
        try:
            async with asyncio.timeout(leave_after_s):
                await asyncio.sleep(sleeps_s)
                async for chunk in call:
                    self.tokens.extend(chunk.token_ids)
                    if chunk.HasField("usage"):
                        self.usage = chunk.usage
                self.code = "OK"
        except TimeoutError:
            call.cancel()
            self.code = "LEFT"
        except grpc.aio.AioRpcError as error:
            self.code, self.detail = error.code().name, error.details() or ""

    def broken(self, allowed: frozenset[str]) -> str:
        """What is wrong with what it got; empty if nothing."""
        answer = Answer(self.prompt, _text_ids())
        expected = [answer.next_token() for _ in range(len(self.tokens))]
        if self.tokens != expected:
            at = next(i for i, (a, b) in enumerate(zip(self.tokens, expected, strict=True)) if a != b)
            return f"{self.name}: token {at} of {len(self.tokens)} is not what the model says"
        if self.code not in allowed:
            return f"{self.name} ended with {self.code} ({self.detail}) after {len(self.tokens)} tokens"
        if self.code != "OK":
            return ""
        if len(self.tokens) != self.asked_tokens:
            return f"{self.name} got {len(self.tokens)} tokens of {self.asked_tokens}"
        usage = self.usage
        if usage is None or (usage.prompt_tokens, usage.output_tokens) != (len(self.prompt), self.asked_tokens):
            return f"{self.name}: usage is {usage}, not {len(self.prompt)} and {self.asked_tokens}"
        return ""


class Stage:
    """A running cluster, its clients and what a fault may do to them."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        self.cluster = cluster
        self.rng = random.Random(seed)
        self.clients: list[tuple[Client, frozenset[str]]] = []
        self.stub: Any = None
        self._seed = seed
        self._tasks: list[asyncio.Task[None]] = []
        self._names = 0

    def send(self, allowed: frozenset[str] = WHOLE, *, tokens: int = 0, **how: Any) -> Client:
        """A client begins; `allowed` are the status codes with which its call may end."""
        self._names += 1
        prompt = [self.rng.randrange(97, 123) for _ in range(self.rng.randrange(1, 80))]
        fields = how.pop("fields", {})
        client = Client(f"c{self._seed}-{self._names}", prompt, tokens or self.rng.randrange(1, 250), **fields)
        self.clients.append((client, allowed))
        self._tasks.append(asyncio.create_task(client.run(self.stub, **how)))
        return client

    async def load(self, count: int, rate_per_s: float, allowed: frozenset[str] = WHOLE, **how: Any) -> None:
        for _ in range(count):
            self.send(allowed, **how)
            await asyncio.sleep(self.rng.expovariate(rate_per_s))

    async def ended(self) -> None:
        await asyncio.gather(*self._tasks)

    async def nodes(self) -> dict[str, pb.NodeInfo]:
        return {n.node_id: n for n in (await self.stub.ListNodes(pb.ListNodesRequest(), timeout=5.0)).nodes}

    async def until(self, what: str, condition: Callable[[], Awaitable[bool]], within_s: float = SETTLE_S) -> str:
        """Waits; the complaint if it does not come true."""
        end_s = time.monotonic() + within_s
        while time.monotonic() < end_s:
            try:
                if await condition():
                    return ""
            except grpc.aio.AioRpcError:
                pass
            await asyncio.sleep(POLL_S)
        return f"not within {within_s:g} s: {what}"

    async def is_whole(self) -> bool:
        nodes = await self.nodes()
        return len(nodes) == len(self.cluster.nodes) and all(n.status == "up" for n in nodes.values())

    async def is_at_rest(self) -> bool:
        return all(
            n.in_flight == 0
            and n.HasField("load")
            and n.load.running + n.load.waiting == 0
            and n.load.free_blocks == n.load.total_blocks
            for n in (await self.nodes()).values()
        )

    async def begin_again(self, child: Child) -> None:
        child.start()
        await asyncio.to_thread(child.wait_ready, time.monotonic() + READY_S)


async def node_killed(stage: Stage) -> None:
    """SIGKILL at a random moment, then it is started again; nobody may notice."""
    load = asyncio.create_task(stage.load(60, 30.0))
    await asyncio.sleep(stage.rng.uniform(0.2, 1.5))
    victim = stage.rng.choice(stage.cluster.nodes)
    victim.kill()
    await asyncio.sleep(stage.rng.uniform(0.0, 0.5))
    await stage.begin_again(victim)
    await load


async def node_hangs(stage: Stage) -> None:
    """SIGSTOP: the connection lives, the node does not. After the cut-off its answers go on elsewhere."""
    load = asyncio.create_task(stage.load(60, 30.0))
    await asyncio.sleep(stage.rng.uniform(0.2, 1.0))
    victim = stage.rng.choice(stage.cluster.nodes)
    victim.signal(signal.SIGSTOP)
    await load
    await asyncio.sleep(2.5 * KEEPALIVE_S + 0.5)
    victim.signal(signal.SIGCONT)


async def all_nodes_gone(stage: Stage) -> None:
    """All are killed and started again; what comes then is served."""
    await stage.load(30, 30.0, WHOLE | LOST)
    for node in stage.cluster.nodes:
        node.kill()
    await stage.load(5, 30.0, LOST)
    await asyncio.gather(*(stage.begin_again(node) for node in stage.cluster.nodes))
    complaint = await stage.until("all nodes up", stage.is_whole)
    assert not complaint, complaint
    await stage.load(20, 30.0)


async def gateway_killed(stage: Stage) -> None:
    """Its clients' streams break; the next one places by forecasts as soon as it serves."""
    await stage.load(20, 30.0, WHOLE | LOST)
    stage.cluster.gateway.kill()
    await stage.begin_again(stage.cluster.gateway)
    began_s = time.monotonic()
    complaint = await stage.until("all nodes up", stage.is_whole, 5.0)
    assert not complaint, complaint
    took_s = time.monotonic() - began_s
    assert took_s < 2.0, f"the new gateway needed {took_s:.1f} s to know its nodes"
    await stage.load(20, 30.0)


async def clients_leave(stage: Stage) -> None:
    """Hundreds of clients leave, each at a moment of its own."""
    for _ in range(stage.rng.randrange(200, 300)):
        stage.send(frozenset({"OK", "LEFT"}), leave_after_s=stage.rng.uniform(0.0, 3.0))
        await asyncio.sleep(stage.rng.expovariate(200.0))


async def thousand_clients_leave(stage: Stage) -> None:
    """A thousand do."""
    for _ in range(1000):
        stage.send(frozenset({"OK", "LEFT", "RESOURCE_EXHAUSTED"}), leave_after_s=stage.rng.uniform(0.0, 4.0))
        await asyncio.sleep(stage.rng.expovariate(250.0))


async def slow_client(stage: Stage) -> None:
    """Some do not read for a long time: they are told off, the others notice nothing."""
    for _ in range(3):
        stage.send(WHOLE | SLOW, tokens=3500, sleeps_s=6.0)
    await stage.load(40, 30.0)


async def malformed_requests(stage: Stage) -> None:
    """Bad requests between good ones, while a node is killed."""
    load = asyncio.create_task(node_killed(stage))
    for _ in range(30):
        fields = stage.rng.choice(
            [
                {"policy": "no_such_policy"},
                {"model": "no-such-model"},
                {"slo": pb.Slo(deadline_s=float("nan"))},
                {"resume": 99},
                {"belief": types_pb.LengthBelief(atoms_tokens=[5, 3])},
            ]
        )
        stage.send(frozenset({"INVALID_ARGUMENT", "NOT_FOUND"}), fields=fields)
        await asyncio.sleep(stage.rng.expovariate(20.0))
    await load


LIVE_FAULTS: dict[str, Callable[[Stage], Awaitable[None]]] = {
    fault.__name__: fault
    for fault in (
        node_killed,
        node_hangs,
        all_nodes_gone,
        gateway_killed,
        clients_leave,
        thousand_clients_leave,
        slow_client,
        malformed_requests,
    )
}


async def run(fault: str, seed: int, cluster: LocalCluster) -> LiveVerdict:
    """One fault on a cluster that is whole, which is whole again and at rest afterwards, or the verdict says so."""
    stage = Stage(cluster, seed)
    broken: list[str] = []
    resumed = 0
    async with open_channel(cluster.address) as channel:
        stage.stub = DispatchStub(channel)
        try:
            await LIVE_FAULTS[fault](stage)
        except AssertionError as failed:
            broken.append(str(failed))
        await stage.ended()
        broken += [b for client, allowed in stage.clients if (b := client.broken(allowed))]
        for what, condition in (("all nodes up", stage.is_whole), ("every counter back at rest", stage.is_at_rest)):
            broken += filter(None, [await stage.until(what, condition)])
        for client, _ in stage.clients:
            resumed += await _attempts(stage.stub, client) > 1
    outcomes = Counter(client.code for client, _ in stage.clients)
    return LiveVerdict(fault=fault, seed=seed, broken=tuple(broken), outcomes=dict(outcomes), resumed=resumed)


def start(folder: Path) -> LocalCluster:
    """A cluster for live faults. Raises ClusterError."""
    cluster = LocalCluster(spec(), folder)
    cluster.start()
    return cluster


async def _attempts(stub: Any, client: Client) -> int:
    try:
        return len((await stub.Explain(pb.ExplainRequest(request_id=client.name), timeout=5.0)).decisions)
    except grpc.aio.AioRpcError:
        return 0


def _text_ids() -> range:
    return tokenizer_info("bytes").text_ids

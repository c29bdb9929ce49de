"""A gateway that starts and stops nodes: real processes, real load, and what goes wrong with both."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import grpc.aio
import msgspec
import pytest

from deploy.local_cluster import Child
from gateway.config import GatewayConfig, load
from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.recording import replay
from gateway.core.scale.rule import Deaf, Wish
from gateway.core.scale.rules import registry
from gateway.core.scale.scaler import ScaleDecision
from gateway.main import Gateway
from gateway.scale.connectors.local import LocalConnector
from gateway.scale.status import GroupStatus
from protos.runtime.options import tables
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from simcore.types import Outcome
from tests.e2e.in_process import FAST, dispatched, part, until
from tests.e2e.scripted_node import ScriptedNode

pytestmark = pytest.mark.e2e

STARTED_S = 60.0
"""What a node with an emulated engine gets to be up on a busy machine."""
SMALL: dict[str, Any] = {
    "max_num_seqs": 16, "max_num_batched_tokens": 512, "num_blocks": 600, "max_model_len_tokens": 2048,
}  # fmt: skip
GROUP: dict[str, Any] = {"name": "g", "profile": "a30/llama-2-7b", "min": 1, "max": 3, "cold_start_s": 20.0, **SMALL}


class _Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    target: float = 3.0
    calm_ticks: int = 4


class ByOutstanding(Deaf):
    """As many nodes as keep `target` requests each; fewer once that has been enough for some ticks."""

    name: ClassVar[str] = "by_outstanding"
    source: ClassVar[str] = "these tests"
    options_type: ClassVar[type[msgspec.Struct]] = _Options

    def __init__(self, config: ScaleConfig, options: _Options, rng: random.Random) -> None:
        self._options = options
        self._calm = 0

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        group = fleet.groups[0]
        outstanding = fleet.held + sum(node.outstanding for node in fleet.serving)
        wanted = math.ceil(outstanding / self._options.target)
        self._calm = self._calm + 1 if wanted < group.count else 0
        if 0 < self._calm < self._options.calm_ticks:
            wanted = group.count
        seen = {"outstanding_requests": float(outstanding)}
        return Wish(wanted={group.group.name: wanted}, seen=seen, why=f"{outstanding} requests")


class Failing(ByOutstanding):
    """Has a mistake in it."""

    name: ClassVar[str] = "failing"

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        raise ZeroDivisionError("one over none")


@pytest.fixture(autouse=True)
def _rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    monkeypatch.setattr(registry, "_origins", dict(registry._origins))
    for rule in (ByOutstanding, Failing):
        registry.register_rule(rule, origin=__file__)


@contextlib.asynccontextmanager
async def scaled(scaling: Mapping[str, Any], **options: Any) -> AsyncIterator[tuple[Gateway, Any]]:
    """A gateway in this process that scales, and a client of it."""
    values = tables(GatewayConfig, {**FAST, **options})
    gateway = Gateway(
        load(None, {**values, "scaling": {"rule": "by_outstanding", "tick_s": 0.5, "lease_s": 0.0, **scaling}})
    )
    await gateway.start()
    try:
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            yield gateway, DispatchStub(channel)
        await until(lambda: not gateway.pump.streams)
        gateway.pump.router.check_quiescent()
    finally:
        await gateway.stop()


def local(folder: Path, **group: Any) -> dict[str, Any]:
    return {
        "connector": "local",
        "local": {"folder": str(folder), "options": {"tokenizer": "bytes", "time_scale": 5.0}},
        "group": [{**GROUP, **group}],
    }


def group_of(gateway: Gateway) -> GroupStatus | None:
    assert gateway.scaling is not None
    status = gateway.scaling.status
    return status.groups[0] if status is not None and status.groups else None


def count(gateway: Gateway, state: str) -> int:
    group = group_of(gateway)
    return -1 if group is None else group.count(state)


def decisions(gateway: Gateway) -> list[ScaleDecision]:
    assert gateway.scaling is not None
    return list(gateway.scaling.scaler.decisions)


def kinds(gateway: Gateway) -> list[str]:
    return [f"{type(action).__name__} {action.node_id}" for d in decisions(gateway) for action in d.actions]


async def answer(stub: Any, tokens: int) -> list[pb.GenerateChunk]:
    sampling = types_pb.SamplingParams(max_tokens=tokens, ignore_eos=True)
    return [chunk async for chunk in stub.Generate(pb.GenerateRequest(text="hello", sampling=sampling))]


def is_whole(chunks: list[pb.GenerateChunk], tokens: int) -> bool:
    """Whether the answer came to its end at its limit."""
    return chunks[-1].outcome == types_pb.OUTCOME_LENGTH and sum(len(chunk.token_ids) for chunk in chunks) == tokens


async def test_a_load_step_up_and_down_loses_nobody(tmp_path: Path) -> None:
    tokens = 150
    record = tmp_path / "decisions"
    async with scaled(local(tmp_path / "nodes"), record=str(record)) as (gateway, stub):
        await until(lambda: count(gateway, "serving") == 1, STARTED_S)
        asked: list[asyncio.Task[list[pb.GenerateChunk]]] = []

        async def load_for(rate_per_s: float, is_over: Callable[[], bool]) -> None:
            while not is_over():
                asked.append(asyncio.create_task(answer(stub, tokens)))
                await asyncio.sleep(1 / rate_per_s)

        async with asyncio.timeout(110):
            begun = len(asked)
            await load_for(2.0, lambda: len(asked) - begun >= 6)
            await load_for(10.0, lambda: count(gateway, "serving") >= 2)
            most = count(gateway, "serving")
            await load_for(2.0, lambda: count(gateway, "serving") == 1 and count(gateway, "draining") == 0)
            answers = await asyncio.gather(*asked)
        assert most >= 2
        assert all(is_whole(chunks, tokens) for chunks in answers)
        # The first tick that saw more than one node's share asked for the second node.
        crossed = next(d for d in decisions(gateway) if d.seen["outstanding_requests"] > 3.0)
        assert any(action.node_id == "g-1" for action in crossed.actions)
        assert any(kind.startswith("RetireNode") for kind in kinds(gateway))
    assert await LocalConnector(gateway.config.scaling).list_nodes() == []
    recorded = record.with_name("decisions.scaling").read_bytes().splitlines(keepends=True)
    assert len(recorded) > len(asked)
    assert replay(recorded) == []


async def test_scaled_to_zero_the_first_request_waits_and_is_told_how_long(tmp_path: Path) -> None:
    async with scaled(local(tmp_path / "nodes", min=0, max=1)) as (gateway, stub):
        await until(lambda: group_of(gateway) is not None)
        for _ in range(2):
            assert count(gateway, "serving") == 0
            call = stub.Generate(
                pb.GenerateRequest(text="hello", sampling=types_pb.SamplingParams(max_tokens=5, ignore_eos=True))
            )
            told = dict(await call.initial_metadata())
            assert float(told["x-astrolabe-wait-s"]) > 0
            assert is_whole([chunk async for chunk in call], 5)
            await until(lambda: count(gateway, "serving") == 0 and not gateway.nodes.links, STARTED_S)
        assert kinds(gateway) == 2 * ["StartNode g-0", "RetireNode g-0", "StopNode g-0"]


async def test_a_node_killed_while_it_starts_is_replaced_and_never_there_twice(tmp_path: Path) -> None:
    folder = tmp_path / "nodes"
    async with scaled({**local(folder, max=1), "rule": "static"}) as (gateway, stub):
        pid = folder / "g-0.pid"
        await until(lambda: pid.exists() and bool(pid.read_text().strip()) and count(gateway, "starting") == 1, 30.0)
        first = int(pid.read_text())
        os.kill(first, signal.SIGKILL)
        await until(lambda: len([k for k in kinds(gateway) if k == "StartNode g-0"]) == 2, 40.0)
        await until(lambda: count(gateway, "serving") == 1, STARTED_S)
        assert int(pid.read_text()) != first
        assert len(await LocalConnector(gateway.config.scaling).list_nodes()) == 1
        assert is_whole(await answer(stub, 5), 5)


async def test_a_rule_with_a_mistake_stops_nothing_but_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with scaled({**local(tmp_path / "nodes", max=1), "rule": "failing"}) as (gateway, stub):
        await until(lambda: count(gateway, "serving") == 1, STARTED_S)
        assert is_whole(await answer(stub, 5), 5)
        assert gateway.scaling is not None
        assert gateway.scaling.defects > 1
        said = await stub.ExplainScaling(pb.ExplainScalingRequest())
        assert "ZeroDivisionError: one over none" in said.latest.why
    assert capfd.readouterr().err.count("the scaling rule has failed") < 10


def two_nodes(folder: Path, *, lease_s: int) -> str:
    """The configuration of a gateway that keeps two nodes on this machine, alone (0) or beside others."""
    return f"""
        tokenizer = "bytes"
        http_listen = ""
        [scaling]
        rule = "static"
        connector = "local"
        tick_s = 0.5
        lease_s = {lease_s}
        [scaling.local]
        folder = "{folder}"
        options = {{tokenizer = "bytes"}}
        [[scaling.group]]
        name = "g"
        profile = "a30/llama-2-7b"
        max = 2
        """


def test_a_gateway_that_was_killed_finds_its_nodes_again(tmp_path: Path) -> None:
    folder = tmp_path / "nodes"
    config = tmp_path / "gateway.toml"
    config.write_text(two_nodes(folder, lease_s=0))
    gateway = Child("gateway", "gateway", {"config": config, "listen": "127.0.0.1:0"}, tmp_path)

    def states() -> dict[str, str]:
        with grpc.insecure_channel(gateway.address) as channel:
            try:
                said = DispatchStub(channel).ExplainScaling(pb.ExplainScalingRequest(), timeout=5.0)
            except grpc.RpcError:
                return {}
        return {node.node_id: node.state for group in said.groups for node in group.nodes}

    def pids() -> list[str]:
        return [(folder / f"g-{number}.pid").read_text() for number in range(2)]

    def wait(condition: Callable[[], bool]) -> None:
        asyncio.run(until_thread(condition))

    async def until_thread(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(STARTED_S):
            while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)

    gateway.start()
    try:
        gateway.wait_ready(time.monotonic() + STARTED_S)
        wait(lambda: states() == {"g-0": "serving", "g-1": "serving"})
        before = pids()
        gateway.kill()
        gateway.start()
        gateway.wait_ready(time.monotonic() + STARTED_S)
        wait(lambda: states() == {"g-0": "serving", "g-1": "serving"})
        assert pids() == before
        assert '"scaling decision"' not in gateway.log_path.read_text().rpartition("gateway is listening")[2]
    finally:
        gateway.signal(signal.SIGTERM)
        gateway.wait(30.0)
    # Told to stop, it takes with it what cannot live without it.
    assert list(folder.glob("*.lock")) == []


async def test_of_two_gateways_one_leads_and_the_other_follows_when_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "nodes"
    config = tmp_path / "gateway.toml"
    config.write_text(two_nodes(folder, lease_s=2))
    options = {"config": config, "listen": "127.0.0.1:0"}
    gateways = [Child(name, "gateway", {**options, "gateway_id": name}, tmp_path) for name in ("one", "two")]

    async def said(gateway: Child) -> pb.ScalingExplanation:
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            try:
                answer: pb.ScalingExplanation = await DispatchStub(channel).ExplainScaling(
                    pb.ExplainScalingRequest(), timeout=5.0
                )
            except grpc.aio.AioRpcError:
                return pb.ScalingExplanation()
            return answer

    def states(explained: pb.ScalingExplanation) -> dict[str, str]:
        return {node.node_id: node.state for group in explained.groups for node in group.nodes}

    async def settled(among: list[Child]) -> Child:
        """The one that leads, once there is exactly one and all see both nodes serve."""
        async with asyncio.timeout(STARTED_S):
            while True:
                explained = [await said(gateway) for gateway in among]
                leaders = [gateway for gateway, one in zip(among, explained, strict=True) if one.leads]
                if len(leaders) == 1 and all(list(states(one).values()) == ["serving"] * 2 for one in explained):
                    return leaders[0]
                await asyncio.sleep(0.2)

    left = []
    try:
        for gateway in gateways:
            gateway.start()
        for gateway in gateways:
            await asyncio.to_thread(gateway.wait_ready, time.monotonic() + STARTED_S)
        leader = await settled(gateways)
        pids = [(folder / f"g-{number}.pid").read_text() for number in range(2)]
        await asyncio.to_thread(leader.kill)
        (other,) = [gateway for gateway in gateways if gateway is not leader]
        assert await settled([other]) is other
        os.kill(int(pids[0]), signal.SIGKILL)
        # Who follows replaces what is lost, and nothing else.
        async with asyncio.timeout(STARTED_S):
            while states(await said(other)) == {"g-0": "serving", "g-1": "serving"}:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        await settled([other])
        assert (folder / "g-1.pid").read_text() == pids[1]
    finally:
        for gateway in gateways:
            gateway.signal(signal.SIGTERM)
            await asyncio.to_thread(gateway.wait, 30.0)
        # What several may use, none takes with it.
        shared = LocalConnector(load(config).scaling)
        left = await shared.list_nodes()
        await shared.close(ends=True)
    # The new one by another name, as long as nodes have not forgotten that the dead gateway had that one.
    assert len(left) == 2
    assert "g-1" in {node.node_id for node in left}


PROGRAM = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
order = json.load(sys.stdin)
if (folder / "hangs").exists():
    time.sleep(60)
with (folder / "orders").open("a") as orders:
    orders.write(f"{order['do']} {order.get('node', '')}\\n")
if order["do"] == "list":
    print((folder / "nodes").read_text())
elif order["do"] == "stop":
    (folder / "nodes").write_text('{"nodes": []}')
"""


def program(tmp_path: Path, *nodes: Mapping[str, str]) -> dict[str, Any]:
    """A command connector whose program lists these until one is stopped."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "nodes").write_text(json.dumps({"nodes": nodes}))
    (tmp_path / "orders").write_text("")
    return {
        "connector": "command",
        "command": {"run": [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]},
        "call_tries": 1,
    }


def orders(tmp_path: Path) -> set[str]:
    return set((tmp_path / "orders").read_text().splitlines()) - {"list "}


async def test_a_node_that_serves_another_model_gets_no_request_and_is_stopped(
    tmp_path: Path, node: ScriptedNode
) -> None:
    node.node_id = "g-0"
    assert node.welcome is not None
    node.welcome.welcome.node_id = node.welcome.load.load.node_id = "g-0"
    listed = {"node": "g-0", "group": "g", "address": node.address}
    scaling = {**program(tmp_path, listed), "group": [{"name": "g", "model": "wanted", "max": 1}]}
    async with scaled(scaling) as (gateway, _):
        await until(lambda: "stop g-0" in orders(tmp_path))
        said = [d for d in decisions(gateway) if d.actions]
        assert said
        await until(lambda: not gateway.nodes.links)


async def test_a_connector_that_hangs_holds_up_no_request(tmp_path: Path, node: ScriptedNode) -> None:
    scaling = {**program(tmp_path), "group": [{"name": "g", "model": "m", "max": 2}], "call_limit_s": 1.0}
    (tmp_path / "hangs").touch()
    async with scaled(scaling, nodes=[node.address]) as (gateway, stub):
        await until(lambda: gateway.nodes.any_up)
        asking = asyncio.create_task(
            anext_whole(stub.Generate(pb.GenerateRequest(text="x", sampling=types_pb.SamplingParams(max_tokens=2))))
        )
        node.say(part((await dispatched(node)).request.request_id, b"ab", Outcome.LENGTH))
        assert await asking == 2
        await until(lambda: gateway.scaling is not None and gateway.scaling.failures["list", ""] > 0)
        await until(lambda: gateway.scaling is not None and gateway.scaling.status is not None)
        said = await stub.ExplainScaling(pb.ExplainScalingRequest())
        assert said.problem
        assert orders(tmp_path) == set()
        (tmp_path / "hangs").unlink()
        await until(lambda: "start g-0" in orders(tmp_path), 20.0)


async def anext_whole(call: Any) -> int:
    return sum([len(chunk.token_ids) async for chunk in call])


async def test_advice_is_said_and_not_done(tmp_path: Path, node: ScriptedNode) -> None:
    node.node_id = "g-0"
    assert node.welcome is not None
    node.welcome.welcome.node_id = node.welcome.load.load.node_id = "g-0"
    scaling = {"rule": "static", "group": [{"name": "g", "model": "m", "max": 3}]}
    async with scaled(scaling, nodes=[node.address]) as (gateway, stub):
        await until(lambda: count(gateway, "serving") == 1)
        said = await stub.ExplainScaling(pb.ExplainScalingRequest())
        assert (said.executes, said.groups[0].wanted, said.latest.held_back) == (False, 3, "advice only")
        page = gateway._metrics_page()[1]
        assert 'astrolabe_desired_nodes{group="g"} 3.0' in page.decode()
        for words in (["scale"], ["explain", "--scaling"], ["explain", "--scaling", "--json"]):
            command = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "deploy.cli", *words, "--gateway", gateway.address,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, err = await command.communicate()
            assert command.returncode == 0, err
            text = out.decode()
            if "--json" in words:
                assert json.loads(text)["groups"][0]["wanted"] == 3
            else:
                assert "advice only" in text
                assert "a fixed number of nodes" in text


async def test_a_gateway_without_scaling_says_so() -> None:
    async with scaled({"rule": ""}) as (_, stub):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ExplainScaling(pb.ExplainScalingRequest())
        assert "this gateway scales nothing" in str(refused.value.details())

"""Two gateways scale the same nodes: who does not lead waits, wakes and counts like the one who does."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import grpc.aio
import msgspec
import pytest

from gateway.config import GatewayConfig, load
from gateway.core.scale import events as ev
from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import Deaf, Wish
from gateway.core.scale.rules import registry
from gateway.main import Gateway
from protos.runtime.options import tables
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from tests.e2e.in_process import FAST, until

pytestmark = pytest.mark.e2e

STARTED_S = 60.0
"""What a node with an emulated engine gets to be up on a busy machine."""
LEASE_S = 1.5


class Counts(Deaf):
    """Wants each group's minimum and counts what it hears."""

    name: ClassVar[str] = "counts"
    source: ClassVar[str] = "these tests"
    options_type: ClassVar[type[msgspec.Struct]] = msgspec.Struct

    def __init__(self, config: ScaleConfig, options: Any, rng: random.Random) -> None:
        self._minimum = {group.name: group.min for group in config.groups}
        self.heard: list[ev.AnyScaleEvent] = []

    def came(self, event: ev.RequestCame, now_s: float) -> None:
        self.heard.append(event)

    def placed(self, event: ev.RequestPlaced, now_s: float) -> None:
        self.heard.append(event)

    def done(self, event: ev.RequestDone, now_s: float) -> None:
        self.heard.append(event)

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        return Wish(wanted=dict(self._minimum))


@pytest.fixture(autouse=True)
def _rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    monkeypatch.setattr(registry, "_origins", dict(registry._origins))
    registry.register_rule(Counts, origin=__file__)


@contextlib.asynccontextmanager
async def two_gateways(folder: Path, **least: int) -> AsyncIterator[tuple[list[Gateway], list[Any]]]:
    """With a group of the model of each name."""
    scaling = {
        "rule": "counts",
        "tick_s": 0.5,
        "lease_s": LEASE_S,
        "connector": "local",
        "local": {"folder": str(folder), "options": {"tokenizer": "bytes", "time_scale": 5.0}},
        "group": [
            {
                "name": name,
                "model": name,
                "profile": "a30/llama-2-7b",
                "min": count,
                "max": 1,
                "max_num_seqs": 16,
                "num_blocks": 600,
                "max_model_len_tokens": 2048,
            }
            for name, count in least.items()
        ],
    }
    async with contextlib.AsyncExitStack() as stack:
        gateways, stubs = [], []
        for number in range(2):
            values = tables(GatewayConfig, {**FAST, "gateway_id": f"gw{number}"})
            gateway = Gateway(load(None, {**values, "scaling": scaling}))
            await gateway.start()
            stack.push_async_callback(gateway.stop)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(gateway.address))
            gateways.append(gateway)
            stubs.append(DispatchStub(channel))
        try:
            yield gateways, stubs
        finally:
            assert gateways[0].scaling is not None
            await gateways[0].scaling.connector.close(ends=True)


async def ask(stub: Any, model: str) -> float | None:
    """Asks for an answer and has it. How long it was told to wait, if it was."""
    sampling = types_pb.SamplingParams(max_tokens=4, ignore_eos=True)
    call = stub.Generate(pb.GenerateRequest(text="hello", model=model, sampling=sampling))
    told = dict(await call.initial_metadata()).get("x-astrolabe-wait-s")
    chunks = [chunk async for chunk in call]
    assert chunks[-1].outcome == types_pb.OUTCOME_LENGTH
    return None if told is None else float(told)


def leads(gateway: Gateway) -> bool:
    return gateway.scaling is not None and gateway.scaling.scaler.leads


def is_heard(gateway: Gateway) -> bool:
    return gateway.nodes.leadership is not None and gateway.nodes.leadership.is_heard


async def led(gateways: list[Gateway]) -> tuple[int, int]:
    """The places of the one that leads and of the other, once that is settled and they know of each other."""
    await until(lambda: sum(map(leads, gateways)) == 1 and all(map(is_heard, gateways)), STARTED_S)
    return (0, 1) if leads(gateways[0]) else (1, 0)


async def test_a_request_held_at_a_follower_has_a_node_started(tmp_path: Path) -> None:
    async with two_gateways(tmp_path / "nodes", a=1, b=0) as (gateways, stubs):
        leader, follower = await led(gateways)
        told_s = await ask(stubs[follower], "b")
        assert told_s is not None
        assert told_s > 0
        scaler = gateways[leader].scaling
        assert scaler is not None
        assert scaler.actions["start", "b"] == 1
        assert leads(gateways[leader]), "it was asked as a follower to the end"
        own = gateways[follower].scaling
        assert own is not None
        assert own.actions["start", "b"] == 0, "who does not lead starts nothing"


async def test_with_no_node_up_a_request_waits_at_any_gateway(tmp_path: Path) -> None:
    began_s = time.monotonic()
    async with two_gateways(tmp_path / "nodes", a=0) as (gateways, stubs):
        assert not any(map(leads, gateways)) or time.monotonic() - began_s > LEASE_S
        told_s = await ask(stubs[1], "a")
        assert told_s is not None
        assert told_s > 0
        # Each may have led while no node was up; they asked for the same node.
        assert sorted(path.stem for path in (tmp_path / "nodes").glob("*.pid")) in ([], ["a-0"])


async def test_every_gateway_hears_of_all_requests(tmp_path: Path) -> None:
    async with two_gateways(tmp_path / "nodes", a=1) as (gateways, stubs):
        leader, follower = await led(gateways)
        rules = []
        for gateway in gateways:
            assert gateway.scaling is not None
            rule = gateway.scaling.scaler._rule
            assert isinstance(rule, Counts)
            rules.append(rule)
        for _ in range(3):
            await ask(stubs[follower], "a")
        await ask(stubs[leader], "a")
        for rule in rules:
            await until(lambda rule=rule: len(rule.heard) == 12, 15.0)  # type: ignore[misc]
            assert sum(isinstance(event, ev.RequestDone) for event in rule.heard) == 4

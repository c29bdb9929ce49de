"""What a connector can do wrong, and what the gateway makes of it: nodes are scripted, so every fault is on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.config import GatewayConfig, load
from gateway.core.scale import scaler
from gateway.core.scale.events import StopNode
from gateway.main import Gateway
from gateway.scale import calls, runtime
from gateway.scale.connectors.base import ConnectorError, ConnectorNode
from protos.runtime.options import tables
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from tests.e2e.in_process import FAST, until
from tests.e2e.scripted_node import ScriptedNode

pytestmark = pytest.mark.e2e


class Scripted:
    """A connector whose nodes are scripted, and whose faults are the test's."""

    name: ClassVar[str] = "local"
    executes: ClassVar[bool] = True

    def __init__(self) -> None:
        self.nodes: dict[str, ScriptedNode] = {}
        self.calls: list[str] = []
        self.start_error = ""
        self.list_error = ""
        self.detail = ""
        self.address = ""
        """In place of the true one."""
        self.slow_starts: asyncio.Event | None = None
        self.serves = True
        self.dies = False
        """A node that is started ends before anybody looks."""

    async def start(self, node_id: str, group: str) -> None:
        self.calls.append(f"start {node_id}")
        if self.start_error:
            raise ConnectorError(self.start_error)
        if self.slow_starts is not None:
            await self.slow_starts.wait()
        if self.dies:
            return
        node = self.nodes.setdefault(node_id, ScriptedNode(node_id))
        if self.serves:
            await node.start()
        self.calls.append(f"started {node_id}")

    async def stop(self, node_id: str, group: str) -> None:
        self.calls.append(f"stop {node_id}")
        node = self.nodes.pop(node_id, None)
        if node is not None:
            await node.stop()

    async def list_nodes(self) -> list[ConnectorNode]:
        if self.list_error:
            raise ConnectorError(self.list_error)
        return [
            ConnectorNode(node_id=name, group="g", address=self.address or node.address, detail=self.detail)
            for name, node in self.nodes.items()
        ] + [ConnectorNode(node_id="somebody-elses", group="another", address="127.0.0.1:1")]

    async def close(self, *, ends: bool) -> None:
        for node in self.nodes.values():
            await node.stop()


@pytest.fixture
def connector(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    made = Scripted()
    monkeypatch.setattr(runtime, "make_connector", lambda *_: made)
    monkeypatch.setattr(calls, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(scaler, "FIRST_WAIT_S", 0.3)
    return made


@pytest.fixture
async def scaled(connector: Scripted) -> AsyncIterator[tuple[Gateway, Any]]:
    group = {"name": "g", "model": "m", "min": 0, "max": 1}
    scaling = {"rule": "static", "tick_s": 0.1, "call_tries": 2, "lease_s": 0.0, "group": [group]}
    gateway = Gateway(load(None, {**tables(GatewayConfig, FAST), "scaling": scaling}))
    await gateway.start()
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        yield gateway, DispatchStub(channel)
    await gateway.stop()


def states(gateway: Gateway) -> dict[str, str]:
    assert gateway.scaling is not None
    status = gateway.scaling.status
    return {} if status is None else {node.node_id: node.state for group in status.groups for node in group.nodes}


def problem(gateway: Gateway) -> str:
    assert gateway.scaling is not None
    return "" if gateway.scaling.status is None else gateway.scaling.status.problem


def failed(gateway: Gateway, call: str, group: str = "") -> int:
    assert gateway.scaling is not None
    return gateway.scaling.failures[call, group]


async def test_what_is_listed_joins_and_what_is_another_groups_does_not(
    scaled: tuple[Gateway, Any], connector: Scripted
) -> None:
    gateway, _ = scaled
    await until(lambda: states(gateway) == {"g-0": "serving"})
    assert connector.calls == ["start g-0", "started g-0"]
    assert [link.node_id for link in gateway.nodes.links.values()] == ["g-0"]


async def test_a_start_that_fails_is_tried_again_later_and_said(
    connector: Scripted, scaled: tuple[Gateway, Any]
) -> None:
    gateway, stub = scaled
    connector.start_error = "no capacity in this zone"
    await until(lambda: failed(gateway, "start", "g") >= 2)
    # Each wish is two tries of the connector's call.
    assert connector.calls.count("start g-0") >= 4

    async def blocked_s() -> float:
        return float((await stub.ExplainScaling(pb.ExplainScalingRequest())).groups[0].blocked_s)

    async with asyncio.timeout(10):
        while not await blocked_s():  # noqa: ASYNC110 - only a call tells
            await asyncio.sleep(0.02)
    connector.start_error = ""
    await until(lambda: states(gateway) == {"g-0": "serving"})
    assert len(connector.nodes) == 1


async def test_while_nobody_says_what_runs_nothing_is_done(connector: Scripted, scaled: tuple[Gateway, Any]) -> None:
    gateway, stub = scaled
    await until(lambda: states(gateway) == {"g-0": "serving"})
    connector.list_error = "the API server is being upgraded"
    await until(lambda: "upgraded" in problem(gateway))
    done, failures = list(connector.calls), failed(gateway, "list")
    await until(lambda: failed(gateway, "list") >= failures + 3)
    # The node that was known stays in the table and serves on.
    assert connector.calls == done
    assert gateway.nodes.any_up
    assert (await stub.ExplainScaling(pb.ExplainScalingRequest())).problem == "the API server is being upgraded"
    connector.list_error = ""
    await until(lambda: not problem(gateway))


async def test_a_node_that_is_broken_is_stopped_and_another_is_tried(
    connector: Scripted, scaled: tuple[Gateway, Any]
) -> None:
    gateway, _ = scaled
    connector.serves, connector.detail = False, "its image cannot be pulled"
    await until(lambda: "stop g-0" in connector.calls)
    connector.serves, connector.detail = True, ""
    await until(lambda: states(gateway) == {"g-0": "serving"})


async def test_a_node_that_ends_before_it_was_listed_is_not_waited_for(
    connector: Scripted, scaled: tuple[Gateway, Any]
) -> None:
    gateway, _ = scaled
    connector.dies = True
    await until(lambda: connector.calls.count("start g-0") >= 2)
    connector.dies = False
    await until(lambda: states(gateway) == {"g-0": "serving"})


async def test_an_address_that_is_none_is_what_is_wrong_with_the_node(
    connector: Scripted, scaled: tuple[Gateway, Any]
) -> None:
    _, stub = scaled
    connector.serves, connector.address = False, "not an address"
    await until(lambda: "stop g-0" in connector.calls)
    said = await stub.ExplainScaling(pb.ExplainScalingRequest())
    assert "stop g-0 (given up)" in [action for decision in said.decisions for action in decision.actions]


async def test_a_stop_waits_for_the_start_of_the_same_node(connector: Scripted, scaled: tuple[Gateway, Any]) -> None:
    gateway, _ = scaled
    assert gateway.scaling is not None
    connector.slow_starts = asyncio.Event()
    await until(lambda: connector.calls == ["start g-0"])
    gateway.scaling._do(StopNode(node_id="g-0", group="g", why="not_wanted"))
    await asyncio.sleep(0.2)
    assert connector.calls == ["start g-0"]
    connector.slow_starts.set()
    await until(lambda: "stop g-0" in connector.calls)
    assert connector.calls[:3] == ["start g-0", "started g-0", "stop g-0"]


async def test_who_does_not_lead_starts_and_stops_nothing(connector: Scripted, scaled: tuple[Gateway, Any]) -> None:
    gateway, stub = scaled
    assert gateway.scaling is not None
    await until(lambda: states(gateway) == {"g-0": "serving"})
    gateway.scaling.set_leads(False)
    done = list(connector.calls)
    await connector.nodes.pop("g-0").stop()
    await until(lambda: not gateway.nodes.links and states(gateway) == {})
    said = await stub.ExplainScaling(pb.ExplainScalingRequest())
    assert not said.leads
    assert said.latest.held_back == "another gateway leads"
    assert connector.calls == done
    gateway.scaling.set_leads(True)
    await until(lambda: states(gateway) == {"g-0": "serving"})


async def test_a_gateway_that_can_have_a_node_started_is_healthy_without_one(connector: Scripted) -> None:
    async def health(scaling: dict[str, Any]) -> int:
        gateway = Gateway(load(None, {**tables(GatewayConfig, FAST), "scaling": scaling}))
        await gateway.start()
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        await gateway.stop()
        return int(answer.status)

    connector.serves = False
    states = health_pb2.HealthCheckResponse
    assert await health({}) == states.NOT_SERVING
    group = {"name": "g", "profile": "a30/llama-2-7b", "min": 0}
    assert await health({"rule": "static", "lease_s": 0.0, "group": [group]}) == states.SERVING

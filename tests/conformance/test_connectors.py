"""Every connector keeps the contract of `gateway.scale.connectors.base`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.scale.calls import patiently
from gateway.scale.connectors.base import Connector, ConnectorError, ConnectorNode
from gateway.scale.connectors.kubernetes_deployments import COST
from gateway.scale.connectors.kubernetes_statefulsets import StatefulSetConnector
from gateway.scale.connectors.registry import connector_names, make_connector
from gateway.scale.connectors.systemd import SystemdConnector
from tests.conformance.connector_rigs import (
    CommandRig,
    DeploymentRig,
    KubernetesRig,
    LocalRig,
    Rig,
    SshRig,
    SystemdRig,
    scaling,
)

RIGS = ("local", "systemd", "command", "kubernetes")
OVER_SSH = pytest.param("ssh", marks=pytest.mark.skipif(not SshRig.words, reason="ASTROLABE_TEST_SSH names no sshd"))


def test_every_connector_is_here() -> None:
    assert {*RIGS, "advise"} == set(connector_names())


@pytest.fixture(params=(*RIGS, "kubernetes deployments", OVER_SSH))
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    if request.param.startswith("kubernetes"):
        served = DeploymentRig(tmp_path) if "deployments" in request.param else KubernetesRig(tmp_path)
        async with served.serving():
            yield served
        return
    kinds: dict[str, Any] = {"local": LocalRig, "systemd": SystemdRig, "command": CommandRig, "ssh": SshRig}
    made: Rig = kinds[request.param](tmp_path)
    yield made
    connector = made.make()
    for node in await connector.list_nodes():
        await connector.stop(node.node_id, node.group)


@pytest.fixture
async def connector(rig: Rig) -> AsyncIterator[Connector]:
    made = rig.make()
    yield made
    await made.close(ends=False)


async def names(connector: Connector) -> list[str]:
    return [node.node_id for node in await connector.list_nodes()]


async def test_a_start_asked_for_twice_is_one_node(rig: Rig, connector: Connector) -> None:
    await connector.start("g-0", "g")
    await connector.start("g-0", "g")
    assert await names(connector) == rig.running() == ["g-0"]
    await connector.stop("g-0", "g")
    assert await names(connector) == rig.running() == []


async def test_to_stop_what_is_not_there_is_no_error(rig: Rig, connector: Connector) -> None:
    await connector.stop("g-2", "g")
    assert rig.running() == []
    await connector.start("g-0", "g")
    await connector.stop("g-0", "g")
    await connector.stop("g-0", "g")
    assert await names(connector) == []


async def test_a_gateway_that_starts_anew_finds_what_runs(rig: Rig, connector: Connector) -> None:
    await connector.start("g-0", "g")
    await connector.start("g-1", "g")
    another = rig.make()
    assert await another.list_nodes() == await connector.list_nodes()
    assert await names(another) == ["g-0", "g-1"]
    await another.stop("g-1", "g")
    assert await names(connector) == rig.running() == ["g-0"]
    await another.close(ends=False)


async def test_two_gateways_that_start_one_node_at_once_start_one(rig: Rig, connector: Connector) -> None:
    another = rig.make()
    starts = [partial(one.start, "g-0", "g") for one in (connector, another)]
    await asyncio.gather(*(patiently(start, limit_s=20.0, tries=3) for start in starts))
    assert rig.running() == ["g-0"]
    await another.close(ends=False)


async def test_a_start_that_was_broken_off_is_known_or_never_was(rig: Rig, connector: Connector) -> None:
    for pause_s in (0.0, 0.002, 0.02):
        starting = asyncio.create_task(connector.start("g-0", "g"))
        await asyncio.sleep(pause_s)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        # What was on its way when it was broken off.
        await asyncio.sleep(0.3)
        assert await names(connector) == rig.running()
        await connector.start("g-0", "g")
        assert await names(connector) == rig.running() == ["g-0"]
        await connector.stop("g-0", "g")
        assert rig.running() == []


async def test_a_call_has_its_time_and_not_more(rig: Rig, connector: Connector) -> None:
    if not rig.can_hang:
        pytest.skip("nothing here can keep a call waiting")
    rig.break_down("hangs")
    for call in (connector.list_nodes, lambda: connector.start("g-0", "g"), lambda: connector.stop("g-0", "g")):
        with pytest.raises(ConnectorError, match=r"no answer within 0\.3 s"):
            await patiently(call, limit_s=0.3, tries=1)
    rig.break_down("")
    assert await names(connector) == rig.running()


async def test_what_fails_says_so_and_works_again_later(rig: Rig, connector: Connector) -> None:
    rig.break_down("fails")
    with pytest.raises(ConnectorError) as failed:
        await patiently(lambda: connector.start("g-0", "g"), limit_s=20.0, tries=1)
    assert "\n" not in str(failed.value)
    rig.break_down("")
    await connector.start("g-0", "g")
    assert await names(connector) == rig.running() == ["g-0"]


async def test_a_list_that_fails_is_no_empty_list(rig: Rig, connector: Connector) -> None:
    if not rig.can_hang:
        pytest.skip("a folder can always be read")
    await connector.start("g-0", "g")
    rig.break_down("fails")
    with pytest.raises(ConnectorError):
        await connector.list_nodes()
    rig.break_down("")
    assert await names(connector) == ["g-0"]


# --- what only one of them has ----------------------------------------------------------------------------------------


async def test_local_nodes_tell_their_address_and_end_with_the_gateway(tmp_path: Path) -> None:
    rig = LocalRig(tmp_path)
    connector = rig.make()
    await connector.start("g-0", "g")
    async with asyncio.timeout(50):
        while not (listed := await connector.list_nodes())[0].address:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
    assert listed[0].address.startswith("127.0.0.1:")
    await connector.close(ends=True)
    assert rig.running() == []


async def test_a_local_node_that_was_killed_is_not_listed(tmp_path: Path) -> None:
    rig = LocalRig(tmp_path)
    connector = rig.make()
    await connector.start("g-0", "g")
    async with asyncio.timeout(20):
        while not (pid := tmp_path / "nodes" / "g-0.pid").exists():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
    process = await asyncio.create_subprocess_exec("kill", "-9", pid.read_text().strip())
    await process.wait()
    async with asyncio.timeout(20):
        while rig.running():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
    assert await connector.list_nodes() == []


async def test_a_failed_unit_is_told_with_its_reason(tmp_path: Path) -> None:
    rig = SystemdRig(tmp_path)
    connector = rig.make()
    await connector.start("g-1", "g")
    (tmp_path / "up" / "astrolabe-predictor@g-1").write_text("failed")
    listed = await connector.list_nodes()
    assert [(node.node_id, node.address, node.detail) for node in listed] == [
        ("g-1", "10.0.0.2:8100", "its unit has failed (exit-code)")
    ]
    await connector.stop("g-1", "g")
    assert await connector.list_nodes() == []
    assert set((tmp_path / "ssh.hosts").read_text().split()) == {"10.0.0.1", "10.0.0.2", "ops@10.0.0.2"}


async def test_a_host_that_does_not_answer_may_have_its_nodes(tmp_path: Path) -> None:
    rig = SystemdRig(tmp_path)
    connector = rig.make()
    await connector.start("g-1", "g")
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\ncase "$1" in 10.0.0.1) echo "no route to host" >&2; exit 255;; esac\nexec sh -c "$2"\n')
    listed = {node.node_id: node.detail for node in await connector.list_nodes()}
    assert set(listed) == {"g-0", "g-1"}
    assert "no route to host" in listed["g-0"]
    assert listed["g-1"] == ""


async def test_a_unit_without_a_place_is_an_error(tmp_path: Path) -> None:
    connector = SystemdRig(tmp_path).make()
    assert isinstance(connector, SystemdConnector)
    with pytest.raises(ConnectorError, match="g-7 has no place"):
        await connector.start("g-7", "g")


def pod(name: str, **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"phase": "Pending", **status}}


async def test_pods_tell_where_they_are_and_what_is_wrong(tmp_path: Path) -> None:
    rig = KubernetesRig(tmp_path)
    async with rig.serving():
        connector = rig.make()
        rig.replicas = 3
        waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
        rig.pods = {
            "g-0": pod("g-0", phase="Running", podIP="10.1.0.4", containerStatuses=[{"state": {"running": {}}}]),
            "g-1": pod("g-1", containerStatuses=[{"state": {"waiting": waiting}}]),
            "g-3": {**pod("g-3", podIP="10.1.0.7"), "metadata": {"name": "g-3", "deletionTimestamp": "now"}},
        }
        assert await connector.list_nodes() == [
            ConnectorNode(node_id="g-0", group="g", address="10.1.0.4:8100"),
            ConnectorNode(node_id="g-1", group="g", detail="ImagePullBackOff: Back-off pulling image"),
            ConnectorNode(node_id="g-2", group="g"),
            ConnectorNode(node_id="g-3", group="g", address="10.1.0.7:8100", detail="its pod is being stopped"),
        ]
        await connector.close(ends=True)
        assert rig.replicas == 3


async def test_a_statefulset_takes_its_last_pod_only(tmp_path: Path) -> None:
    rig = KubernetesRig(tmp_path)
    async with rig.serving():
        connector = rig.make()
        rig.replicas = 3
        with pytest.raises(ConnectorError, match="g-0 is not the last of 3"):
            await connector.stop("g-0", "g")
        assert rig.replicas == 3
        await connector.stop("g-2", "g")
        assert rig.replicas == 2
        await connector.close(ends=False)


async def test_what_somebody_else_has_changed_meanwhile_is_not_undone(tmp_path: Path) -> None:
    rig = KubernetesRig(tmp_path)
    async with rig.serving():
        connector = rig.make()
        assert isinstance(connector, StatefulSetConnector)

        def scaled_by_another() -> None:
            rig.replicas, rig.version, rig.interfere = 3, rig.version + 1, None

        rig.interfere = scaled_by_another
        with pytest.raises(ConnectorError, match="409"):
            await connector.start("g-1", "g")
        await patiently(lambda: connector.start("g-1", "g"), limit_s=5.0, tries=1)
        assert rig.replicas == 3
        await connector.close(ends=False)


@contextlib.asynccontextmanager
async def three_pods(tmp_path: Path) -> AsyncIterator[tuple[DeploymentRig, Connector, list[str]]]:
    """A Deployment whose pods are up, and these by name, the eldest first."""
    rig = DeploymentRig(tmp_path)
    async with rig.serving():
        rig.controls = True
        connector = rig.make()
        for number in range(3):
            await connector.start(f"g-{number}", "g")
        assert [node.asked_as for node in await connector.list_nodes()] == ["g-0", "g-1", "g-2"]
        for name in rig.pods:
            rig.ready(name)
        yield rig, connector, list(rig.pods)
        await connector.close(ends=False)


async def test_a_deployments_pod_is_called_by_its_own_name_and_asked_for_once(tmp_path: Path) -> None:
    async with three_pods(tmp_path) as (rig, connector, pods):
        assert await names(connector) == pods
        for asked in ("g-1", pods[1]):
            await connector.start(asked, "g")
        assert rig.alive() == pods
        another = rig.make()
        assert await another.list_nodes() == await connector.list_nodes()
        await another.close(ends=False)


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_the_pod_that_has_left_is_the_one_that_kubernetes_takes(tmp_path: Path, number: int) -> None:
    async with three_pods(tmp_path) as (rig, connector, pods):
        await connector.stop(pods[number], "g")
        await connector.stop(pods[number], "g")
        assert rig.pods[pods[number]]["metadata"]["annotations"][COST] == "-2147483648"
        assert rig.alive() == [pod for pod in pods if pod != pods[number]]
        listed = {node.node_id: node.detail for node in await connector.list_nodes()}
        assert listed == {pod: "its pod is being stopped" if pod == pods[number] else "" for pod in pods}
        await connector.start(f"g-{number}", "g")
        assert len(rig.alive()) == 3, "its name is free again"


async def test_no_pod_of_a_deployment_is_stopped_while_another_would_go_in_its_place(tmp_path: Path) -> None:
    async with three_pods(tmp_path) as (rig, connector, pods):
        rig.ready(pods[2], is_ready=False)
        with pytest.raises(ConnectorError, match=f"{pods[0]} stays until {pods[2]} is ready"):
            await connector.stop(pods[0], "g")
        assert rig.alive() == pods
        rig.ready(pods[2])
        await connector.stop(pods[0], "g")
        assert rig.alive() == pods[1:]


async def test_a_pod_that_is_replaced_leaves_its_name_to_the_next(tmp_path: Path) -> None:
    async with three_pods(tmp_path) as (rig, connector, pods):
        del rig.pods[pods[1]]
        rig.control()
        (new,) = set(rig.alive()) - set(pods)
        assert {node.asked_as: node.node_id for node in await connector.list_nodes()} == {
            "g-0": pods[0],
            "g-1": new,
            "g-2": pods[2],
        }


async def test_pods_that_are_there_before_us_are_taken_over(tmp_path: Path) -> None:
    rig = DeploymentRig(tmp_path)
    async with rig.serving():
        rig.replicas = 2
        rig.control()
        connector = rig.make()
        assert await names(connector) == rig.alive()
        await connector.start("g-1", "g")
        assert rig.replicas == 2
        await connector.start("g-2", "g")
        assert rig.replicas == 3
        await connector.close(ends=False)


async def test_an_api_server_of_another_authority_is_not_believed(tmp_path: Path) -> None:
    rig = KubernetesRig(tmp_path)
    async with rig.serving():
        KubernetesRig(tmp_path)  # Writes another authority to the file.
        connector = rig.make()
        with pytest.raises(ConnectorError, match="certificate verify failed"):
            await connector.list_nodes()
        await connector.close(ends=False)


async def test_advice_lists_what_the_gateway_sees_and_starts_nothing() -> None:
    seen = [ConnectorNode(node_id="g-0", group="g")]
    connector = make_connector(scaling("advise"), lambda: seen)
    assert await connector.list_nodes() == seen
    for call in (connector.start, connector.stop):
        with pytest.raises(ConnectorError):
            await call("g-1", "g")

"""Real processes: two gateways scale the same nodes, and one of them is killed or stops."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest

from deploy.gateway_channel import blocking_channel
from deploy.local_cluster import Child
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from tests.e2e.cluster import listed, until

pytestmark = pytest.mark.e2e

STARTED_S = 60.0
"""What a node with an emulated engine gets to be up on a busy machine."""
LEASE_S = 1.5
SCALING = """
[scaling]
rule = "static"
connector = "local"
tick_s = 0.5
lease_s = {lease_s}
[scaling.options]
nodes = {{ g = 2 }}
[scaling.local]
folder = "{folder}"
options = {{ tokenizer = "bytes", time_scale = 5.0 }}
[[scaling.group]]
name = "g"
profile = "a30/llama-2-7b"
max = 3
cold_start_s = 20.0
max_num_seqs = 16
max_num_batched_tokens = 512
num_blocks = 600
max_model_len_tokens = 2048
"""


def node_pids(folder: Path) -> dict[str, int]:
    """The nodes that run, by name."""
    found = {}
    for path in folder.glob("*.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            os.kill(pid, 0)
            found[path.name.removesuffix(".pid")] = pid
    return found


def leads(gateway: Child) -> bool:
    """Whether the last that this run of it has said of it is that it leads."""
    log = gateway.log_path.read_text().rpartition("gateway is listening")[2]
    return log.rfind("this gateway leads") > log.rfind("does not lead any more")


def up_nodes(gateway: Child) -> set[str]:
    with blocking_channel(gateway.address) as channel, contextlib.suppress(grpc.RpcError):
        return {name for name, node in listed(DispatchStub(channel)).items() if node.status == "up"}
    return set()


@pytest.fixture
def leaders(tmp_path: Path) -> Iterator[tuple[list[Child], Path]]:
    """Two gateways with one fleet, and the folder of its nodes."""
    folder, config = tmp_path / "nodes", tmp_path / "gateway.toml"
    config.write_text(SCALING.format(folder=folder, lease_s=LEASE_S))
    listen = {"listen": "127.0.0.1:0", "http_listen": ""}
    options = {"config": config, "tokenizer": "bytes", "reconnect_max_s": 0.3, **listen}
    gateways = [Child(f"gw{i}", "gateway", {**options, "gateway_id": f"gw{i}"}, tmp_path) for i in range(2)]
    try:
        for gateway in gateways:
            gateway.start()
            gateway.wait_ready(time.monotonic() + STARTED_S)
        yield gateways, folder
    finally:
        for gateway in gateways:
            gateway.kill()
        for pid in node_pids(folder).values():
            os.kill(pid, signal.SIGKILL)


def test_a_leader_that_is_killed_is_followed_by_the_other(leaders: tuple[list[Child], Path]) -> None:
    gateways, folder = leaders
    both = {"g-0", "g-1"}
    until(lambda: all(up_nodes(g) == both for g in gateways), deadline_s=STARTED_S, what="both see both nodes")
    until(lambda: sum(map(leads, gateways)) == 1, what="one leads")
    first, other = sorted(gateways, key=leads, reverse=True)
    before = node_pids(folder)
    assert set(before) == both
    first.kill()
    until(lambda: leads(other), what="the other leads")
    assert node_pids(folder) == before, "the nodes did not notice"
    os.kill(before["g-0"], signal.SIGKILL)
    # By another name, as long as the nodes have not forgotten that the dead gateway had this one.
    until(
        lambda: len(up_nodes(other)) == 2 and not set(node_pids(folder).values()) & {before["g-0"]},
        deadline_s=STARTED_S,
        what="it starts what is lacking",
    )
    first.start()
    first.wait_ready(time.monotonic() + STARTED_S)
    until(lambda: up_nodes(first) == up_nodes(other), deadline_s=STARTED_S, what="the first is back")
    until(lambda: sum(map(leads, gateways)) == 1, what="one leads")
    now = node_pids(folder)
    time.sleep(4 * LEASE_S)
    assert node_pids(folder) == now, "nothing is started twice, and nothing stopped"
    assert now["g-1"] == before["g-1"]


def test_one_that_stops_leaves_the_nodes_to_the_other(leaders: tuple[list[Child], Path]) -> None:
    gateways, folder = leaders
    until(lambda: all(len(up_nodes(g)) == 2 for g in gateways), deadline_s=STARTED_S, what="both see both nodes")
    until(lambda: sum(map(leads, gateways)) == 1, what="one leads")
    first, other = sorted(gateways, key=leads, reverse=True)
    before = node_pids(folder)
    first.signal(signal.SIGTERM)
    assert first.wait(20.0) == 0
    until(lambda: leads(other), what="the other leads")
    assert node_pids(folder) == before
    assert up_nodes(other) == set(before)

"""Lines of real processes have the fields that deploy/logs.md says, so that people can query them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.local_cluster import Child
from protos.v1 import astrolabe_dispatch_pb2 as pb
from tests.e2e.cluster import MakeCluster, listed, until
from tests.e2e.test_resume import Reader, ask
from tests.helpers.log_page import EVERYWHERE, described

pytestmark = pytest.mark.e2e

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SCALING = """
[scaling]
rule = "static"
connector = "advise"
lease_s = 0.0
tick_s = 0.2

[[scaling.group]]
name = "node"
profile = "a30/llama-2-7b"
"""


def lines(child: Child) -> list[dict[str, Any]]:
    return [json.loads(line) for line in child.log_path.read_text().splitlines()]


def check(told: list[dict[str, Any]], section: str) -> set[str]:
    """Each line's fields are those of the page; the events that came."""
    page = described(section)
    for line in told:
        assert set(line) >= EVERYWHERE, line
        assert datetime.fromisoformat(line["timestamp"]).tzinfo is not None
        always, sometimes = page[line["event"]]
        assert always <= set(line) - EVERYWHERE <= always | sometimes, line
    return {line["event"] for line in told}


def test_every_line_is_as_the_page_says(make_cluster: MakeCluster, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(SCALING)
    cluster = make_cluster(nodes=2, gateway={"config": str(tmp_path / "gateway.toml")}, expect_deaths=True)
    with cluster.stub() as stub:
        assert list(stub.Generate(ask("whole", [97], 5), metadata=(("traceparent", TRACEPARENT),), timeout=30))
        left = stub.Generate(ask("left", [97] * 9, 2000, sampling={"ignore_eos": True}), timeout=30)
        next(iter(left))
        left.cancel()
        with pytest.raises(grpc.RpcError):
            list(stub.Generate(ask("too-long", [97] * 3000, 5), timeout=30))
        stub.Drain(pb.DrainRequest(node_id="node-1"), timeout=5)
        stub.Drain(pb.DrainRequest(node_id="node-1", undo=True), timeout=5)
        reader = Reader(stub, ask("resumed", [97], 1500, sampling={"ignore_eos": True}))
        reader.start()
        until(reader.has_begun, what="an answer to lose its node")
        lost = next(node for node in cluster.nodes if node.name == reader.node_id)
        lost.kill()
        until(lambda: listed(stub)[lost.name].status == "down", what="the gateway knows")
        reader.join(60)
        assert reader.error is None
    cluster.stop()
    gateway = lines(cluster.gateway)
    came = check(gateway, "Gateway")
    assert came >= {
        "gateway is listening",
        "node is up",
        "node is down",
        "request finished",
        "gateway has stopped",
        "scaling",
    }
    for node in cluster.nodes:
        came = check(lines(node), "Daemon")
        assert came >= {"node is serving", "session begun"}
    finished = {line["request_id"]: line for line in gateway if line["event"] == "request finished"}
    assert finished["whole"]["trace_id"] == TRACEPARENT.split("-")[1]
    assert finished["left"]["outcome"] == "client_left"
    assert (finished["resumed"]["outcome"], finished["resumed"]["attempts"]) == ("length", 2)
    assert finished["too-long"]["outcome"] == "invalid"
    assert finished["too-long"]["detail"]

"""Every panel's queries, and every variable's, give data on a running cluster."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from protos.v1 import astrolabe_dispatch_pb2 as pb
from tests.e2e.cluster import MakeCluster
from tests.e2e.test_monitoring_files import DASHBOARDS, SCALING, panels
from tests.e2e.test_resume import Reader, ask
from tests.monitoring.conftest import Watch
from tests.monitoring.load import Load
from tests.monitoring.prometheus import WINDOW_S, Prometheus

WITHOUT_DATA = {"Certificates that end first"}
"""On a cluster without TLS."""
VALUES = {"$__rate_interval": f"{WINDOW_S}s", "$job": "astrolabe-gateway", "$node": "node-1", "$group": ".*"}


def filled_in(expression: str) -> str:
    for name, value in VALUES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def moved(stub: Any) -> None:
    """One answer goes on at the other node while it comes."""
    reader = Reader(stub, ask("moved", [97] * 200, 400, sampling={"ignore_eos": True}))
    reader.start()
    while not reader.has_begun():
        assert reader.is_alive()
    elsewhere = {"node-0": "node-1", "node-1": "node-0"}[reader.node_id]
    assert not stub.Move(pb.MoveRequest(request_id="moved", node=elsewhere), timeout=5).refusal
    reader.join(60)
    assert reader.error is None


def test_every_panel_has_data(make_cluster: MakeCluster, watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(SCALING)
    cluster = make_cluster(
        nodes=2,
        predictor={"metrics_listen": "127.0.0.1:0", "time_scale": 4.0},
        gateway={"config": str(tmp_path / "gateway.toml"), "policy": "min_total_latency"},
    )
    prometheus = watch(cluster)
    with Load(cluster.url, clients=4), cluster.stub() as stub:
        # Counters are told of by their growth: one that appears and stays as it is has none.
        moved(stub)
        prometheus.until(lambda: bool(prometheus.query("astrolabe_moves_total > 0")), 10.0, "the move on the page")
        moved(stub)
        empty = sorted(name for name, found in all_panels(prometheus).items() if not found)
        end_s = time.monotonic() + 60.0
        while still_empty(prometheus, empty) and time.monotonic() < end_s:
            time.sleep(1.0)
        assert empty == []
    for dashboard in DASHBOARDS:
        for variable in json.loads(dashboard.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert asked, variable
                series, label = asked.groups()
                found = prometheus.api("series", **{"match[]": filled_in(series)})
                assert {one[label] for one in found}, f"{dashboard.name}: {variable['name']}"


def all_panels(prometheus: Prometheus) -> dict[str, bool]:
    return {
        f"{dashboard.name}: {panel['title']}: {target['expr']}": bool(prometheus.over(filled_in(target["expr"])))
        for dashboard in DASHBOARDS
        for panel in panels(dashboard)
        if panel["title"] not in WITHOUT_DATA
        for target in panel["targets"]
    }


def still_empty(prometheus: Prometheus, names: list[str]) -> list[str]:
    names[:] = [name for name in names if not prometheus.over(filled_in(name.split(": ", 2)[2]))]
    return names


def test_a_query_that_is_none_is_refused(make_cluster: MakeCluster, watch: Watch) -> None:
    prometheus = watch(make_cluster(nodes=1, predictor={"metrics_listen": "127.0.0.1:0"}))
    with pytest.raises(AssertionError, match="parse error"):
        prometheus.over("sum by (node")

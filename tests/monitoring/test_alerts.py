"""Each alert's condition is caused on real processes: that alert fires, and no other than must.

Rules are the shipped ones in a hurry (`hurried`), over a real Prometheus.
"""

from __future__ import annotations

import datetime
import signal
import sys
import time
from pathlib import Path

import pytest
import trustme

from deploy.local_cluster import Child
from gateway.intake.callers import KeyEntry, KeyFile, digest, write_keys
from tests.e2e.cluster import TINY_ENGINE, MakeCluster
from tests.e2e.engine_server import EngineServer
from tests.e2e.test_monitoring_files import ALERTS
from tests.monitoring.conftest import Processes, Watch
from tests.monitoring.load import Load
from tests.monitoring.prometheus import Prometheus

PAGE = {"metrics_listen": "127.0.0.1:0"}
GATEWAY = {"listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0", "tokenizer": "bytes"}
BLIND = {"policy": "least_requests"}
"""Forecasts that a machine with other work on it does not keep, or not in time, are an alarm, and rightly so."""
CALM_S = 5.0
WITHIN_S = 60.0
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))

WITH_ANY_LOAD = {"AstrolabeDecisionsSlow"}
"""True of a machine with other work on it."""

caused: set[str] = set()
"""By the tests of this module so far."""


def calm(prometheus: Prometheus) -> None:
    """Nothing fires, for some evaluations."""
    end_s = time.monotonic() + CALM_S
    while time.monotonic() < end_s:
        assert prometheus.firing() <= WITH_ANY_LOAD
        time.sleep(0.3)


def fires(prometheus: Prometheus, *names: str, within_s: float = WITHIN_S) -> None:
    """All of them come, and no other has ever fired."""
    wanted = {f"Astrolabe{name}" for name in names}
    prometheus.until(
        lambda: bool(prometheus.firing()) and prometheus.seen_firing >= wanted, within_s, f"{sorted(wanted)} fire"
    )
    time.sleep(2.0)
    prometheus.firing()
    assert wanted <= prometheus.seen_firing <= wanted | WITH_ANY_LOAD
    caused.update(wanted)


def scaling(folder: Path, text: str, group: str = "max = 1", **keys: str) -> str:
    """A gateway's file with these keys in [scaling] and one group of the nodes that `make_cluster` makes."""
    path = folder / f"scaling-{len(list(folder.glob('scaling-*')))}.toml"
    lines = "\n".join(f"{key} = {value}" for key, value in {"tick_s": "0.5", "lease_s": "0.0", **keys}.items())
    path.write_text(
        f'[scaling]\n{lines}\n{text}\n[[scaling.group]]\nname = "node"\nprofile = "a30/llama-2-7b"\n{group}\n'
    )
    return str(path)


def test_nothing_fires_on_a_healthy_cluster_with_load(make_cluster: MakeCluster, watch: Watch) -> None:
    cluster = make_cluster(nodes=2, predictor={**PAGE, "time_scale": 1.0}, gateway=BLIND)
    prometheus = watch(cluster)
    with Load(cluster.url, clients=2, pause_s=0.1) as load:
        for _ in range(4):
            calm(prometheus)
    assert set(load.statuses) == {200}


def test_a_gateway_is_killed(make_cluster: MakeCluster, watch: Watch) -> None:
    cluster = make_cluster(nodes=1, predictor=PAGE, expect_deaths=True)
    prometheus = watch(cluster)
    calm(prometheus)
    cluster.gateway.kill()
    fires(prometheus, "GatewayDown")


def test_one_node_is_killed_then_the_other(make_cluster: MakeCluster, watch: Watch) -> None:
    cluster = make_cluster(nodes=2, predictor=PAGE, expect_deaths=True)
    prometheus = watch(cluster)
    calm(prometheus)
    cluster.nodes[0].kill()
    fires(prometheus, "NodeDown", "PredictorDown")
    cluster.nodes[1].kill()
    with Load(cluster.url, clients=1):
        fires(prometheus, "NodeDown", "PredictorDown", "NoNodeUp", "RequestsFail")


def test_an_engine_answers_with_errors_then_not_at_all(make_cluster: MakeCluster, watch: Watch) -> None:
    engine = EngineServer()
    try:
        node = {**PAGE, "engine": "openai_metrics", "engine_url": engine.url}
        cluster = make_cluster(nodes=1, predictor=node)
        prometheus = watch(cluster)
        with Load(cluster.url, clients=1):
            calm(prometheus)
            engine.fault = 500
            fires(prometheus, "RequestsFail", "NodeAlarm")
    finally:
        engine.close()
    prometheus.seen_firing.clear()
    prometheus.until(lambda: prometheus.firing() >= {"AstrolabeTraceBroken"}, WITHIN_S, "the trace is broken")
    caused.add("AstrolabeTraceBroken")
    assert prometheus.seen_firing <= {f"Astrolabe{n}" for n in ("TraceBroken", "RequestsFail", "NodeAlarm")}


def test_an_engine_stands_still(make_cluster: MakeCluster, watch: Watch) -> None:
    # A step takes some 40 s; of a request there is word from the end of its first step on.
    cluster = make_cluster(
        nodes=1,
        predictor={**PAGE, "time_scale": 0.0005},
        gateway={"policy": "least_requests", "stall_s": 600.0, "hold": "never"},
    )
    prometheus = watch(cluster)
    calm(prometheus)
    with Load(cluster.url, clients=1, max_tokens=2, ignore_eos=True):
        fires(prometheus, "EngineStandsStill", "FirstTokenSlow", within_s=200.0)


def test_the_gateway_is_overloaded(make_cluster: MakeCluster, watch: Watch) -> None:
    cluster = make_cluster(
        nodes=1,
        predictor={**PAGE, "max_num_seqs": 2, "time_scale": 1.0},
        gateway={"policy": "least_requests", "hold": "always", "hold_max_requests": 2},
    )
    prometheus = watch(cluster)
    calm(prometheus)
    with Load(cluster.url, clients=8, max_tokens=30, ignore_eos=True, pause_s=0.2):
        fires(prometheus, "QueueStands", "RequestsShed")


def test_a_daemon_hangs(make_cluster: MakeCluster, watch: Watch) -> None:
    cluster = make_cluster(
        nodes=2,
        predictor=PAGE,
        gateway={"policy": "min_total_latency", "forecast_timeout_ms": 1000.0, "stall_s": 2.0, "keepalive_s": 60.0},
    )
    prometheus = watch(cluster)
    with Load(cluster.url, clients=4, pause_s=0.5):
        calm(prometheus)
        cluster.nodes[0].signal(signal.SIGSTOP)
        try:
            fires(prometheus, "NodeAlarm", "PredictorDown", "DecisionsSlow", "ForecastsUnused")
        finally:
            cluster.nodes[0].signal(signal.SIGCONT)


def test_blocks_are_short(make_cluster: MakeCluster, watch: Watch) -> None:
    cluster = make_cluster(
        nodes=1,
        predictor={**PAGE, "num_blocks": 40, "time_scale": 10.0, "max_model_len_tokens": 600},
        gateway={"policy": "round_robin", "hold": "never"},
    )
    prometheus = watch(cluster)
    calm(prometheus)
    with Load(cluster.url, clients=8, max_tokens=300, ignore_eos=True):
        fires(prometheus, "Preemptions")


def test_keys_are_refused_and_a_certificate_ends_soon(tmp_path: Path, watch: Watch) -> None:
    authority = trustme.CA()
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    made = authority.issue_cert("localhost", "127.0.0.1", not_after=soon)
    (tmp_path / "gateway.crt").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    made.private_key_pem.write_to_path(str(tmp_path / "gateway.key"))
    write_keys(
        tmp_path / "keys.toml",
        KeyFile(keys=(KeyEntry(name="prometheus", sha256=digest("metrics-key").hex(), role="metrics"),)),
    )
    (tmp_path / "metrics.key").write_text("metrics-key\n")
    node = Child("node-0", "predictor", {**TINY_ENGINE, **PAGE, "listen": "127.0.0.1:0"}, tmp_path)
    gateway = Child("gateway", "gateway", {}, tmp_path)
    try:
        node.start()
        node.wait_ready(time.monotonic() + 60.0)
        gateway.options = {
            **GATEWAY,
            "node": [node.address],
            "tls_cert": tmp_path / "gateway.crt",
            "tls_key": tmp_path / "gateway.key",
            "keys": tmp_path / "keys.toml",
        }
        gateway.start()
        gateway.wait_ready(time.monotonic() + 60.0)
        # As deploy/monitoring/prometheus.yml has it.
        scrape = {
            "tls_config": {"ca_file": str(tmp_path / "ca.crt")},
            "authorization": {"credentials_file": str(tmp_path / "metrics.key")},
        }
        prometheus = watch(Processes(gateway, [node]), scheme="https", scrape=scrape)
        fires(prometheus, "CertificateEnds")
        with Load(f"https://{gateway.http_address}", clients=2, key="guess", ca=str(tmp_path / "ca.crt")) as load:
            fires(prometheus, "CertificateEnds", "CallsDenied")
        assert set(load.statuses) == {401}
    finally:
        for child in (gateway, node):
            child.signal(signal.SIGTERM)
            if child.wait(10.0) is None:
                child.kill()


def test_a_gateway_is_busy_and_large(make_cluster: MakeCluster, watch: Watch) -> None:
    cluster = make_cluster(nodes=1, predictor=PAGE, gateway=BLIND)
    # A whole core and a gigabyte are more than a test should take.
    prometheus = watch(
        cluster, thresholds={"AstrolabeGatewayBusy": "> 0.85 -> > 0.1", "AstrolabeMemory": "> 1e9 -> > 3e7"}
    )
    with Load(cluster.url, clients=16, pause_s=0.0):
        fires(prometheus, "GatewayBusy", "Memory")


@pytest.mark.skipif(not FAKETIME, reason="no libfaketime here: apt-get install libfaketime")
def test_a_clock_is_wrong(make_cluster: MakeCluster, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", str(FAKETIME[0]))
    monkeypatch.setenv("FAKETIME", "+90s")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    monkeypatch.setenv("DONT_FAKE_MONOTONIC", "1")
    fires(watch(make_cluster(nodes=1, predictor=PAGE)), "ClockSkew")


def test_two_versions_run(
    make_cluster: MakeCluster, watch: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = make_cluster(nodes=1, predictor=PAGE)
    installed = tmp_path / "newer" / "astrolabe-9.9.9.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: astrolabe\nVersion: 9.9.9\n")
    monkeypatch.setenv("PYTHONPATH", str(installed.parent))
    # Else what an editable installation leaves in the checkout's folder would be found before it.
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    fires(watch(old, make_cluster(nodes=1, predictor=PAGE)), "VersionsDiffer")


def test_a_gateway_starts_again_and_again(make_cluster: MakeCluster, watch: Watch) -> None:
    cluster = make_cluster(nodes=1, predictor=PAGE, expect_deaths=True)
    prometheus = watch(cluster)
    calm(prometheus)
    for _ in range(3):
        cluster.gateway.kill()
        prometheus.until(lambda: "AstrolabeGatewayDown" in prometheus.firing(), 20.0, "it is seen to be down")
        cluster.gateway.start()
        cluster.gateway.wait_ready(time.monotonic() + 60.0)
        prometheus.until(lambda: prometheus.scraped(2), 20.0, "it is seen to be up")
        time.sleep(1.0)
    fires(prometheus, "GatewayDown", "Restarts")


def test_the_scaler_cannot_keep_the_objective(make_cluster: MakeCluster, watch: Watch, tmp_path: Path) -> None:
    config = scaling(tmp_path, "[scaling.objective]\nttft_s = 0.0001\n", rule='"forecast"', connector='"advise"')
    cluster = make_cluster(nodes=1, predictor=PAGE, gateway={"config": config, **BLIND})
    prometheus = watch(cluster)
    with Load(cluster.url, clients=2, pause_s=0.1):
        fires(prometheus, "ScalingShort")


CONNECTOR = """
import json, pathlib, sys
asked, here = json.load(sys.stdin), pathlib.Path(sys.argv[1])
if (here / "broken").exists():
    sys.exit("the cloud is closed")
if asked["do"] == "start":
    (here / asked["node"]).touch()
if asked["do"] == "list":
    nodes = [{"node": p.name, "group": "node", "address": "", "detail": "booting"} for p in here.glob("node-*")]
    print(json.dumps({"nodes": nodes}))
"""
"""Its nodes never come up, and from a moment on it does nothing."""


def test_nodes_do_not_come_and_then_the_connector_fails(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "nodes").mkdir()
    (tmp_path / "connector.py").write_text(CONNECTOR)
    run = f'run = ["{sys.executable}", "{tmp_path}/connector.py", "{tmp_path}/nodes"]'
    config = scaling(tmp_path, f"[scaling.command]\n{run}\n", rule='"static"', connector='"command"', call_tries="1")
    gateway = Child("gateway", "gateway", {**GATEWAY, "config": config}, tmp_path)
    gateway.start()
    try:
        gateway.wait_ready(time.monotonic() + 60.0)
        prometheus = watch(Processes(gateway, []))
        fires(prometheus, "NoNodeUp", "ScalingStuck")
        (tmp_path / "nodes" / "broken").touch()
        fires(prometheus, "NoNodeUp", "ScalingStuck", "ScalingConnectorFails")
    finally:
        gateway.signal(signal.SIGTERM)
        if gateway.wait(20.0) is None:
            gateway.kill()


RULE = """
from gateway.core.scale.rules.static import Static


class Mistaken(Static):
    name = "mistaken"

    def tick(self, fleet, now_s):
        raise ZeroDivisionError("one over none")
"""


def test_a_scaling_rule_fails(make_cluster: MakeCluster, watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "mistaken.py").write_text(RULE)
    config = scaling(tmp_path, "", rule=f'"{tmp_path}/mistaken.py"', connector='"advise"')
    prometheus = watch(make_cluster(nodes=1, predictor=PAGE, gateway={"config": config}))
    fires(prometheus, "ScalingRuleFails")


def test_two_gateways_decide_on_scaling(make_cluster: MakeCluster, watch: Watch, tmp_path: Path) -> None:
    config = scaling(tmp_path, "", rule='"static"', connector='"advise"')
    clusters = [make_cluster(nodes=1, predictor=PAGE, gateway={"config": config}) for _ in range(2)]
    fires(watch(*clusters), "ScalingLeaders")


def test_every_alert_has_been_caused(request: pytest.FixtureRequest) -> None:
    others = [item for item in request.session.items if item.path == request.path]
    if len(others) < 15:
        pytest.skip("only after all the others of this file")
    assert {rule["alert"] for rule in ALERTS} - caused == set()

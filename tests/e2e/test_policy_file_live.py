"""A policy, a workload and a profile, each in a file of one's own, in running processes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from bench.run.live import local_cluster
from deploy.cli import main
from deploy.local_cluster import ClusterSpec, LocalCluster
from protos.v1 import astrolabe_dispatch_pb2 as pb
from tests.e2e.cluster import MakeCluster, listed, make_cluster

__all__ = ["make_cluster"]

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "bench" / "examples" / "soonest_token.py"
WORKLOAD = ROOT / "bench" / "examples" / "lunch_peak.py"

EXPERIMENT = f"""
name = "mine"
title = "Mine"
system = "own"
source = "nobody"
status = "live"
[[variants]]
name = "a"
values = {{ policy = "random" }}
[[variants]]
name = "b"
values = {{ policy = "{EXAMPLE}" }}
[[claims]]
what = "memory"
variant = "b"
measure = "predictor_rss_mib"
[live]
values = {{ nodes = 1, requests = 12, dataset = "{WORKLOAD}", profile = "./fast.json" }}
axes = {{ rate_per_s = [4.0] }}
time_scale = 10.0
"""


def write_fast_profile(path: Path) -> None:
    """An A30 whose linear layers take half the time."""
    profile = json.loads((ROOT / "simcore/profiles/a30-llama-2-7b.json").read_text())
    profile["name"] = "mine/fast"
    profile["dense"]["seconds"] = [s / 2 for s in profile["dense"]["seconds"]]
    path.write_text(json.dumps(profile))


def test_the_processes_of_a_live_experiment_run_all_three_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles: set[str] = set()

    @contextlib.contextmanager
    def asked_for_its_profiles(console: Console, spec: ClusterSpec) -> Iterator[LocalCluster]:
        with local_cluster(console, spec) as cluster:
            with cluster.stub() as stub:
                profiles.update(node.profile for node in listed(stub).values())
            yield cluster

    monkeypatch.setattr("bench.experiments.live.local_cluster", asked_for_its_profiles)
    monkeypatch.chdir(tmp_path)
    write_fast_profile(Path("fast.json"))
    Path("mine.toml").write_text(EXPERIMENT)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "experiment", "mine.toml", "--live", "--output", "e", "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    report = json.loads(out)[0]
    assert report["runs"] == 2
    runs = [json.loads(line) for line in Path("e/mine-live/runs.jsonl").read_bytes().splitlines()]
    assert [(run["mode"], run["measures"]["completed_share"]) for run in runs] == [("live", 1.0)] * 2
    assert all(run["measures"]["predictor_rss_mib"] > 10 for run in runs)
    assert profiles == {"mine/fast"}
    agreement = Path("e/mine-live/agreement.md").read_text()
    assert "of 8 values agree within the bar" in agreement
    assert "| b | 4 | E2E mean, s |" in agreement
    assert "- b, 4/s, seed 0: a decision " in agreement
    assert "memory" in Path("e/mine-live/mine.claim").read_text()
    with pytest.raises(SystemExit):
        main(["bench", "report", "e"])
    page = Path("e/report.html").read_text()
    assert "simulated beside live" in page
    assert "2 live runs, 1 seed, commit" in page


def test_a_gateway_that_was_started_with_a_file_decides_by_it(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=2, predictor={"time_scale": 20.0}, gateway={"policy": str(EXAMPLE)})
    with cluster.stub() as stub:
        assert stub.SetPolicy(pb.SetPolicyRequest(policy="random"), timeout=5).previous == "soonest_token"
        assert stub.SetPolicy(pb.SetPolicyRequest(policy="soonest_token"), timeout=5).previous == "random"

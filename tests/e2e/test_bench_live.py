"""`astrolabe bench replay` and `compare` against real processes: what is reported is what was sent and what came."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.measure.results import Summary
from bench.run.files import read_results
from bench.run.live import LATE_EVENT, lateness_warnings
from deploy.cli import main
from deploy.local_cluster import ClusterSpec, LocalCluster
from engine_adapters import emulated
from gateway.core.events import Arrived
from gateway.core.recording import Entry
from protos.v1 import astrolabe_dispatch_pb2 as pb
from simcore.types import Outcome
from tests.e2e.cluster import MakeCluster, is_idle, make_cluster, until

__all__ = ["make_cluster"]

pytestmark = pytest.mark.e2e

SPEED = 20.0
LENGTHS = [(40, 12), (700, 3), (5, 60), (120, 1), (16, 25)]


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five requests: four of token counts, the last one a text of 16 bytes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = [{"prompt_tokens": prompt, "output_tokens": output} for prompt, output in LENGTHS[:-1]]
    file = tmp_path / "five.jsonl"
    text = {"workload": "sixteen letters!", "output_tokens": LENGTHS[-1][1]}
    file.write_text("\n".join(json.dumps(line) for line in [*lines, text]))
    return file


def bench(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Runs `astrolabe bench … --json` and returns what it printed."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", *(str(a) for a in arguments), "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


def test_a_replay_measures_every_request_and_leaves_the_gateway_as_it_was(
    make_cluster: MakeCluster, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = make_cluster(nodes=2, predictor={"time_scale": SPEED})
    output = tmp_path / "results" / "run.jsonl"
    document = bench(
        capsys, "replay", "--gateway", cluster.address, "--dataset", "jsonl", "--dataset-path", dataset,
        "--tokenizer", "bytes", "--rate", 4, "--requests", 20, "--time-scale", SPEED, "--in-order", "--seed", 3,
        "--policy", "min_lunmnix_load", "--output", output,
    )  # fmt: skip
    summary = msgspec.convert(document["summary"], Summary)
    assert summary.outcomes == {"length": 20}
    assert set(summary.nodes) == {"node-0", "node-1"}
    assert summary.preemptions == 0
    for measured in (
        summary.ttft_s, summary.e2e_s, summary.tpot_s, summary.lateness_s, summary.inter_token_s, summary.delivery_s,
    ):  # fmt: skip
        assert measured is not None
        assert measured.mean > 0
    assert summary.decision_s is not None
    assert summary.decision_s.count == 20
    assert summary.offered_rate_per_s == pytest.approx(4, rel=0.6)
    head, results = read_results(output)
    assert (head.seed, head.config["policy"]) == (3, "llumnix_freeness")
    assert [(r.prompt_tokens, r.output_tokens) for r in results] == LENGTHS * 4
    assert all(r.e2e_s is not None and r.ttft_s is not None and r.e2e_s >= r.ttft_s > 0 for r in results)
    assert all(r.sent_s is not None and r.sent_s >= r.arrival_s for r in results)
    # Sixty tokens take at least 59 steps; none is faster than streaming the weights once (0.014 s on this profile). A
    # busy machine can only make the end later.
    assert all(r.e2e_s is not None and r.e2e_s > 59 * 0.01 for r in results if r.output_tokens == 60)
    with cluster.stub() as stub:
        assert stub.ListNodes(pb.ListNodesRequest()).policy == "min_total_latency"
        until(lambda: is_idle(stub), what="an idle cluster after the replay")


def test_a_replay_that_does_not_tell_lengths_leaves_them_to_the_gateways_own_belief(
    make_cluster: MakeCluster, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "decisions.jsonl"
    cluster = make_cluster(nodes=1, predictor={"time_scale": SPEED}, gateway={"record": log})
    output = tmp_path / "run.jsonl"
    document = bench(
        capsys, "replay", "--gateway", cluster.address, "--dataset", "jsonl", "--dataset-path", dataset,
        "--tokenizer", "bytes", "--rate", 10, "--requests", 10, "--time-scale", SPEED, "--in-order",
        "--lengths", "none", "--output", output,
    )  # fmt: skip
    assert document["summary"]["outcomes"] == {"stop": 10}, "answers end by themselves, not at a limit"
    _, results = read_results(output)
    assert [r.output_tokens for r in results] == [tokens for _, tokens in LENGTHS] * 2
    cluster.stop()
    entries = [msgspec.json.decode(line, type=Entry) for line in log.read_bytes().splitlines()[1:]]
    shapes = [e.event.request for e in entries if isinstance(e.event, Arrived)]
    assert {s.belief_source for s in shapes} == {"hashed"}
    assert {s.max_output_tokens for s in shapes} == {2048}, "the limit says nothing"


def test_a_replay_counts_what_fails(
    make_cluster: MakeCluster, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = make_cluster(nodes=1, predictor={"time_scale": 1.0})
    output = tmp_path / "run.jsonl"
    document = bench(
        capsys, "replay", "--gateway", cluster.address, "--dataset", "jsonl", "--dataset-path", dataset,
        "--tokenizer", "bytes", "--rate", 50, "--requests", 5, "--in-order", "--timeout", 0.8, "--output", output,
    )  # fmt: skip
    outcomes = document["summary"]["outcomes"]
    assert outcomes["deadline"] >= 1, "sixty tokens cannot be had within 0.8 s on this profile"
    assert sum(outcomes.values()) == 5
    _, results = read_results(output)
    late = [r for r in results if r.outcome is Outcome.DEADLINE]
    assert all(r.e2e_s is None and "within 0.8 s" in r.detail for r in late)
    with cluster.stub() as stub:
        until(lambda: is_idle(stub), what="an idle cluster: leaving a call stops the engine's work for it")


def test_a_comparison_runs_the_same_requests_under_each_policy_and_draws_them(
    make_cluster: MakeCluster, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = make_cluster(nodes=2, predictor={"time_scale": SPEED})
    picture, folder = tmp_path / "out" / "c.png", tmp_path / "runs"
    document = bench(
        capsys, "compare", "--gateway", cluster.address, "--dataset", "jsonl", "--dataset-path", dataset,
        "--tokenizer", "bytes", "--rate", 4, "--requests", 10, "--time-scale", SPEED, "--policy",
        "round_robin,min_total_latency", "--plot", picture, "--output", folder,
    )  # fmt: skip
    assert [run["policy"] for run in document["runs"]] == ["round_robin", "min_total_latency"]
    assert all(run["summary"]["completed"] == 10 for run in document["runs"])
    assert document["runs"][0]["summary"]["nodes"] == {"node-0": 5, "node-1": 5}
    assert {run["router"] for run in document["runs"]} == {f"router of the gateway at {cluster.address}"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    sent = [
        [(r.request_id, r.arrival_s, r.prompt_tokens, r.output_tokens) for r in read_results(file)[1]]
        for file in (folder / "round_robin-4-0.jsonl", folder / "min_total_latency-4-0.jsonl")
    ]
    assert sent[0] == sent[1]


# Three processes start: more than the usual minute on a busy machine.
def test_a_comparison_starts_a_fleet_of_two_models_and_tells_by_group(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "two.toml"
    fleet.write_text(
        """
        [[group]]
        count = 1
        profile = "a30/llama-2-7b"
        price_per_hour = 1.0
        [[group]]
        name = "new"
        count = 1
        profile = "h100/qwen2-7b"
        max_num_seqs = 4
        price_per_hour = 3.0
        """
    )
    document = bench(
        capsys, "compare", "--fleet", fleet, "--models", "llama-2-7b=1,qwen2-7b=1", "--dataset", "jsonl",
        "--dataset-path", dataset, "--tokenizer", "bytes", "--rate", 4, "--requests", 12, "--time-scale", SPEED,
        "--policy", "round_robin", "--plot", tmp_path / "c.png", "--output", tmp_path / "runs",
    )  # fmt: skip
    (run,) = document["runs"]
    old, new = run["groups"]
    assert (old["name"], old["model"], new["name"], new["model"]) == ("a30", "llama-2-7b", "new", "qwen2-7b")
    assert run["summary"]["completed"] == old["completed"] + new["completed"] == 12
    assert run["summary"]["nodes"] == {"a30-0": old["requests"], "new-0": new["requests"]}
    assert run["price"]["per_hour"] == 4.0


def test_engines_that_fell_behind_are_told_of_by_name(tmp_path: Path) -> None:
    cluster = LocalCluster(ClusterSpec(nodes=2), tmp_path)
    cluster.nodes[0].log_path.write_text('{"event": "node is up"}\nnot JSON\n')
    lines = [{"event": LATE_EVENT, "late_s": late_s, "level": "warning"} for late_s in (0.06, 0.08)]
    cluster.nodes[1].log_path.write_text("\n".join(json.dumps(line) for line in lines))
    (warning,) = lateness_warnings(cluster)
    assert warning.startswith("the engine of node-1 fell behind its schedule, by up to 80 ms")
    assert f'log.warning("{LATE_EVENT}"' in inspect.getsource(emulated), "the words that an engine really logs"

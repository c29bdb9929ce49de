"""Whatever a scaler did, a fresh one does again from the recorded events alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import bench.simcluster.scaling
from bench.simcluster import SimCluster
from bench.simcluster.scaling import ConnectorFails, ScaledFleet, ScaledGroup
from bench.simcluster.start_time import StartTime, parse_start_time
from gateway.core.recording import RecordingError
from gateway.core.router import RouterConfig
from gateway.core.scale.config import Objective, ScaleConfig, ScaleGroup
from gateway.core.scale.events import AnyScaleAction, AnyScaleEvent
from gateway.core.scale.recording import ScalerSetup, entry_line, header_line, read_header, replay
from gateway.core.scale.scaler import Scaler
from tests.helpers.scaling_rules import SHIPPED
from tests.helpers.simulated import cluster_nodes, poisson

ROOT = Path(__file__).resolve().parents[2]


def recorded(monkeypatch: pytest.MonkeyPatch, rule: str) -> list[bytes]:
    """A run in which starts fail, nodes vanish and the connector goes away for a while."""
    lines: list[bytes] = []

    class Recorded(Scaler):
        def __init__(self, config: ScaleConfig, **changes: Any) -> None:
            super().__init__(config, **changes)
            lines.append(header_line(ScalerSetup(config=config)))

        def handle(self, event: AnyScaleEvent, now_s: float) -> list[AnyScaleAction]:
            actions = super().handle(event, now_s)
            lines.append(entry_line(now_s, event, actions))
            return actions

    monkeypatch.setattr(bench.simcluster.scaling, "Scaler", Recorded)
    start: StartTime = parse_start_time("10")
    config = ScaleConfig(
        rule=rule,
        options={"upscale_delay_seconds": 0.0, "target_qps_per_replica": 1.0} if rule == "qps" else {},
        groups=(ScaleGroup(name="n", min=1, max=5, cold_start_s=10.0),),
        objective=Objective(ttft_s=0.3, tpot_s=0.05, e2e_s=5.0),
    )
    group = ScaledGroup(node=cluster_nodes(1)[0], start_time=start, nodes=2, failed_starts=0.3, vanish_s=100.0)
    world = [(20.0, ConnectorFails(how=("list",))), (30.0, ConnectorFails())]
    policy = "min_new_request_latency" if rule == "preemptive" else "least_requests"
    SimCluster([], RouterConfig(policy=policy), scaled=ScaledFleet(config=config, groups={"n": group})).run(
        poisson(500, 8.0), world
    )
    return lines


@pytest.mark.parametrize("rule", SHIPPED)
def test_a_fresh_scaler_answers_every_event_as_the_first_did(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = recorded(monkeypatch, rule)
    assert len(lines) > 1500
    assert any(b'"StartNode"' in line or b'"StopNode"' in line for line in lines)
    assert replay(lines) == []


def test_another_process_with_other_hashes_answers_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"".join(recorded(monkeypatch, "service_level")))
    code = "import sys; from gateway.core.scale.recording import replay; print(replay(open(sys.argv[1], 'rb')))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_changed_decision_is_found_where_it_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = recorded(monkeypatch, "static")
    at = next(i for i, line in enumerate(lines) if b'"StartNode"' in line)
    entry = msgspec.json.decode(lines[at])
    entry[2][0]["node_id"] = "elsewhere"
    lines[at] = msgspec.json.encode(entry) + b"\n"
    (found,) = replay(lines)
    assert found.line == at + 1
    assert "StartNode(elsewhere)" in str(found)


def test_another_rule_is_another_history(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = recorded(monkeypatch, "static")
    setup = read_header(lines[0])
    config = msgspec.structs.replace(setup.config, rule="freeness", options={})
    lines[0] = header_line(msgspec.structs.replace(setup, config=config))
    assert replay(lines)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "the recording is empty"),
        ([b'{"astrolabe_recording":1,"config":{}}\n'], "line 1: not the head of a recording"),
        ([b'{"astrolabe_scaling_recording":9,"config":{}}\n'], "recording format 9, this version reads 1"),
    ],
)
def test_what_is_no_recording_of_a_scaler_is_refused(lines: list[bytes], words: str) -> None:
    with pytest.raises(RecordingError, match=words):
        replay(lines)

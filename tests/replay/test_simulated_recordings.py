"""Whatever a router did, a fresh one does again from the recorded events alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from bench.simcluster import Delays, SimCluster
from gateway.core import events as ev
from gateway.core.decision.policies.registry import policy_names
from gateway.core.recording import RecordingError, entry_line, header_line, read_header, replay
from gateway.core.router import RouterConfig
from tests.helpers.simulated import cluster_nodes, poisson

ROOT = Path(__file__).resolve().parents[2]


def recorded(policy: str, *, delays: Delays | None = None, seed: int = 0) -> list[bytes]:
    """A run with all that can happen to a cluster: a node breaks and comes back, one drains, one gets an adapter,
    clients leave."""
    config = RouterConfig(policy=policy, seed=seed, sample=2 if policy == "min_total_latency" else 0)
    lines = [header_line(config)]

    def note(now_s: float, event: ev.AnyEvent, actions: Sequence[ev.AnyAction]) -> None:
        lines.append(entry_line(now_s, event, actions))

    nodes = cluster_nodes(4)
    world: list[tuple[float, ev.AnyEvent]] = [
        (1.0, ev.NodeLost(node_id="n1", detail="power")),
        (1.5, ev.DrainAsked(node_id="n2")),
        (2.0, ev.NodeJoined(node_id="n1", config=nodes[1].config)),
        (2.2, ev.NodeServes(node_id="n3", names=(nodes[3].config.model, "adapter"))),
        (2.3, ev.AdaptersUsed(node_id="n3", names=("adapter",))),
        (2.5, ev.ClientGone(request_id="r20")),
        (3.0, ev.PolicySet(policy="power_of_two")),
        (3.5, ev.PolicySet(policy=policy)),
    ]
    SimCluster(nodes, config, delays, observe=note).run(poisson(80, 20.0), world)
    return lines


@pytest.mark.parametrize("policy", policy_names())
def test_a_fresh_router_answers_every_event_as_the_first_did(policy: str) -> None:
    lines = recorded(policy)
    assert len(lines) > 300
    assert replay(lines) == []


def test_late_forecasts_and_fallbacks_replay_too() -> None:
    lines = recorded("min_new_request_latency", delays=Delays(forecast_s=0.0493, network_one_way_s=0.0004))
    assert any(b"stepped in" in line for line in lines)
    assert replay(lines) == []


def test_another_process_with_other_hashes_answers_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"".join(recorded("session")))
    code = "import sys; from gateway.core.recording import replay; print(replay(open(sys.argv[1], 'rb')))"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_text_lines_are_read_as_well() -> None:
    assert replay([line.decode() for line in recorded("random")]) == []


def test_a_changed_decision_is_found_where_it_happened() -> None:
    lines = recorded("min_total_latency")
    at = next(i for i, line in enumerate(lines) if b'"Dispatch"' in line)
    entry = msgspec.json.decode(lines[at])
    (dispatch,) = [action for action in entry[2] if action["type"] == "Dispatch"]
    dispatch["node_id"] = "elsewhere"
    lines[at] = msgspec.json.encode(entry) + b"\n"
    (found,) = replay(lines)
    assert found.line == at + 1
    assert "Dispatch(elsewhere)" in str(found)


def test_another_seed_is_another_history() -> None:
    lines = recorded("random")
    lines[0] = header_line(msgspec.structs.replace(read_header(lines[0]), seed=1))
    assert len(replay(lines, limit=5)) == 5


def test_an_event_that_the_router_rejects_is_a_divergence_with_its_reason() -> None:
    lines = recorded("random")
    arrived = next(line for line in lines if b'"Arrived"' in line)
    found = replay([*lines[: lines.index(arrived) + 1], arrived])
    assert [d.line for d in found] == [lines.index(arrived) + 2]
    assert "live already" in found[0].error
    assert "live already" in str(found[0])


def test_the_torn_last_line_of_a_killed_gateway_is_no_error() -> None:
    lines = recorded("random")
    assert replay([*lines[:50], lines[50][:-9]]) == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "the recording is empty"),
        ([b"{}\n"], "line 1: not the head of a recording"),
        ([b"no json\n"], "line 1: not the head of a recording"),
        ([b'{"astrolabe_recording":99,"config":{}}\n'], "recording format 99, this version reads 1"),
        ([header_line(RouterConfig()), b"[1.0]\n"], "line 2: not an entry of a recording"),
        ([header_line(RouterConfig()), b'[1.0,{"type":"Unheard"},[]]\n'], "line 2: not an entry of a recording"),
    ],
)
def test_what_is_no_recording_is_refused_with_its_line(lines: list[bytes], words: str) -> None:
    with pytest.raises(RecordingError, match=words):
        replay(lines)

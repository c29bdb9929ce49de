"""What a live gateway recorded, a fresh router answers in the same way: live and simulated routers are one."""

from __future__ import annotations

import concurrent.futures
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from gateway.core.recording import Entry, replay
from gateway.core.scale.recording import replay as replay_scaler
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from tests.e2e.cluster import MakeCluster, is_idle, until

pytestmark = pytest.mark.e2e


def test_a_live_recording_replays_to_equal_actions(make_cluster: MakeCluster, tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    cluster = make_cluster(nodes=3, gateway={"record": path, "seed": 11, "sample": 2})
    rng = random.Random(5)
    plans = [(rng.randint(1, 40), rng.choice(["", "random", "round_robin", "power_of_two"])) for _ in range(60)]
    with cluster.stub() as stub:

        def send(plan: tuple[int, str]) -> int:
            tokens, policy = plan
            sampling = types_pb.SamplingParams(max_tokens=tokens, ignore_eos=True)
            request = pb.GenerateRequest(text="what is it?" * tokens, sampling=sampling, policy=policy)
            return sum(len(c.token_ids) for c in stub.Generate(request, timeout=40))

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            for plan, count in zip(plans, pool.map(send, plans), strict=True):
                assert count == plan[0]
        leaver = stub.Generate(_long(), timeout=40)
        next(leaver)
        leaver.cancel()
        stub.SetPolicy(pb.SetPolicyRequest(policy="infaas"), timeout=5)
        stub.Drain(pb.DrainRequest(node_id="node-1"), timeout=5)
        send((7, ""))
        with pytest.raises(grpc.RpcError):
            send_too_long(stub)
        until(lambda: is_idle(stub), what="everything at rest")
    cluster.stop()

    lines = path.read_bytes().splitlines(keepends=True)
    assert replay(lines) == []
    entries = [msgspec.json.decode(line, type=Entry) for line in lines[1:]]
    seen = Counter(type(e.event).__name__ for e in entries) + Counter(
        type(a).__name__ for e in entries for a in e.actions
    )
    assert seen["Arrived"] == seen["Finish"] == 63
    assert seen["Dispatch"] == 62
    for kind in ("NodeJoined", "LoadNoted", "ForecastArrived", "TokensSeen", "StreamEnded", "ClientGone", "Abort"):
        assert seen[kind], f"the run never had {kind}"
    assert all(a.now_s <= b.now_s for a, b in itertools.pairwise(entries))


def test_an_earlier_recording_is_kept(make_cluster: MakeCluster, tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_text("precious")
    make_cluster(nodes=1, gateway={"record": path})
    assert (tmp_path / "decisions.jsonl.old").read_text() == "precious"
    until(lambda: b"NodeJoined" in path.read_bytes(), what="flushed without an end")


def _long() -> pb.GenerateRequest:
    return pb.GenerateRequest(text="hello", sampling=types_pb.SamplingParams(max_tokens=1900, ignore_eos=True))


def send_too_long(stub: Any) -> None:
    list(stub.Generate(pb.GenerateRequest(text="x" * 4000), timeout=10))


SCALING = """
[scaling]
rule = "service_level"
tick_s = 0.2
options = { service_level = 2.0, hold_s = 1.0, windows_s = [1.0], tune_interval = 0.2 }

[[scaling.group]]
name = "node"
min = 1
max = 4
"""


def test_what_a_live_scaler_heard_and_wanted_replays_too(make_cluster: MakeCluster, tmp_path: Path) -> None:
    path, settings = tmp_path / "decisions.jsonl", tmp_path / "gateway.toml"
    settings.write_text(SCALING)
    cluster = make_cluster(nodes=2, gateway={"record": path, "config": settings})
    with cluster.stub() as stub:
        sampling = types_pb.SamplingParams(max_tokens=5, ignore_eos=True)
        for _ in range(20):
            list(stub.Generate(pb.GenerateRequest(text="what is it?", sampling=sampling), timeout=40))
    recording = path.with_name("decisions.jsonl.scaling")
    # Written every second.
    until(lambda: recording.read_bytes().count(b'"FleetSeen"') > 5, what="ticks in the recording")
    cluster.stop()
    lines = recording.read_bytes().splitlines(keepends=True)
    assert replay_scaler(lines) == []
    for kind in (b"RequestCame", b"RequestPlaced", b"RequestDone", b"NodesListed", b"FleetSeen"):
        assert any(b'"%s"' % kind in line for line in lines), kind

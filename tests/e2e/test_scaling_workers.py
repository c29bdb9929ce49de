"""Real processes: the workers of one gateway scale nodes, one of them leads, and any of them is asked."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from deploy.local_cluster import Child
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from tests.e2e.cluster import until

pytestmark = pytest.mark.e2e

STARTED_S = 60.0
"""What a node with an emulated engine gets to be up on a busy machine."""
CONNECTIONS = 8
SCALING = """
workers = 2
[scaling]
rule = "concurrency"
connector = "local"
tick_s = 0.5
lease_s = 1.5
[scaling.options]
preset = "ray_serve"
[scaling.local]
folder = "{folder}"
options = {{ tokenizer = "bytes", time_scale = 5.0 }}
[[scaling.group]]
name = "g"
profile = "a30/llama-2-7b"
min = 0
max = 1
max_num_seqs = 16
num_blocks = 600
max_model_len_tokens = 2048
"""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Child]:
    """With two workers."""
    config = tmp_path / "gateway.toml"
    config.write_text(SCALING.format(folder=tmp_path / "nodes"))
    options = {"config": config, "tokenizer": "bytes", "listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0"}
    child = Child("gw", "gateway", {**options, "record": tmp_path / "record.jsonl"}, tmp_path)
    try:
        child.start()
        child.wait_ready(time.monotonic() + STARTED_S)
        yield child
    finally:
        child.signal(signal.SIGTERM)
        child.wait(20.0)
        child.kill()
        for path in (tmp_path / "nodes").glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(path.read_text()), signal.SIGKILL)


def metric(gateway: Child, name: str) -> list[float]:
    page = urllib.request.urlopen(f"http://{gateway.http_address}/metrics", timeout=5).read().decode()
    return [float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name)]


def test_the_workers_of_a_gateway_scale_as_one(gateway: Child, tmp_path: Path) -> None:
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    with contextlib.ExitStack() as stack:
        channels = [grpc.insecure_channel(gateway.address, options=own_connection) for _ in range(CONNECTIONS)]
        stubs = [DispatchStub(stack.enter_context(channel)) for channel in channels]
        sampling = types_pb.SamplingParams(max_tokens=4, ignore_eos=True)
        calls = [stub.Generate(pb.GenerateRequest(text="hello", sampling=sampling)) for stub in stubs]
        for call in calls:
            assert float(dict(call.initial_metadata())["x-astrolabe-wait-s"]) > 0
            assert list(call)[-1].outcome == types_pb.OUTCOME_LENGTH
        assert len(psutil.Process(gateway.pid).children()) == 2

        def one_leads() -> bool:
            said = [stub.ExplainScaling(pb.ExplainScalingRequest(decisions=5), timeout=5) for stub in stubs]
            return all(explained.leads for explained in said)

        until(one_leads, what="whoever is asked, the one that leads tells")
    assert metric(gateway, "astrolabe_scaling_leads") == [1.0]
    assert len(metric(gateway, "astrolabe_desired_nodes")) == 1
    assert sum(metric(gateway, 'astrolabe_scaling_actions_total{action="start"')) >= 1
    assert len(list(tmp_path.glob("record.jsonl.w*.scaling"))) == 2
    assert len(list((tmp_path / "nodes").glob("*.log"))) == 1, "one node, whoever asked for it"

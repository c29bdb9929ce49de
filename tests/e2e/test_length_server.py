"""`astrolabe length serve` as a process, asked over gRPC."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.v1 import astrolabe_length_pb2 as pb
from protos.v1 import astrolabe_length_pb2_grpc as pb_grpc

pytestmark = pytest.mark.e2e


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    ready = tmp_path / "ready"
    command = "from deploy.cli import LENGTH; LENGTH(prog_name='astrolabe length')"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    )
    try:
        deadline = time.monotonic() + 40
        while not (ready.exists() and ready.read_text().endswith("\n")):
            assert process.poll() is None, "the server ended before it was ready"
            assert time.monotonic() < deadline, "the server was not ready in 40 s"
            time.sleep(0.02)
        yield ready.read_text().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_beliefs_over_the_wire_learn_from_what_comes(address: str) -> None:
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", 1 << 26)]) as channel:
        stub = pb_grpc.LengthStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        served = health.Check(health_pb2.HealthCheckRequest(service="astrolabe.v1.Length"), timeout=20)
        assert served.status == health_pb2.HealthCheckResponse.SERVING

        queries = [
            pb.LengthQuery(prompt="Write a detailed essay of 800 words about lighthouses"),
            pb.LengthQuery(prompt="yes or no: is it raining?", max_tokens=64),
            pb.LengthQuery(prompt="go on", produced_tokens=300),
            pb.LengthQuery(prompt="x" * 1_000_000),
            pb.LengthQuery(),
        ]
        found = stub.PredictLengths(pb.PredictLengthsRequest(queries=queries), timeout=30).predictions
        essay, word, running, *_ = found
        assert essay.p50_tokens > 2 * word.p50_tokens
        assert max(word.belief.atoms_tokens) <= 64
        assert min(running.belief.atoms_tokens) > 300
        assert running.remaining_p50_tokens == running.p50_tokens - 300
        assert not any(p.prior for p in found)

        query = pb.LengthQuery(prompt="tell me", model="terse")
        before = stub.PredictLengths(pb.PredictLengthsRequest(queries=[query]), timeout=30).predictions[0]
        told = [pb.ObservedLength(query=query, output_tokens=5) for _ in range(300)]
        told.append(pb.ObservedLength(query=query, output_tokens=0))
        assert stub.ObserveLengths(pb.ObserveLengthsRequest(observed=told), timeout=30).taken == 300
        after = stub.PredictLengths(pb.PredictLengthsRequest(queries=[query]), timeout=30).predictions[0]
        assert after.p50_tokens < before.p50_tokens

        info = stub.DescribeLengthModel(pb.DescribeLengthModelRequest(), timeout=10)
        assert info.name == "hashed"
        assert len(info.sha256) == 64
        assert info.observed == 300
        assert info.priors == 0

        with pytest.raises(grpc.RpcError, match="at most 1024"):
            stub.PredictLengths(pb.PredictLengthsRequest(queries=[query] * 1025), timeout=30)

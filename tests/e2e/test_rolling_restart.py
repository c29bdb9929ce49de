"""Real processes under load: every node and both gateways are restarted, one after the other, and no request fails."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from deploy.commands.drain import drain
from deploy.local_cluster import Child, LocalCluster
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from tests.e2e.cluster import MakeCluster, is_idle, listed, until

pytestmark = pytest.mark.e2e

NODES = 3
CLIENTS = 12
TOKENS = 150
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": "astrolabe.v1.Dispatch"},
    "methodConfig": [
        {
            "name": [{"service": "astrolabe.v1.Dispatch"}],
            "waitForReady": True,
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
"""What gateway/README.md tells clients of several gateways: go round those that say they serve, wait while none does,
and try again what one could not take."""
RECONNECT = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]


class Load:
    """Clients that send one request after the other until told to stop, and keep what went wrong."""

    def __init__(self, addresses: list[str]) -> None:
        target = "ipv4:" + ",".join(addresses)
        options = [("grpc.service_config", json.dumps(SERVICE_CONFIG)), *RECONNECT]
        self._channel = grpc.insecure_channel(target, options=options)
        self._stop = threading.Event()
        self.done = 0
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._client, args=(i,), daemon=True) for i in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        deadline_s = time.monotonic() + 70.0
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        self.failures += ["a call outlasts its deadline" for thread in self._threads if thread.is_alive()]
        self._channel.close()

    def _client(self, index: int) -> None:
        stub = DispatchStub(self._channel)
        round_ = 0
        while not self._stop.is_set():
            round_ += 1
            prompt = f"client {index} asks for the {round_}th time"
            sampling = types_pb.SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0.0)
            try:
                chunks = list(stub.Generate(pb.GenerateRequest(text=prompt, sampling=sampling), timeout=60.0))
            except grpc.RpcError as error:
                self.failures.append(f"{prompt}: {error.code()} {error.details()}")
                continue
            tokens = sum(len(chunk.token_ids) for chunk in chunks)
            if tokens != TOKENS or chunks[-1].usage.output_tokens != TOKENS:
                self.failures.append(f"{prompt}: {tokens} tokens, usage {chunks[-1].usage.output_tokens}")
            self.done += 1


def restart(child: Child) -> None:
    child.signal(signal.SIGTERM)
    assert child.wait(20.0) == 0, child.last_words()
    child.start()
    child.wait_ready(time.monotonic() + 90.0)


def restart_node(cluster: LocalCluster, gateways: list[Child], node: Child) -> None:
    for gateway in gateways:
        out = CliRunner().invoke(
            drain, [node.name, "--wait", "--grace", "0.2", "--timeout", "30", "--gateway", gateway.address]
        )
        assert out.exit_code == 0, out.output
    restart(node)
    for gateway in gateways:
        with grpc.insecure_channel(gateway.address) as channel:
            stub = DispatchStub(channel)
            until(lambda stub=stub: listed(stub)[node.name].status in ("up", "draining"), what="it is back")  # type: ignore[misc]
            stub.Drain(pb.DrainRequest(node_id=node.name, undo=True), timeout=5.0)


def test_a_rolling_restart_of_nodes_and_gateways_fails_no_request(make_cluster: MakeCluster, tmp_path: Path) -> None:
    engine = {"time_scale": 4.0, "max_num_seqs": 16, "num_blocks": 2000}
    # Long enough for an answer on a machine with other work.
    cluster = make_cluster(nodes=NODES, predictor=engine, gateway={"drain_grace_s": 15.0})
    other = Child("gateway-2", "gateway", {**cluster.gateway.options, "gateway_id": "two"}, tmp_path)
    other.start()
    other.wait_ready(time.monotonic() + 30.0)
    gateways = [cluster.gateway, other]
    try:
        with Load([gateway.address for gateway in gateways]) as load:
            until(lambda: load.done >= CLIENTS, what="requests run")
            for child in [*cluster.nodes, *gateways]:
                done = load.done
                if child in gateways:
                    restart(child)
                    cluster.wait_nodes_up(time.monotonic() + 20.0)
                else:
                    restart_node(cluster, gateways, child)
                until(lambda done=done: load.done > done + CLIENTS, deadline_s=30.0, what="requests still run")  # type: ignore[misc]
        assert load.failures == []
        for gateway in gateways:
            with grpc.insecure_channel(gateway.address) as channel:
                stub = DispatchStub(channel)
                until(lambda stub=stub: is_idle(stub), what="all counters are back at zero")  # type: ignore[misc]
    finally:
        other.kill()

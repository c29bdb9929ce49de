"""`astrolabe up` and the commands that talk to what it started, each a process as a user runs it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import openai
import psutil
import pytest

from tests.e2e.cluster import until

pytestmark = pytest.mark.e2e

UP = ["up", "--nodes", "2", "--port", "0", "--json", "--tokenizer", "bytes", "--time-scale", "20"]


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "deploy.cli", *args]


class Running:
    """`astrolabe up` with what it said of itself."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(command(*UP), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watchdog = threading.Timer(50, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        watchdog.cancel()
        assert line, self.process.stderr.read() if self.process.stderr else ""
        self.said: dict[str, Any] = json.loads(line)
        self.pids: dict[str, int] = self.said["pids"]

    def run(self, *args: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(*args, "--gateway", self.said["gateway"]),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def end(self) -> tuple[int, str]:
        """Its exit code and standard error, once it has ended."""
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


@pytest.fixture
def up() -> Iterator[Running]:
    running = Running()
    yield running
    running.process.kill()
    running.process.communicate()
    # Children die with their parent, even with one that is killed.
    until(lambda: not any(psutil.pid_exists(p) for p in running.pids.values()), what="no orphans")


def test_a_person_tries_every_command(up: Running) -> None:
    asked = up.run("request", "Why is the sky blue?", "--max-tokens", "12", "--request-id", "sky")
    assert asked.stdout.strip()
    assert "astrolabe explain sky" in asked.stderr
    piped = json.loads(up.run("request", "-", "--json", "--max-tokens", "7", stdin="from a pipe").stdout)
    assert piped["prompt_tokens"] == len("from a pipe")
    assert piped["output_tokens"] <= 7
    assert piped["node"] in ("node-0", "node-1")
    assert 0 < piped["ttft_s"] <= piped["e2e_s"]

    explained = up.run("explain", "sky").stdout
    assert "min_total_latency" in explained
    assert "→" in explained
    assert "what happened: " in explained
    document = json.loads(up.run("explain", "sky", "--json").stdout)
    assert len(document["decisions"][0]["scores"]) == 2

    assert "node-1 takes no new requests" in up.run("drain", "node-1").stdout
    table = up.run("nodes").stdout
    assert "draining" in table
    assert "a30" in table
    nodes = json.loads(up.run("nodes", "--json").stdout)["nodes"]
    assert {n["node_id"]: n["status"] for n in nodes} == {"node-0": "up", "node-1": "draining"}
    assert json.loads(up.run("drain", "node-1", "--undo", "--json").stdout)["draining"] is False
    late = up.run("request", "hi", "--deadline-s", "0.05", "--max-tokens", "3000", code=1)
    assert late.stderr.startswith("error: ")


def test_a_prompt_goes_where_its_node_says_that_its_beginning_is_cached(up: Running) -> None:
    beginning = "".join(f"Rule {number}: be brief. " for number in range(60))

    def asked(request_id: str) -> dict[str, Any]:
        text = up.run(
            "request", "-", "--json", "--max-tokens", "5", "--request-id", request_id, stdin=beginning + request_id
        )
        answer: dict[str, Any] = json.loads(text.stdout)
        return answer

    def cached_blocks() -> dict[str, int]:
        listed = json.loads(up.run("nodes", "--json").stdout)["nodes"]
        return {node["node_id"]: int(node.get("cached_blocks", 0)) for node in listed}

    first = asked("first")
    whole_blocks = len(beginning) // 16
    until(lambda: cached_blocks()[first["node"]] >= whole_blocks, what="the node tells what it has cached")
    assert [node for node, blocks in cached_blocks().items() if blocks] == [first["node"]]
    for request_id in ("second", "third", "fourth", "fifth"):
        assert asked(request_id)["node"] == first["node"]
        document = json.loads(up.run("explain", request_id, "--json").stdout)
        forecasts = {score["node_id"]: score["forecast"] for score in document["decisions"][0]["scores"]}
        assert {node: f.get("cached_tokens", 0) for node, f in forecasts.items()} == {
            node: 16 * whole_blocks if node == first["node"] else 0 for node in ("node-0", "node-1")
        }
        assert document["actual"]["usage"]["cached_tokens"] == 16 * whole_blocks
    told = " ".join(up.run("explain", "fifth").stdout.split())
    assert f"{16 * whole_blocks} tokens of the prompt in its prefix cache" in told
    assert f"({16 * whole_blocks} of them cached)" in told
    assert str(cached_blocks()[first["node"]]) in up.run("nodes").stdout


def test_a_fleet_is_started_with_its_own_limits() -> None:
    fleet = ["up", "--fleet", "1*a30/llama-2-7b,1*h100/llama-2-7b", *UP[3:], "--max-num-seqs", "24"]
    with subprocess.Popen(command(*fleet), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        watchdog = threading.Timer(50, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            told = subprocess.run(
                command("nodes", "--json", "--gateway", said["gateway"]), capture_output=True, check=True, timeout=30
            )
        finally:
            watchdog.cancel()
            process.terminate()
    nodes = {node["node_id"]: node for node in json.loads(told.stdout)["nodes"]}
    assert nodes.keys() == {"a30-0", "h100-0"}
    assert {node["config"]["max_num_seqs"] for node in nodes.values()} == {24}
    assert nodes["a30-0"]["config"]["num_blocks"] < nodes["h100-0"]["config"]["num_blocks"]
    assert nodes["h100-0"]["profile"] == "h100/llama-2-7b"


@pytest.mark.skipif(shutil.which("curl") is None, reason="the line is for curl, which is not here")
def test_the_lines_that_up_prints_work() -> None:
    process = subprocess.Popen(
        command(*[word for word in UP if word != "--json"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    watchdog = threading.Timer(50, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith("Ctrl-C"):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        text = "".join(lines)
        (base_url,) = re.findall(r"base_url (\S+/v1),", text)
        (line,) = [one.strip() for one in lines if one.strip().startswith("curl ")]
        answered = subprocess.run(shlex.split(line), capture_output=True, check=True, timeout=30)
        assert json.loads(answered.stdout)["choices"][0]["message"]["content"]
        with openai.OpenAI(base_url=base_url, api_key="any") as client:
            assert [model.id for model in client.models.list()] == ["llama-2-7b"]
    finally:
        watchdog.cancel()
        process.terminate()
        process.communicate(timeout=15)


def test_nodes_can_be_watched(up: Running) -> None:
    watch = subprocess.Popen(
        command("nodes", "--watch", "--json", "--interval-s", "0.05", "--gateway", up.said["gateway"]),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watch.stdout is not None
        assert len(json.loads(watch.stdout.readline())["nodes"]) == 2
        up.run("drain", "node-0")
        assert json.loads(watch.stdout.readline())["nodes"][0]["status"] == "draining"
        watch.send_signal(signal.SIGINT)
        assert watch.wait(10) == 0
    finally:
        watch.kill()
        watch.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_up_stops_everything_within_seconds(up: Running, number: signal.Signals) -> None:
    up.process.send_signal(number)
    code, errors = up.end()
    assert code == 0, errors
    assert not any(psutil.pid_exists(pid) for pid in up.pids.values())


def test_a_gateway_that_dies_is_reported_and_the_rest_stopped(up: Running) -> None:
    os.kill(up.pids["gateway"], signal.SIGKILL)
    code, errors = up.end()
    assert code == 1
    assert "error: gateway was killed by signal 9" in errors
    assert '"event"' in errors, "the last log lines of the dead child"
    assert "Traceback" not in errors
    assert not any(psutil.pid_exists(pid) for pid in up.pids.values())

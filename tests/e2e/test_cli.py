"""The console script as a person meets it: words, exit codes, no traceback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from deploy.cli import ASTROLABE, BENCH
from deploy.local_cluster import Child
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from tests.e2e.cluster import GRPCURL, until

pytestmark = pytest.mark.e2e

COMMANDS = [
    *([name] for name in ASTROLABE.list_commands(None) if name != "bench"),  # type: ignore[arg-type]
    *(["bench", name] for name in BENCH.list_commands(None)),  # type: ignore[arg-type]
]


def astrolabe(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def fails(*args: str, code: int) -> str:
    """The one line that a wrong command prints."""
    done = astrolabe(*args)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Child]:
    """A gateway process whose only node does not exist."""
    child = Child(
        "gateway",
        "gateway",
        {"listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0", "node": "127.0.0.1:1", "tokenizer": "bytes"},
        tmp_path,
    )
    child.start()
    child.wait_ready(time.monotonic() + 20)
    yield child
    child.kill()


def subcommands(path: list[str]) -> list[str]:
    command: click.Command = ASTROLABE
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    return command.list_commands(click.Context(command)) if isinstance(command, click.Group) else []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_helps_with_an_example(command: list[str]) -> None:
    pages = [(command, False)]
    while pages:
        path, shown_above = pages.pop()
        done = astrolabe(*path, "--help")
        assert done.returncode == 0, done.stderr
        shown = shown_above or "Example" in done.stdout
        below = subcommands(path)
        assert shown or below, path
        pages += [([*path, name], shown) for name in below]


def test_help_lists_every_command() -> None:
    done = astrolabe("--help")
    assert all(name in done.stdout for name in ASTROLABE.list_commands(None))  # type: ignore[arg-type]


def test_help_imports_no_heavy_module() -> None:
    probe = "import sys, deploy.cli; print([m for m in ('grpc', 'numba', 'numpy', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_gateway_needs_no_simulator() -> None:
    probe = (
        "import sys, gateway.main, gateway.cli; "
        "print([m for m in ('numba', 'scipy', 'torch', 'llvmlite') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version() -> None:
    done = astrolabe("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("astrolabe ")


def test_mistyped_commands_are_answered_with_the_nearest() -> None:
    assert "did you mean 'request'" in fails("requst", code=2)
    assert "did you mean 'compare'" in fails("bench", "compar", code=2)
    assert "--help" in fails("nodes", "--wach", code=2)
    assert "REQUEST_ID" in fails("explain", code=2)


@pytest.mark.parametrize(
    "command",
    [["request", "hi"], ["nodes"], ["nodes", "--watch"], ["explain", "r"], ["drain", "n"], ["move", "r", "n"]],
    ids=" ".join,
)
def test_without_a_gateway_every_client_says_where_it_looked(command: list[str]) -> None:
    line = fails(*command, "--gateway", "127.0.0.1:1", code=1)
    assert "no gateway answers at 127.0.0.1:1" in line
    assert "astrolabe up" in line


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("polcy = 'random'", ["gateway.toml", "unknown key 'polcy'", "did you mean 'policy'"]),
        ("policy = [", ["gateway.toml", "not valid TOML"]),
        ("[router]\npolicy = 'best'", ["gateway.toml", "key 'policy' in [router]", "unknown policy 'best'"]),
        ("[router]\nseed = 'x'", ["gateway.toml", "key 'seed' in [router]", "expected 'int'"]),
    ],
)
def test_a_bad_configuration_stops_the_gateway_with_one_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    line = fails("gateway", "--config", str(path), code=2)
    assert all(part in line for part in parts), line


def test_bad_options_stop_the_gateway_with_one_line(tmp_path: Path) -> None:
    assert "did you mean 'random'" in fails("gateway", "--policy", "randm", code=2)
    assert "not host:port" in fails("gateway", "--node", "localhost", code=2)
    assert "no such file" in fails("gateway", "--config", str(tmp_path / "none.toml"), code=2)
    assert "unknown tokenizer 'x'" in fails("gateway", "--tokenizer", "x", "--listen", "127.0.0.1:0", code=2)
    folder = str(tmp_path)
    assert folder in fails("gateway", "--record", folder, "--listen", "127.0.0.1:0", code=2)


@pytest.mark.parametrize("command", ["gateway", "predictor"])
def test_a_ready_file_that_cannot_be_written_is_named(tmp_path: Path, command: str) -> None:
    path = str(tmp_path / "absent" / "ready")
    line = fails(command, "--listen", "127.0.0.1:0", "--tokenizer", "bytes", "--ready-file", path, code=2)
    assert "key 'ready_file'" in line
    assert path in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_no_defect() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "deploy.cli", "bench", "data", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert ended.returncode == 1
    assert ended.stderr.decode().splitlines() == [
        "error: the output cannot be written (No space left on device); make room, or send it elsewhere"
    ]


def test_a_busy_port_is_one_line(gateway: Child) -> None:
    line = fails("gateway", "--listen", gateway.address, code=2)
    assert gateway.address in line
    assert "in use" in line
    assert "--listen" in line


def test_a_gateway_stops_with_exit_code_0(gateway: Child) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        gateway.signal(number)
        assert gateway.wait(5) == 0
        assert '"event":"gateway has stopped"' in gateway.log_path.read_text()
        gateway.start()
        gateway.wait_ready(time.monotonic() + 20)


def test_logs_are_json_lines(gateway: Child) -> None:
    with grpc.insecure_channel(gateway.address) as channel, pytest.raises(grpc.RpcError):
        list(DispatchStub(channel).Generate(pb.GenerateRequest(text="x", request_id="my-id"), timeout=5))
    records = [json.loads(line) for line in gateway.log_path.read_text().splitlines()]
    (finished,) = [r for r in records if r["event"] == "request finished"]
    assert (finished["request_id"], finished["outcome"]) == ("my-id", "no_node")


def test_reload_on_sighup_takes_good_files_and_keeps_the_old_one_over_bad_ones(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("router.policy = 'random'")
    child = Child(
        "gateway",
        "gateway",
        {"config": path, "listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0", "tokenizer": "bytes"},
        tmp_path,
    )
    child.start()
    try:
        child.wait_ready(time.monotonic() + 20)
        with grpc.insecure_channel(child.address) as channel:
            stub = DispatchStub(channel)

            def policy() -> str:
                return str(stub.ListNodes(pb.ListNodesRequest(), timeout=5).policy)

            assert policy() == "random"
            path.write_text("router.policy = 'round_robin'\nnodes = ['127.0.0.1:1']\nrouter.seed = 5")
            child.signal(signal.SIGHUP)
            until(lambda: policy() == "round_robin")
            assert len(stub.ListNodes(pb.ListNodesRequest(), timeout=5).nodes) == 1
            assert '"needs_restart":["router.seed"]' in child.log_path.read_text()
            path.write_text("polcy = 1")
            child.signal(signal.SIGHUP)
            until(lambda: "did you mean 'policy'" in child.log_path.read_text())
            assert policy() == "round_robin"
    finally:
        child.kill()


def test_health_says_not_serving_without_a_node(gateway: Child) -> None:
    with grpc.insecure_channel(gateway.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "astrolabe.v1.Dispatch"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_grpcurl_reads_the_services_by_reflection(gateway: Child) -> None:
    listed = subprocess.run(
        [GRPCURL, "-plaintext", gateway.address, "list"], capture_output=True, text=True, timeout=20, check=True
    )
    assert "astrolabe.v1.Dispatch" in listed.stdout.split()
    assert "grpc.health.v1.Health" in listed.stdout.split()
    nodes = subprocess.run(
        [GRPCURL, "-plaintext", gateway.address, "astrolabe.v1.Dispatch/ListNodes"],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert json.loads(nodes.stdout)["nodes"][0]["address"] == "127.0.0.1:1"


def test_nodes_for_people_and_for_machines(gateway: Child) -> None:
    until(lambda: "refused" in astrolabe("nodes", "--gateway", gateway.address).stdout, what="the node seen down")
    table = astrolabe("nodes", "--gateway", gateway.address).stdout
    assert "127.0.0.1:1" in table
    assert "down" in table
    (node,) = json.loads(astrolabe("nodes", "--json", "--gateway", gateway.address).stdout)["nodes"]
    assert node["status"] == "down"


def test_what_a_gateway_refuses_reaches_the_person_in_one_line(gateway: Child) -> None:
    at = ("--gateway", gateway.address)
    assert "no node" in fails("request", "hi", *at, code=1)
    assert "max_tokens must be >= 1, got -3" in fails("request", "hi", "--max-tokens", "-3", *at, code=1)
    assert "did you mean 'power_of_two'" in fails("request", "hi", "--policy", "power_of_tow", *at, code=1)
    assert "prompt is empty" in fails("request", "", *at, code=1)
    assert "nothing is known of request 'r'" in fails("explain", "r", *at, code=1)
    assert "configured nodes: 127.0.0.1:1" in fails("drain", "node-9", *at, code=1)
    assert "configured nodes: 127.0.0.1:1" in fails("move", "r", "node-9", *at, code=1)


def test_up_tells_why_a_child_cannot_start() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = astrolabe("up", "--nodes", "1", "--node-port", str(port), "--port", "8299")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("starting 1 node and the gateway")
    assert "error: node-0 ended with exit code 2" in done.stderr
    assert "in use" in done.stderr
    assert "those from --node-port and --port on" in done.stderr


def test_up_goes_on_without_a_node_that_was_killed_and_starts_it_again() -> None:
    command = [sys.executable, "-m", "deploy.cli", "up", "--nodes", "2", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        try:
            assert up.stdout is not None
            assert up.stderr is not None
            said = json.loads(up.stdout.readline())
            os.kill(said["pids"]["node-1"], signal.SIGKILL)
            assert "node-1 was killed by signal 9; it starts again" in next(up.stderr)
            assert "node-1 serves again" in next(up.stderr)
            states: list[str] = []
            until_s = time.monotonic() + 20.0
            while states != ["up", "up"] and time.monotonic() < until_s:
                listed = json.loads(astrolabe("nodes", "--json", "--gateway", said["gateway"]).stdout)["nodes"]
                states = [node["status"] for node in listed]
            assert states == ["up", "up"]
        finally:
            up.terminate()
            assert up.wait(30.0) == 0


def test_a_health_check_tells_who_serves(gateway: Child) -> None:
    def check(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "deploy.health", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    node = grpc.server(ThreadPoolExecutor(max_workers=1))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), node)
    port = node.add_insecure_port("127.0.0.1:0")
    node.start()
    assert check(f"127.0.0.1:{port}").returncode == 0
    node.stop(None)
    without_nodes = check(gateway.address)
    assert (without_nodes.returncode, without_nodes.stderr) == (1, f"error: {gateway.address} does not serve yet\n")
    gateway.kill()
    after = check(gateway.address)
    assert after.returncode == 1
    assert after.stderr.startswith(f"error: {gateway.address} does not answer: ")
    assert len(after.stderr.splitlines()) == 1
    assert check().returncode == 2

"""The predictor as a process: how it starts, how it refuses to, how it ends."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import grpc.aio
import pytest

from deploy.cli import main
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_predict_pb2_grpc import PredictStub
from simcore import kernel_files
from tests.e2e.predictor_daemon import DEADLINE_S, SessionClient, daemon, engine_request, until

pytestmark = pytest.mark.e2e


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", "predictor", *arguments],
        capture_output=True,
        text=True,
        timeout=40,
    )


def one_line(code: object, out: str, err: str) -> str:
    assert code == 2, err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    assert out == ""
    return err.strip()


Refused = Callable[..., str]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command in this process, which it must leave again at once; the one line it says."""

    def run_here(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["predictor", *arguments])
        out, err = capfd.readouterr()
        return one_line(ended.value.code, out, err)

    return run_here


def test_help_has_an_example() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "Example:" in done.stdout
    assert "--time-scale" in done.stdout


def test_a_busy_port_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("--listen", address)
    line = one_line(done.returncode, done.stdout, done.stderr)
    assert f"cannot listen on {address}" in line
    assert "--listen" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "a30/llama-2-7bb"], ["profile", "a30/llama-2-7bb", "did you mean"]),
        (["--engine", "vlm-emulated"], ["engine", "vlm-emulated", "emulated"]),
        (["--tokenizer", "gpt9"], ["tokenizer", "gpt9", "bytes"]),
        (["--listen", "nonsense"], ["listen", "nonsense", "host:port"]),
        (["--max-num-seqs", "0"], ["--max-num-seqs", ">= 1"]),
        (["--time-scale", "0"], ["--time-scale", "> 0"]),
        (["--config", "/no/such/file.toml"], ["/no/such/file.toml", "no such file"]),
    ],
    ids=["profile", "engine", "tokenizer", "listen", "count", "scale", "file"],
)
def test_wrong_options_are_named_with_a_way_out(arguments: list[str], words: list[str], refused: Refused) -> None:
    line = refused(*arguments)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("scenarios = 4\nlisten = oops", ["not valid TOML", "line 2"]),
        ("max_num_seq = 4", ["unknown key 'max_num_seq'", "did you mean 'max_num_seqs'"]),
        ("zzz = 1", ["unknown key 'zzz'", "known keys: node_id"]),
        ('[emulated]\nmax_num_seqs = "many"', ["key 'max_num_seqs' in [emulated]", "expected 'int', got 'str'"]),
        ("scenarios = 0", ["key 'scenarios'", ">= 1"]),
        ('profile = "h9000/gpt"', ["key 'profile'", "h9000/gpt"]),
        ('log_level = "loud"', ["key 'log_level'", "loud"]),
    ],
    ids=["malformed", "typo", "unknown", "type", "range", "profile", "choice"],
)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, toml: str, words: list[str], refused: Refused) -> None:
    path = tmp_path / "predictor.toml"
    path.write_text(toml)
    line = refused("--config", str(path), "--listen", "127.0.0.1:0")
    assert str(path) in line
    for word in words:
        assert word in line


def test_a_file_configures_and_options_win(tmp_path: Path) -> None:
    path = tmp_path / "predictor.toml"
    path.write_text('node_id = "from file"\nemulated.max_num_seqs = 7\nmodel = "mine"\n')
    with (
        daemon(tmp_path, config=path, max_num_seqs=9, node_id=None, model=None) as child,
        grpc.insecure_channel(child.address) as channel,
    ):
        state = PredictStub(channel).GetState(pb.GetStateRequest(), timeout=DEADLINE_S)
    assert state.node_id == "from file"
    assert state.config.model == "mine"
    assert state.config.max_num_seqs == 9


async def test_sigterm_ends_everything_in_order(tmp_path: Path) -> None:
    with daemon(tmp_path) as child:
        async with grpc.aio.insecure_channel(child.address) as channel:
            client = await SessionClient(channel).begin()
            await client.send(dispatch=tuple(engine_request(f"r{i}", max_tokens=1500) for i in range(3)))
            await client.until(lambda: len(client.tokens) == 3)
            child.signal(signal.SIGTERM)
            await client.until(lambda: len(client.ends) == 3)
            assert {e.outcome for e in client.ends.values()} == {types_pb.OUTCOME_NODE_LOST}
            assert all("shutting down" in e.detail for e in client.ends.values())
            await client.leave()
        assert child.wait(DEADLINE_S) == 0
        lines = [json.loads(line) for line in child.log_path.read_text().splitlines()]
    ended = [line for line in lines if line["event"] == "request finished"]
    assert sorted(line["request_id"] for line in ended) == ["r0", "r1", "r2"]
    assert lines[-1]["event"] == "node has stopped"


def test_interrupt_while_it_warms_up_is_no_crash(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "predictor", "--listen", "127.0.0.1:0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "Traceback" not in err
    assert process.returncode in (0, -signal.SIGTERM), "before its handlers stand, the signal itself ends it"


def test_daemons_that_start_together_compile_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    # What has been compiled, without the stamp that says so.
    for kernel in (kernel_files.folder() or cache).glob("*.kernel"):
        shutil.copy2(kernel, cache)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache))
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as pool:

        def start(folder: Path) -> list[str]:
            with daemon(folder) as child:
                until(child, lambda: "kernels are not interpreted any more" in child.log_path.read_text())
                return [json.loads(line)["event"] for line in child.log_path.read_text().splitlines()]

        logs = list(pool.map(start, folders))
    assert sorted("kernels are compiled" in events for events in logs) == [False, True]
    assert all("node is serving" in events for events in logs)
    assert len(list(cache.glob("kernels-*"))) == 2, "a stamp and a lock"


GATEWAY_THAT_WILL_DIE = """
import asyncio, sys
import grpc.aio
from tests.e2e.predictor_daemon import SessionClient, engine_request

async def main():
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        client = await SessionClient(channel, "doomed").begin()
        await client.send(dispatch=tuple(engine_request(f"r{i}", max_tokens=1500) for i in range(5)))
        await client.until(lambda: len(client.tokens) == 5)
        print("running", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_requests_of_a_killed_gateway_are_aborted(tmp_path: Path) -> None:
    with daemon(tmp_path, time_scale=1.0) as child, grpc.insecure_channel(child.address) as channel:
        stub = PredictStub(channel)
        gateway = subprocess.Popen(
            [sys.executable, "-c", GATEWAY_THAT_WILL_DIE, child.address], stdout=subprocess.PIPE, text=True
        )
        try:
            assert gateway.stdout is not None
            assert gateway.stdout.readline() == "running\n"
            assert len(stub.GetState(pb.GetStateRequest(), timeout=DEADLINE_S).running) == 5
        finally:
            gateway.kill()
            gateway.communicate()
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            state = stub.GetState(pb.GetStateRequest(), timeout=DEADLINE_S)
            if not (state.running or state.waiting) and state.free_blocks == state.config.num_blocks:
                break
            assert time.monotonic() < deadline_s, state
            time.sleep(0.02)

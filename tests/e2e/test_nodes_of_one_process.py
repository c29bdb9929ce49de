"""Several nodes in one predictor process, as on a host with several engines."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from deploy.cli import main
from tests.e2e.predictor_daemon import DEADLINE_S, SessionClient, engine_request

pytestmark = pytest.mark.e2e

START_S = 50.0


def configured(folder: Path, node_id: str, more: str = "") -> Path:
    path = folder / f"{node_id}.toml"
    ready = folder / f"{node_id}.ready"
    path.write_text(f'node_id = "{node_id}"\nlisten = "127.0.0.1:0"\nready_file = "{ready}"\n{more}')
    return path


def logged(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]


@contextmanager
def one_process(files: Sequence[Path], log_path: Path) -> Iterator[list[str]]:
    """The addresses of all but the last node, which does not start; the process must end with code 0 when told to."""
    ready = [path.with_suffix(".ready") for path in files[:-1]]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "predictor", "--tokenizer", "bytes", "--time-scale", "20"]
            + [text for path in files for text in ("--config", str(path))],
            stdout=log,
            stderr=log,
        )
    try:
        deadline_s = time.monotonic() + START_S
        while not (all(path.exists() for path in ready) and "node does not start" in log_path.read_text()):
            assert process.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline_s, log_path.read_text()
            time.sleep(0.02)
        yield [json.loads(path.read_text())["address"] for path in ready]
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0, log_path.read_text()
    finally:
        process.kill()
        process.wait()


async def test_each_serves_whatever_becomes_of_the_others(tmp_path: Path) -> None:
    files = [configured(tmp_path, "a"), configured(tmp_path, "b")]
    nowhere = '[engine]\ndialect = "vllm"\nurl = "http://127.0.0.1:9"\nwait_s = 0.1\n'
    files.append(configured(tmp_path, "never", nowhere))
    log_path = tmp_path / "log"
    with one_process(files, log_path) as addresses:
        for address, name in zip(addresses, "ab", strict=True):
            async with grpc.aio.insecure_channel(address) as channel:
                client = await SessionClient(channel).begin()
                assert client.welcome is not None
                assert client.welcome.node_id == name
                await client.send(dispatch=(engine_request(f"r-{name}"),))
                await client.until(lambda client=client: len(client.ends) == 1)  # type: ignore[misc]
                await client.leave()
    lines = logged(log_path)
    ends = {(line["node"], line["request_id"]) for line in lines if line["event"] == "request finished"}
    assert ends == {("a", "r-a"), ("b", "r-b")}, "each line says whose it is"
    assert {line["node"] for line in lines if line["event"] == "node does not start"} == {"never"}
    assert {line["node"] for line in lines if line["event"] == "node has stopped"} >= {"a", "b"}


@pytest.mark.parametrize(("option", "key"), [("--node-id", "node_id"), ("--ready-file", "ready_file")])
def test_what_only_one_can_have_is_refused(
    tmp_path: Path, option: str, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [configured(tmp_path, "a"), configured(tmp_path, "b")]
    with pytest.raises(SystemExit) as ended:
        main(["predictor", *(text for path in files for text in ("--config", str(path))), option, str(tmp_path / "x")])
    assert ended.value.code == 2
    line = capfd.readouterr().err.strip()
    assert "\n" not in line
    assert f"key '{key}': two nodes of one process have" in line

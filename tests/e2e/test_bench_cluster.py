"""`astrolabe bench sweep --cluster` on a Dask cluster of two workers, each a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import main
from tests.e2e.test_bench_sweep import ROOT, ROWS, SMALL

pytest.importorskip("distributed", reason="the extra `distributed` is not installed")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

READY_S = 90.0


class DaskCluster:
    """A scheduler and workers on loopback, as people start them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "scheduler.json"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.workers = [self._worker(), self._worker()]

    @property
    def address(self) -> str:
        end_s = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(OSError, ValueError):
                return str(json.loads(self._file.read_text())["address"])
            assert time.monotonic() < end_s, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        return "\n".join(path.read_text() for path in self._folder.glob("*.log"))

    def stop(self) -> None:
        """Workers first: they say goodbye to their scheduler."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5.0)

    def _worker(self) -> subprocess.Popen[bytes]:
        return self._start("worker", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")

    def _start(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        log = self._folder / f"{command}-{len(self._processes)}.log"
        own = ["--local-directory", str(self._folder)] if command == "worker" else []
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", command, "--scheduler-file", str(self._file), *options, *own],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self._folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
        self._processes.append(process)
        return process


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    made = DaskCluster(tmp_path_factory.mktemp("dask"))
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lengths.csv").write_text(ROWS)
    return tmp_path


def command(*arguments: str, output: str) -> list[str]:
    policies = ("--axis", f"policy=random,{ROOT / 'bench/examples/soonest_token.py'}")
    return ["bench", "sweep", *policies, "--axis", "rate=4,8", *SMALL, "--seeds", "2", "--output", output, *arguments]


def ran(capsys: pytest.CaptureFixture[str], *arguments: str, output: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main(command(*arguments, output=output))
    _, err = capsys.readouterr()
    assert ended.value.code == code, err
    return err


def lines(output: str) -> dict[str, dict[str, Any]]:
    """By key, without what tells of the time that a run took."""
    found = {}
    for text in (Path(output) / "runs.jsonl").read_text().splitlines():
        line = json.loads(text)
        for timed in ("started_at", "wall_s", "cpu_s"):
            del line[timed]
        del line["measures"]["cpu_s"]
        found[line["key"]] = line
    return found


def test_a_cluster_gives_what_this_machine_gives_and_refuses_what_would_not(
    cluster: DaskCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(capsys, "--jobs", "1", output="here")
    ran(capsys, "--cluster", cluster.address, output="there")
    assert lines("there") == lines("here")
    assert len(lines("here")) == 8
    again = ran(capsys, "--cluster", cluster.address, output="there")
    assert "8 of 8 runs are in there/runs.jsonl already" in again
    from bench.run import dask_cluster

    own = {**dask_cluster.identity(), "astrolabe": "9.9.9"}
    monkeypatch.setattr(dask_cluster, "identity", dask_cluster_like(own))
    refused = ran(capsys, "--cluster", cluster.address, output="never", code=1)
    (line,) = [text for text in refused.splitlines() if text.startswith("error")]
    assert "has astrolabe" in line
    assert "(here 9.9.9); install there what is here" in line


def dask_cluster_like(own: dict[str, str]) -> Any:
    """On this side another answer, on the workers' their own: it travels by its name."""

    def identity() -> dict[str, str]:
        return own

    identity.__module__, identity.__qualname__ = "bench.run.dask_cluster", "identity"
    return identity


def long_sweep(cluster: DaskCluster, folder: Path) -> subprocess.Popen[str]:
    """Of which some runs are finished."""
    several = [*command("--cluster", cluster.address, output="s"), "--set", "requests=400", "--seeds", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *several],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    log = folder / "s" / "runs.jsonl"
    end_s = time.monotonic() + READY_S
    while not (log.exists() and log.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end_s, cluster.said()
        time.sleep(0.02)
    return process


def test_ctrl_c_keeps_what_was_finished_and_the_rest_comes_later(cluster: DaskCluster, folder: Path) -> None:
    process = long_sweep(cluster, folder)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "what was finished is kept: give the same command again" in err
    assert "Traceback" not in err
    kept = len(lines("s"))
    assert 2 <= kept < 20


def test_no_scheduler_and_no_worker_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.run.dask_cluster.CONNECT_S", 0.5)
    refused = ran(capsys, "--cluster", "tcp://127.0.0.1:9", output="never", code=1)
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in refused
    assert "Traceback" not in refused


def test_runs_of_a_worker_that_dies_are_done_by_another(cluster: DaskCluster, folder: Path) -> None:
    """The last test of the file: its cluster has one worker less afterwards."""
    process = long_sweep(cluster, folder)
    cluster.workers[0].kill()
    _, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    assert len(lines("s")) == 20
    assert len((folder / "s" / "runs.jsonl").read_bytes().splitlines()) == 20

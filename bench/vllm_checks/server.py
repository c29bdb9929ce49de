"""Real vLLM servers as child processes, for measurements and tests."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
START_S = 600.0
STOP_S = 20.0
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""For servers of our own on this machine."""
PR_SET_PDEATHSIG = 1
"""https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One vLLM server. `start`, `wait_ready`, ..., `stop`; may be started again."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, port: int, folder: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = folder / f"vllm-{port}.log"
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,
                env=self._environment,
            )
        return self

    def wait_ready(self) -> Server:
        until(self.is_ready, deadline_s=START_S, what=f"{self.url} serves")
        return self

    def is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.last_words()
        try:
            with NO_PROXY.open(f"{self.url}/health", timeout=2.0) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def ask(self, body: Mapping[str, Any], *, timeout_s: float = 60.0) -> dict[str, Any]:
        """One completion, not streamed."""
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with NO_PROXY.open(request, timeout=timeout_s) as answer:
            return dict(json.loads(answer.read()))

    def metric(self, name: str) -> float:
        """Sum of a metric's samples."""
        with NO_PROXY.open(f"{self.url}/metrics", timeout=10.0) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def last_words(self) -> str:
        return self.log_path.read_text(errors="replace")[-4000:]

    def signal(self, number: int) -> None:
        """To the server and its engine process alike."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def engine_core(self) -> psutil.Process:
        """The process that schedules and computes, apart from the HTTP server."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        return next(p for p in children if "EngineCore" in p.name() or "EngineCore" in " ".join(p.cmdline()))

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_S)

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()


def _end_with_parent() -> None:
    """Linux: a server of a run that was killed does not stay behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def emulated_server(python: str, folder: Path, *flags: str, **options: object) -> Server:
    """As a user starts it: `astrolabe engine vllm --device emulated`."""
    port = free_port()
    command = [sys.executable, "-m", "deploy.cli", "engine", "vllm", "--device", "emulated"]
    command += ["--python", python, "--port", str(port), *flags]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return Server(command, {**os.environ, "PYTHONPATH": str(ROOT)}, port=port, folder=folder)


def until(condition: Callable[[], bool], *, deadline_s: float = 30.0, what: str = "the condition") -> None:
    """Polls until it holds; fails when it does not in time."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.1)

"""Micro-benchmark: how long a process takes to be ready to simulate, and a node's daemon to serve, with and without
compiled code in the cache. `python -m bench.micro.cold_start`."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STARTS = 5
POLL_S = 0.01
READY = "from simcore.warmup import warm; warm()"


def start_s(cache: str) -> float:
    """Seconds from the start of a process to its first answer."""
    began_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", READY], env={**os.environ, "NUMBA_CACHE_DIR": cache}, check=True)
    return time.perf_counter() - began_s


def daemon_start_s(cache: str) -> float:
    """Seconds until a daemon serves that is started as its systemd unit does it: kernels in `cache`, and no home."""
    ready = Path(cache, "ready")
    ready.unlink(missing_ok=True)
    options = ["--listen", "127.0.0.1:0", "--tokenizer", "bytes", "--log-level", "error", "--ready-file", str(ready)]
    environ = {**os.environ, "NUMBA_CACHE_DIR": cache, "HOME": "/nonexistent"}
    began_s = time.perf_counter()
    daemon = subprocess.Popen([sys.executable, "-m", "deploy.cli", "predictor", *options], env=environ)
    try:
        while not ready.exists():
            if daemon.poll() is not None:
                raise SystemExit(f"the daemon ended with code {daemon.returncode}")
            time.sleep(POLL_S)
        return time.perf_counter() - began_s
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()


def main() -> None:
    """Prints machine, command and seconds."""
    print("python -m bench.micro.cold_start")
    print(
        f"{platform.processor() or platform.machine()}, {platform.python_version()}, from process start to first answer"
    )
    with tempfile.TemporaryDirectory() as cache:
        print(f"  without a compile cache {start_s(cache):6.2f} s")
        warm_s = sorted(start_s(cache) for _ in range(STARTS))
        print(f"  with a compile cache    {_middle(warm_s)}")
    print("from process start to a daemon that serves")
    with tempfile.TemporaryDirectory() as cache:
        print(f"  first start             {daemon_start_s(cache):6.2f} s")
        later_s = sorted(daemon_start_s(cache) for _ in range(STARTS))
        print(f"  later starts            {_middle(later_s)}")


def _middle(seconds: list[float]) -> str:
    return f"{seconds[len(seconds) // 2]:6.2f} s (median of {len(seconds)}, slowest {seconds[-1]:.2f} s)"


if __name__ == "__main__":
    main()

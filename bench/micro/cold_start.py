"""Micro-benchmark: how long a process takes to be ready to simulate, with and without compiled code in the cache.
`python -m bench.micro.cold_start`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time

READY = "from simcore.warmup import warm; warm()"


def start_s(cache: str) -> float:
    """Seconds from the start of a process to its first answer."""
    began_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", READY], env={**os.environ, "NUMBA_CACHE_DIR": cache}, check=True)
    return time.perf_counter() - began_s


def main() -> None:
    """Prints machine, command and seconds."""
    print("python -m bench.micro.cold_start")
    print(
        f"{platform.processor() or platform.machine()}, {platform.python_version()}, from process start to first answer"
    )
    with tempfile.TemporaryDirectory() as cache:
        print(f"  without a compile cache {start_s(cache):6.2f} s")
        warm_s = sorted(start_s(cache) for _ in range(5))
        print(f"  with a compile cache    {warm_s[2]:6.2f} s (median of 5, slowest {warm_s[-1]:.2f} s)")


if __name__ == "__main__":
    main()

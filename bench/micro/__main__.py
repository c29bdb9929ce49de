"""All micro-benchmarks, one after the other, each in its own process: `make bench`."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "bench.micro.whatif",
    "bench.micro.cold_start",
    "bench.micro.simcluster",
    "bench.micro.decision",
    "bench.micro.envelope",
    "bench.micro.front",
    "bench.micro.lengths",
)


def main() -> int:
    failed = [name for name in BENCHMARKS if subprocess.run([sys.executable, "-m", name], check=False).returncode]
    for name in failed:
        print(f"error: {name} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

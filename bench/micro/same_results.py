"""Simulates the same runs in two checkouts, each by its own interpreter, and compares the results to the last digit.

`python -m bench.micro.same_results OLD NEW` prints what differs and ends with 1 if anything does. The router is spelled
out in every command, so a change of defaults does not show; commits, machines, keys and durations are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

POLICIES = "round_robin,least_requests,llumnix_freeness,prefix_affinity,min_new_request_latency,min_total_latency"
ROUTER = ("--set", "router.ask=4", "--set", "router.hold=forecast")
SMALL = ("--set", "nodes=4", "--set", "requests=400")
COMMANDS: dict[str, tuple[str, ...]] = {
    "simulate": (
        *("simulate", "--policy", POLICIES, "--rate", "8", "--rate", "12", "--seeds", "2"),
        *("--nodes", "4", "--requests", "600", "--ask", "4", "--hold", "forecast"),
    ),
    "sweep": (
        *("sweep", "--axis", "policy=llumnix_freeness,min_total_latency", "--axis", "rate=8,12"),
        *("--axis", "max_num_seqs=24,48", "--seeds", "1", *SMALL, *ROUTER),
    ),
    "sweep as published": (
        *("sweep", "--axis", "policy=min_new_request_latency,slo_goodput", "--axis", "rate=10", "--seeds", "1"),
        *(
            "--axis",
            "dataset=llumnix-m-m,block-sharegpt",
            *SMALL,
            "--set",
            "router.ask=0",
            "--set",
            "router.hold=never",
        ),
    ),
    "capacity": (
        *("capacity", "--policy", "round_robin,min_total_latency", "--slo", "ttft_p99_s<=3", "--seeds", "1"),
        *("--step", "1", *SMALL, *ROUTER),
    ),
}
LEFT_OUT = frozenset(
    {"header", "wall_s", "cpu_s", "commit", "machine", "started_at", "key", "spec", "reused", "runs_s"}
)
"""Of the run itself, not of what it found. `spec` repeats what the command said."""


def results(checkout: Path, arguments: tuple[str, ...], folder: Path) -> Any:
    """What `astrolabe bench` of the checkout prints as JSON. Raises subprocess.CalledProcessError."""
    output = () if arguments[0] == "simulate" else ("--output", str(folder))
    # No data folder of this machine: both take the data that comes with the package.
    environment = {**os.environ, "ASTROLABE_DATA": str(folder / "no-data")}
    command = [str(checkout / ".venv/bin/astrolabe"), "bench", *arguments, *output, "--json"]
    done = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def named(value: Any) -> Any:
    """Lists of runs as mappings by what they are, so that their order does not count."""
    if isinstance(value, dict):
        return {key: named(one) for key, one in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {_name_of(one, index): named(one) for index, one in enumerate(value)}
    return value


def _name_of(row: dict[str, Any], index: int) -> str:
    spec = row.get("spec", row)
    parts = [row.get(key, spec.get(key)) for key in ("policy", "variant", "rate_per_s", "seed", "objective", "limit_s")]
    name = " ".join(str(part) for part in parts if isinstance(part, (str, int, float)))
    return name or str(index)


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """One line per value that is not the same in both."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if key in LEFT_OUT:
                continue
            path = f"{where} / {key}" if where else str(key)
            if key not in new:
                yield f"{path}: only in the old one"
            elif key not in old:
                yield f"{path}: only in the new one"
            else:
                yield from differences(old[key], new[key], path)
    elif old != new:
        yield f"{where}: {old!r} -> {new!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", choices=list(COMMANDS), action="append", help="This command; may be repeated.")
    parser.add_argument("--keep", type=Path, help="Folder in which results of the old checkout are kept and reused.")
    own = parser.parse_args()
    found = 0
    with tempfile.TemporaryDirectory(prefix="astrolabe-") as temporary:
        for name in own.only or COMMANDS:
            kept = None if own.keep is None else own.keep / f"{name}.json"
            if kept is not None and kept.is_file():
                old = json.loads(kept.read_text())
            else:
                old = results(own.old, COMMANDS[name], Path(temporary) / "old" / name)
                if kept is not None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps(old))
            new = results(own.new, COMMANDS[name], Path(temporary) / "new" / name)
            lines = list(differences(named(old), named(new)))
            found += len(lines)
            print(f"{name}: {'the same' if not lines else f'{len(lines)} differences'}")
            for line in lines:
                print(f"  {line}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

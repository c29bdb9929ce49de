"""Where a run's numbers come from: the command as typed, what decided the run, the code, the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench.measure.results import SCHEMA_VERSION

_ROOT = Path(__file__).resolve().parents[2]
CHANGED = "+changes"
"""Ends the commit of a checkout that has uncommitted changes."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What must be known of a run to make it again: the head of its files and of its JSON."""

    schema_version: int
    command: str
    """As typed."""
    config: dict[str, Any]
    """Everything that decided the run: data set, rate, policy, limits, ..."""
    seed: int
    machine: dict[str, str | int]
    commit: str
    """Of the checkout, with `+changes` when it has uncommitted ones; empty when not run from a checkout."""
    started_at: str
    """UTC, ISO 8601."""


def header(config: Mapping[str, Any], *, seed: int = 0) -> Provenance:
    """The provenance of runs that begin now."""
    return Provenance(
        schema_version=SCHEMA_VERSION,
        command=" ".join(["astrolabe", *sys.argv[1:]]),
        config=dict(config),
        seed=seed,
        machine=machine(),
        commit=commit(),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 0,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def commit() -> str:
    """The checkout's commit; empty outside one or without git."""
    if not (_ROOT / ".git").exists():
        return ""
    try:
        head = _git("rev-parse", "HEAD")
        return head + (CHANGED if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*args: str) -> str:
    done = subprocess.run(["git", "-C", str(_ROOT), *args], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()

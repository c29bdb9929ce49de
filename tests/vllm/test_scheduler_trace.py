"""The trace of vLLM's own schedulers, driven in-process: what readers see equals the engine's lists."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from simcore.proved import PROVED_VLLM_VERSION
from tests.vllm.servers import ROOT, older_releases


def drive(python: str, *options: str, release: Path | None = None) -> dict[str, Any]:
    """The driver's findings, with the environment's vLLM or the release in that folder."""
    environment = {**os.environ, "PYTHONPATH": str(release)} if release else None
    done = subprocess.run(
        [python, "-m", "tests.vllm.scheduler_driver", *options],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{options}: {done.stderr[-3000:]}"
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_after_500_random_operations_mirror_and_engine_are_equal(vllm_python: str, mode: str, policy: str) -> None:
    seen = drive(vllm_python, "--seed", "7", "--operations", "500", "--mode", mode, "--policy", policy)
    assert seen["preemptions"] > 0, "the workload should have preempted somebody"
    assert seen["aborts"] > 0
    assert seen["cache_hits"] > 10, "prompts should have found something in the prefix cache"
    assert seen["cache_misses"] > 10
    assert seen["notes"] == []
    assert seen["compared"] > (300 if mode == "sync" else 5)


def test_many_small_steps_and_no_room(vllm_python: str) -> None:
    seen = drive(
        vllm_python, "--seed", "3", "--mode", "async", "--blocks", "40", "--budget", "64", "--max-num-seqs", "8"
    )
    assert seen["preemptions"] > 0


@pytest.mark.parametrize("index", [0, 1])
def test_schedulers_of_older_releases(vllm_python: str, index: int) -> None:
    releases = older_releases()
    if index >= len(releases):
        pytest.skip("no older vLLM: `make test-vllm` installs two (or set ASTROLABE_VLLM_OLDER)")
    seen = drive(vllm_python, "--seed", "7", "--operations", "400", "--mode", "sync", release=releases[index])
    assert not seen["version"].startswith(f"{PROVED_VLLM_VERSION}.")
    assert any("is not the release that the rules were proved against" in note for note in seen["notes"])
    assert seen["compared"] > 100

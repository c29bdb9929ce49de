"""The trace of vLLM's own schedulers, driven in-process: what readers see equals the engine's lists."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from simcore.proved import PROVED_VLLM_VERSION
from tests.vllm.servers import ROOT, older_releases


def drive(python: str, *options: str, release: Path | None = None, driver: str = "scheduler_driver") -> dict[str, Any]:
    """The driver's findings, with the environment's vLLM or the release in that folder."""
    environment = {**os.environ, "PYTHONPATH": str(release)} if release else None
    done = subprocess.run(
        [python, "-m", f"tests.vllm.{driver}", *options],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{options}: {done.stderr[-3000:]}"
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


RUNS: dict[str, tuple[str, ...]] = {
    f"{mode}-{policy}": ("--seed", "7", "--operations", "500", "--mode", mode, "--policy", policy)
    for mode in ("sync", "async")
    for policy in ("fcfs", "priority")
} | {
    "small": ("--seed", "3", "--mode", "async", "--blocks", "40", "--budget", "64", "--max-num-seqs", "8"),
    "adapters": ("--seed", "5", "--operations", "500", "--mode", "sync", "--max-loras", "2"),
    "adapters ahead": ("--seed", "6", "--operations", "500", "--mode", "async", "--max-loras", "1"),
    "drafts": ("--seed", "8", "--operations", "500", "--mode", "sync", "--drafts", "3"),
    "drafts ahead": ("--seed", "9", "--operations", "500", "--mode", "async", "--drafts", "3", "--lookahead"),
}
Found = dict[str, Future[dict[str, Any]]]
OLDER = ("--seed", "7", "--operations", "400", "--mode", "sync")


@pytest.fixture(scope="module")
def found(vllm_python: str) -> Iterator[Found]:
    """Findings of all runs, two at a time: most of each is the import of vLLM on one core."""
    pool = ThreadPoolExecutor(2)
    runs = {name: pool.submit(drive, vllm_python, *options) for name, options in RUNS.items()}
    for index, release in enumerate(older_releases()):
        runs[f"older-{index}"] = pool.submit(drive, vllm_python, *OLDER, release=release)
    runs["degraded"] = pool.submit(drive, vllm_python, driver="degraded_driver")
    yield runs
    pool.shutdown(wait=False, cancel_futures=True)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_after_500_random_operations_mirror_and_engine_are_equal(found: Found, mode: str, policy: str) -> None:
    seen = found[f"{mode}-{policy}"].result()
    assert seen["preemptions"] > 0, "the workload should have preempted somebody"
    assert seen["aborts"] > 0
    assert seen["cache_hits"] > 10, "prompts should have found something in the prefix cache"
    assert seen["cache_misses"] > 10
    assert seen["notes"] == []
    assert seen["compared"] > (300 if mode == "sync" else 5)


def test_many_small_steps_and_no_room(found: Found) -> None:
    assert found["small"].result()["preemptions"] > 0


@pytest.mark.parametrize("run", ["adapters", "adapters ahead"])
def test_who_waits_for_an_adapters_place_is_passed_over_in_the_mirror_too(found: Found, run: str) -> None:
    seen = found[run].result()
    assert seen["notes"] == []
    assert seen["compared"] > 5


@pytest.mark.parametrize("run", ["drafts", "drafts ahead"])
def test_drafts_that_were_wrong_are_not_computed_in_the_mirror_either(found: Found, run: str) -> None:
    seen = found[run].result()
    assert seen["notes"] == []
    assert seen["compared"] > 5
    assert seen["drafts"] > 100


@pytest.mark.parametrize("index", [0, 1])
def test_schedulers_of_older_releases(found: Found, index: int) -> None:
    if f"older-{index}" not in found:
        pytest.skip("no older vLLM: `make test-vllm` installs two (or set ASTROLABE_VLLM_OLDER)")
    seen = found[f"older-{index}"].result()
    assert not seen["version"].startswith(f"{PROVED_VLLM_VERSION}.")
    assert any("is not the release that the rules were proved against" in note for note in seen["notes"])
    assert seen["compared"] > 100


def test_what_does_not_suit_the_trace_is_one_line_and_the_engine_goes_on(found: Found) -> None:
    cases = found["degraded"].result()
    says = {
        "well": None,
        "a defect in a hook": "the trace stops here",
        "no place for a socket": "no trace of this engine",
        "an address beyond this machine": "on loopback only",
        "a release that nobody has seen": "approximate: vLLM 9.1.0 is not the release",
        "a scheduler that lacks a part": "this vLLM's scheduler has no part_of_another_release",
    }
    assert cases.keys() == says.keys()
    for case, words in says.items():
        seen = cases[case]
        assert (seen["tokens"], seen["left"]) == (20, 0), f"{case}: the engine did not answer"
        assert seen["traced"] == (case in ("well", "a release that nobody has seen"))
        assert len(seen["lines"]) == (0 if words is None else 1), f"{case}: {seen['lines']}"
        assert words is None or words in seen["lines"][0]

# mypy: disable-error-code="import-not-found"
"""Our scheduling rules against vLLM's own scheduler, every step of random workloads.

Run where vLLM can be imported; `ASTROLABE_ORACLE_WORKLOADS` sets how many seeds (default 30 of each kind). A failure
prints the seed, the first diverging step and both sides.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from simcore.proved import PROVED_VLLM_VERSION
from tests.conformance.scheduler_workloads import SHAREGPT_400, first_difference, random_workload, sharegpt_at_once
from tests.conformance.simulated_schedulers import Compiled, Reference
from tests.conformance.vllm_scheduler import VllmScheduler, why_unavailable

WORKLOADS = int(os.environ.get("ASTROLABE_ORACLE_WORKLOADS", "30"))

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable() or "never"),
    pytest.mark.filterwarnings("ignore"),
]


def test_the_version_is_the_one_the_rules_were_proved_against() -> None:
    import vllm

    assert vllm.__version__.startswith(f"{PROVED_VLLM_VERSION}."), f"the rules hold for vLLM {PROVED_VLLM_VERSION}"


@pytest.mark.parametrize("seed", range(WORKLOADS))
def test_every_step_is_equal(seed: int) -> None:
    workload = random_workload(seed)
    difference = first_difference(workload, Compiled(workload.config), VllmScheduler(workload.config))
    assert not difference, difference


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("shared", [False, True], ids=["distinct", "shared"])
@pytest.mark.parametrize("seed", range(WORKLOADS))
def test_every_step_of_the_reference_is_equal(seed: int, shared: bool, asynchronous: bool) -> None:
    workload = random_workload(100_000 + seed, shared_prefixes=shared, async_scheduling=asynchronous)
    difference = first_difference(workload, Reference(workload.config), VllmScheduler(workload.config))
    assert not difference, difference


def test_every_step_is_equal_on_400_sharegpt_requests_at_once(data_dir: Path) -> None:
    workload = sharegpt_at_once(data_dir, 400)
    ours = Compiled(workload.config, checking=False)
    assert not first_difference(workload, ours, VllmScheduler(workload.config))
    assert (ours.node.seq, ours.node.load(0.0).preemptions_total) == SHAREGPT_400

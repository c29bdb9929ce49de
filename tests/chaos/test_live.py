"""The faults that real processes can have, each once (`make chaos` takes more seeds): kill, stop, start, leave."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from bench.chaos.live import LIVE_FAULTS, run, start
from deploy.local_cluster import LocalCluster

pytestmark = pytest.mark.e2e

SEEDS = int(os.environ.get("ASTROLABE_CHAOS_LIVE_SEEDS", "1"))
LONG = frozenset({"thousand_clients_leave"})
"""Only in the long half."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    running = start(tmp_path_factory.mktemp("chaos"))
    yield running
    running.stop()


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("fault", [fault for fault in LIVE_FAULTS if fault not in LONG or SEEDS > 1])
def test_what_must_hold_holds(cluster: LocalCluster, fault: str, seed: int) -> None:
    verdict = asyncio.run(run(fault, seed, cluster))
    assert not verdict.broken, f"{fault}, seed {seed}: {verdict.broken}"

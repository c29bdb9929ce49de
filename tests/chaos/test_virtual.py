"""Every fault of the catalogue in virtual time, each with many seeds: nothing is lost, doubled or left over."""

from __future__ import annotations

import os

import pytest

from bench.chaos.virtual.faults import FAULTS
from bench.chaos.virtual.run import run

SEEDS = int(os.environ.get("ASTROLABE_CHAOS_SEEDS", "8"))
"""Seeds per fault; `make chaos` takes hundreds."""
BATCH = 50

FOUND = [("malformed_requests", 1), ("everything_at_once", 21), ("movers_die", 4)]
"""Seeds that once found a bug (the table is in README.md of this folder)."""


@pytest.mark.parametrize("first_seed", range(0, SEEDS, BATCH))
@pytest.mark.parametrize("fault", FAULTS)
def test_what_must_hold_holds(fault: str, first_seed: int) -> None:
    verdicts = [run(fault, seed) for seed in range(first_seed, min(SEEDS, first_seed + BATCH))]
    broken = {verdict.seed: verdict.broken for verdict in verdicts if verdict.broken}
    assert not broken, f"{fault}: `astrolabe bench chaos --fault {fault} --seed SEED` shows each of {broken}"


@pytest.mark.parametrize(("fault", "seed"), FOUND)
def test_what_was_found_once_stays_mended(fault: str, seed: int) -> None:
    assert run(fault, seed).broken == ()


def test_the_catalogue_interrupts_answers() -> None:
    """The invariants are worth something only if answers do go on elsewhere."""
    assert sum(run("node_killed", seed).resumed for seed in range(4)) > 10


def test_the_catalogue_moves_requests() -> None:
    assert sum(run("moves", seed).moves for seed in range(4)) > 100

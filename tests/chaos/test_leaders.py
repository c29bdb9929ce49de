"""Several gateways scale one fleet while all kinds of things befall them, in virtual time, each with many seeds."""

from __future__ import annotations

import os

import pytest

from bench.chaos.virtual.leader_faults import LEADER_FAULTS, run_scaling

SEEDS = int(os.environ.get("ASTROLABE_CHAOS_SEEDS", "6"))
"""Seeds per fault; `make chaos` takes hundreds."""
BATCH = 25

FOUND = [("links_cut", 12), ("connector_fails", 13), ("leader_pauses", 97), ("split_in_two", 87), ("split_in_two", 37)]
"""Seeds that once found a bug (the table is in README.md of this folder)."""


@pytest.mark.parametrize("first_seed", range(0, SEEDS, BATCH))
@pytest.mark.parametrize("fault", LEADER_FAULTS)
def test_what_must_hold_holds(fault: str, first_seed: int) -> None:
    verdicts = [run_scaling(fault, seed) for seed in range(first_seed, min(SEEDS, first_seed + BATCH))]
    broken = {verdict.seed: verdict.broken for verdict in verdicts if verdict.broken}
    assert not broken, f"{fault}: {broken}"


@pytest.mark.parametrize(("fault", "seed"), FOUND)
def test_what_was_found_once_stays_mended(fault: str, seed: int) -> None:
    assert run_scaling(fault, seed).broken == ()


def test_the_catalogue_moves_the_lead_and_the_fleet() -> None:
    """The invariants are worth something only if leaders change while nodes come and go."""
    verdict = run_scaling("leader_killed", 0)
    assert min(verdict.changes, verdict.starts, verdict.stops, verdict.woken) >= 5, verdict


def test_the_same_seed_is_the_same_run() -> None:
    assert run_scaling("everything", 3) == run_scaling("everything", 3)

"""Drawn workloads: who shares what with whom, how long they are, and that a seed decides them."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench.data.datasets import DatasetSpec
from bench.data.named import NAMED, NamedDraws, NamedFile, check_there, drawn_rows, found_for, note_on
from bench.workload.drawn import (
    LAB_STEPS,
    LLMD_HOT_SET,
    LLMD_PRIVATE_DOCUMENTS,
    LLMD_SHARED_PREFIX,
    LLMD_UNIFORM_POOL,
    LONG_AMONG_SHORT,
    SHAREGPT_CONVERSATIONS,
    PrefixPool,
)
from bench.workload.item import DataRow

DRAWN = [name for name, named in NAMED.items() if isinstance(named, NamedDraws)]


def draw(rows: object, count: int, seed: int = 0) -> list[DataRow]:
    return rows.draw(np.random.default_rng(seed), count)[:count]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", DRAWN)
def test_a_seed_decides_the_rows(name: str) -> None:
    named = NAMED[name]
    assert isinstance(named, NamedDraws)
    first, again, other = (drawn_rows(name, named, seed=seed, count=400, longest_tokens=60_000) for seed in (1, 1, 2))
    assert first == again
    assert len(first) == 400
    assert name == "llmd-private-documents" or first != other
    for row in first:
        assert row.prompt_tokens >= 1
        assert row.output_tokens >= 1
        assert len(row.prefix_ids) * row.prefix_block_tokens <= row.prompt_tokens


def test_the_ladder_has_750_prompts_of_150_prefixes_again_and_again() -> None:
    rows = draw(LLMD_SHARED_PREFIX, 1500)
    assert rows[:750] == rows[750:]
    assert len({row.prefix_ids for row in rows}) == 750
    assert Counter(row.prefix_ids[:5] for row in rows[:750]).most_common()[-1][1] == 5
    assert {(row.prompt_tokens, row.output_tokens) for row in rows} == {(7200, 1000)}
    assert {len(row.prefix_ids) * row.prefix_block_tokens for row in rows} == {7200}


def test_pools_share_their_prefixes_and_nothing_else() -> None:
    for pool, prefixes in ((LLMD_UNIFORM_POOL, 128), (LLMD_HOT_SET, 8)):
        rows = draw(pool, 4000)
        assert len({row.prefix_ids for row in rows}) == prefixes
        assert {len(row.prefix_ids) * row.prefix_block_tokens for row in rows} == {48_000}
        names = [name for ids in {row.prefix_ids for row in rows} for name in ids]
        assert len(set(names)) == len(names)
        assert {row.prompt_tokens for row in rows} == {48_256}
    rounds = draw(LLMD_PRIVATE_DOCUMENTS, 1152)
    assert [row.session for row in rounds[:192]] == [row.session for row in rounds[192:384]]
    assert len({row.session for row in rounds[:192]}) == 192


def test_a_prefix_is_whole_blocks() -> None:
    with pytest.raises(ValueError, match="whole blocks of 960 tokens"):
        PrefixPool(prefixes=2, prefix_tokens=1000, question_tokens=10, output_tokens=1)


def test_a_turn_begins_with_all_that_was_said_before() -> None:
    rows = draw(SHAREGPT_CONVERSATIONS, 3000)
    turns = Counter(row.session for row in rows[:-20])
    assert 4.5 < np.mean(list(turns.values())) < 9.0
    names: set[int] = set()
    for before, row in itertools.pairwise(rows):
        if row.think_s is None:
            # Somebody else's: they share what all share, 1,024 tokens in blocks of 64.
            assert set(row.prefix_ids) & names == set(range(16))
            names.update(before.prefix_ids)
            continue
        names.update(before.prefix_ids)
        assert row.session == before.session
        assert row.prompt_tokens > before.prompt_tokens + before.output_tokens
        assert row.prefix_ids[: len(before.prefix_ids)] == before.prefix_ids
        assert row.prompt_tokens - len(row.prefix_ids) * 64 < 64


def test_one_prompt_in_twenty_is_long() -> None:
    rows = draw(LONG_AMONG_SHORT, 20_000)
    long = [row.prompt_tokens for row in rows if row.prompt_tokens > 6144]
    assert len(long) / len(rows) == pytest.approx(0.05, abs=0.005)
    assert (min(long) >= 8192, max(long) <= 16_384) == (True, True)
    assert not any(row.prefix_ids for row in rows)


def test_rows_with_times_come_in_the_steps_of_their_rate() -> None:
    rows = LAB_STEPS.draw(np.random.default_rng(4))
    times = np.array([row.arrival_s for row in rows])
    assert np.all(np.diff(times) >= 0)
    counts, _ = np.histogram(times, bins=[0, 1200, 1800, 3000, 3600])
    assert counts / np.array([1200, 600, 1200, 600]) == pytest.approx([20, 30, 50, 40], rel=0.05)
    assert {(row.prompt_tokens, row.output_tokens) for row in rows} == {(256, 1)}


def test_a_trace_that_is_not_there_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASTROLABE_DATA", str(tmp_path))
    check_there("vidur-lab")
    assert "the same steps drawn anew in its place" in note_on("vidur-lab")
    named = NAMED["vidur-lab"]
    assert isinstance(named, NamedFile)
    assert found_for("vidur-lab") is LAB_STEPS
    there = tmp_path / named.path
    there.parent.mkdir()
    there.write_text("num_prefill_tokens,num_decode_tokens\n256,1\n")
    assert found_for("vidur-lab") == (DatasetSpec(name="lengths", path=str(there)), False)

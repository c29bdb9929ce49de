"""Rows and times become a workload: the same requests at every rate, nothing invented."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.data.datasets import DatasetSpec
from bench.data.named import NAMED, NamedFile
from bench.data.source import WorkloadSource, WorkloadSpec, load_source
from bench.workload.compose import fitting, generated, recorded
from bench.workload.item import DataRow, WorkloadItem, belief_of
from bench.workload.synthetic import prompt_token_ids

ROWS = [DataRow(prompt_tokens=10 + i, output_tokens=20 + i, arrival_s=float(i * i)) for i in range(5)]


def lengths(items: list[WorkloadItem]) -> list[int]:
    return [item.prompt_tokens for item in items]


def test_rows_come_in_file_order_and_start_again_when_they_run_out() -> None:
    items = generated(ROWS, seed=1, kind="uniform", rate_per_s=2.0, count=7)
    assert lengths(items) == [10, 11, 12, 13, 14, 10, 11]
    assert [item.arrival_s for item in items] == pytest.approx([0.5 * (i + 1) for i in range(7)])
    assert len({item.request_id for item in items}) == 7


def test_shuffled_rows_are_a_seeded_permutation() -> None:
    items = generated(ROWS, seed=1, kind="poisson", rate_per_s=2.0, count=5, shuffle=True)
    again = generated(ROWS, seed=1, kind="poisson", rate_per_s=2.0, count=5, shuffle=True)
    other = generated(ROWS, seed=2, kind="poisson", rate_per_s=2.0, count=5, shuffle=True)
    assert sorted(lengths(items)) == [10, 11, 12, 13, 14]
    assert items == again
    assert items != other


def test_one_seed_gives_the_same_requests_at_every_rate() -> None:
    slow = generated(ROWS, seed=3, kind="gamma", rate_per_s=1.0, burstiness=0.5, count=5, shuffle=True)
    fast = generated(ROWS, seed=3, kind="gamma", rate_per_s=4.0, burstiness=0.5, count=5, shuffle=True)
    assert lengths(slow) == lengths(fast)
    np.testing.assert_allclose([i.arrival_s for i in slow], [4 * i.arrival_s for i in fast])


def test_a_duration_bounds_the_arrivals() -> None:
    items = generated(ROWS, seed=1, kind="uniform", rate_per_s=2.0, duration_s=3.0)
    assert [item.arrival_s for item in items] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5])


def test_recorded_times_start_at_zero_and_scale() -> None:
    items = recorded(ROWS[1:], rate_scale=2.0, count=3)
    assert [item.arrival_s for item in items] == [0.0, 1.5, 4.0]
    assert lengths(items) == [11, 12, 13]


def test_recorded_needs_arrival_times() -> None:
    with pytest.raises(ValueError, match="request 2 of the data set has no arrival time"):
        recorded([ROWS[0], DataRow(prompt_tokens=1, output_tokens=1)])


def test_count_and_duration_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="either"):
        generated(ROWS, seed=1, kind="poisson", rate_per_s=1.0)
    with pytest.raises(ValueError, match="either"):
        generated(ROWS, seed=1, kind="poisson", rate_per_s=1.0, count=1, duration_s=1.0)


def test_fitting_counts_prompt_and_answer_together() -> None:
    assert [r.prompt_tokens for r in fitting(ROWS, 34)] == [10, 11, 12]


def test_beliefs_say_the_truth_nothing_or_the_prediction() -> None:
    item = WorkloadItem(request_id="r", arrival_s=0.0, prompt_tokens=3, output_tokens=70, predicted_output_tokens=50)
    known, predicted = belief_of(item, "known"), belief_of(item, "predicted")
    assert known is not None
    assert predicted is not None
    assert (known.atoms_tokens, belief_of(item, "none"), predicted.atoms_tokens) == ((70,), None, (50,))
    bare = WorkloadItem(request_id="r", arrival_s=0.0, prompt_tokens=3, output_tokens=70)
    with pytest.raises(ValueError, match="no predicted length"):
        belief_of(bare, "predicted")


def test_made_up_prompts_are_deterministic_and_share_no_prefix() -> None:
    def ids(index: int, seed: int = 1) -> list[int]:
        return prompt_token_ids(seed=seed, index=index, prompt_tokens=64, vocab_size=256)

    assert ids(1) == ids(1)
    assert len(ids(1)) == 64
    assert all(0 <= token < 256 for token in ids(1))
    blocks = {tuple(ids(index)[:16]) for index in range(500)}
    assert len(blocks) == 500
    assert ids(1, seed=1) != ids(1, seed=2)


# --- The order of rows at a rate of one's own -------------------------------------------------------------------------


def source(shuffle: bool | None, *, shared: bool) -> WorkloadSource:
    ids = [(n // 10, n) if shared else () for n in range(100)]
    rows = [DataRow(prompt_tokens=n + 600, output_tokens=1, arrival_s=float(n), prefix_ids=ids[n]) for n in range(100)]
    return WorkloadSource(WorkloadSpec(dataset=DatasetSpec(), requests=100, shuffle=shuffle), rows, [])


@pytest.mark.parametrize(
    ("shared", "shuffle", "in_order", "note"),
    [
        (True, None, True, "rows in file order, since prompts share beginnings"),
        (True, True, False, "shuffled, as asked: prompts that share beginnings"),
        (True, False, True, "rows in file order"),
        (False, None, False, ""),
        (False, False, True, ""),
    ],
)
def test_prompts_that_share_beginnings_keep_their_order_unless_asked(
    shared: bool, shuffle: bool | None, in_order: bool, note: str
) -> None:
    made = source(shuffle, shared=shared)
    for seed in range(2):
        prompts = [item.prompt_tokens for item in made.workload(rate_per_s=5.0, seed=seed)]
        assert (prompts == sorted(prompts)) == in_order
        assert sorted(prompts) == list(range(600, 700))
    assert len(made.notes) == bool(note)
    assert not note or made.notes[0].startswith(note)


def test_rows_that_come_more_than_once_are_said() -> None:
    made = source(None, shared=False)
    made.spec = msgspec.structs.replace(made.spec, requests=150)
    made.workload(rate_per_s=5.0, seed=0)
    assert made.notes == ["150 requests of 100 rows: rows come more than once"]


def test_requests_of_a_file_of_ones_own_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from bench.workload.item import WorkloadItem\n"
        "def workload(*, rate_per_s, requests, seed):\n"
        "    return [WorkloadItem(request_id=str(n), arrival_s=n, prompt_tokens=n + 1, output_tokens=1)"
        " for n in range(requests)]\n"
    )
    made = load_source(WorkloadSpec(dataset=DatasetSpec(), file=str(file), requests=10))
    made.keep_fitting(8)
    assert len(made.workload(rate_per_s=1.0, seed=0)) == 7
    assert "3 requests of the file longer than 8 tokens left out" in made.notes


def test_equal_rows_that_count_once_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = NAMED["block-sharegpt-predicted"]
    assert isinstance(named, NamedFile)
    file = tmp_path / named.path
    file.parent.mkdir()
    file.write_text("num_prefill_tokens,num_decode_tokens\n5,6\n7,8\n5,6\n")
    monkeypatch.setenv("ASTROLABE_DATA", str(tmp_path))
    made = load_source(WorkloadSpec(dataset=DatasetSpec(), named="block-sharegpt-predicted", requests=2))
    assert "1 row equal to others left out" in made.notes


def test_conversations_are_shuffled_as_wholes_and_drawn_where_there_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = NAMED["conversations"]
    assert isinstance(named, NamedFile)
    monkeypatch.setenv("ASTROLABE_DATA", str(tmp_path))
    spec = WorkloadSpec(dataset=DatasetSpec(), named="conversations", requests=60)
    drawn = load_source(spec)
    assert drawn.notes == [f"{named.about}: not on this machine, drawn-conversations in its place"]
    assert len(drawn.workload(rate_per_s=1.0, seed=0)) == 60
    file = tmp_path / named.path
    file.parent.mkdir()
    turns = [f"{talk},{at},{role},{10 + talk}" for talk in range(20) for at, role in enumerate(("human", "gpt") * 3)]
    file.write_text("\n".join(["conv,turn,role,tokens", *turns]))
    read = load_source(spec)
    assert read.notes[0] == named.about
    items, other = (read.workload(rate_per_s=1.0, seed=seed) for seed in (1, 2))
    assert [item.session for item in items] != [item.session for item in other]
    assert sorted(item.session for item in items) == sorted(str(talk) for talk in range(20) for _ in range(3))
    for before, item in itertools.pairwise(items):
        assert item.after in ("", before.request_id)
        assert (item.session == before.session) == bool(item.after)

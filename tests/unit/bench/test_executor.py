"""Runs that are there already, in the own log or in one beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from bench.run import executor
from bench.run.executor import run_all
from bench.run.files import read_lines
from bench.run.simulated import Task
from bench.run.spec import RunSpec

CONSOLE = Console(quiet=True)


def task(variant: str, seed: int) -> Task:
    spec = RunSpec(
        policy="random", dataset="power-law", nodes=1, requests=5, rate_per_s=5.0, seed=seed, max_model_len_tokens=9000
    )
    return Task(group="g", variant=variant, spec=spec)


@pytest.mark.parametrize(("commit", "borrows"), [("abc", True), ("abc+changes", False), ("", False)])
def test_a_run_of_this_very_commit_is_taken_from_a_log_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str, borrows: bool
) -> None:
    monkeypatch.setattr(executor, "commit", lambda: commit)
    first, second, torn = (tmp_path / name / "runs.jsonl" for name in ("a", "b", "torn"))
    torn.parent.mkdir()
    torn.write_text("nonsense\n")
    run_all([task("one", 0), task("one", 1)], first, console=CONSOLE, jobs=1)
    outcome = run_all([task("two", 1), task("two", 2)], second, console=CONSOLE, jobs=1, beside=[torn, first])
    assert outcome.reused == (1 if borrows else 0)
    assert [line.variant for line in outcome.lines] == ["two", "two"]
    assert len(read_lines(second)) == 2, "the folder is whole without those beside it"
    there = {line.key: line.started_at for line in read_lines(first)}
    assert len(there) == 2
    again = run_all([task("one", 0)], first, console=CONSOLE, jobs=1, fresh=True, beside=[second])
    assert again.reused == 0

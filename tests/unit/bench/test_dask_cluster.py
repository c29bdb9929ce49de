"""What a worker of a cluster must be, and what it says when it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.run.dask_cluster import difference, files_of, identity, run_there
from bench.run.simulated import Task
from bench.run.spec import RunSpec
from bench.run.workers import ExecutorError


def task(dataset_path: str) -> Task:
    spec = RunSpec(dataset="lengths", dataset_path=dataset_path, policy="random", nodes=1, requests=3, rate_per_s=2.0)
    return Task(group="g", variant="v", spec=spec)


def test_what_is_the_same_is_no_difference_and_all_else_is_named() -> None:
    own = identity()
    assert difference(own, dict(own)) == ""
    assert difference({**own, "numba": "0.1"}, own) == f"numba 0.1 (here {own['numba']})"
    assert difference({}, {"code": "abc"}) == "code none (here abc)"


def test_a_worker_runs_what_it_has_and_refuses_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("num_prefill_tokens,num_decode_tokens\n9,3\n8,2\n")
    monkeypatch.chdir(tmp_path)
    wanted = task("rows.csv")
    files = files_of(wanted)
    assert list(files) == ["rows.csv"]
    monkeypatch.chdir("/")

    def there() -> float:
        done = run_there(wanted, commit="c", keep_results=False, own=identity(), files=files, folder=str(tmp_path))
        return done.line.measures["completed_share"]

    assert there() == 1.0
    assert Path.cwd() == Path("/")
    rows.write_text("num_prefill_tokens,num_decode_tokens\n9,4\n")
    with pytest.raises(ExecutorError, match=r"has another .*rows.csv than is here; make them equal"):
        there()
    rows.unlink()
    with pytest.raises(ExecutorError, match=r"has no file .*rows.csv; put it there, or share its folder"):
        there()


def test_a_worker_of_another_version_refuses() -> None:
    own = {**identity(), "code": "other"}
    with pytest.raises(ExecutorError, match=r"has code \w+ \(here other\); install there what is here"):
        run_there(task(""), commit="", keep_results=False, own=own, files={}, folder="/")

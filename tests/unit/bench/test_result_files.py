"""Results on disk: lines of runs are whole or not there, requests of a run come back as they were."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

import msgspec
import pytest

from bench.measure.results import RequestResult, summarise
from bench.run.files import ResultFileError, RunLog, read_lines, read_results, write_results
from bench.run.provenance import header
from simcore.types import Outcome
from tests.unit.bench.run_lines import line

ROWS = [
    RequestResult(
        request_id="a", arrival_s=0.0, node_id="n", outcome=Outcome.STOP, prompt_tokens=3, output_tokens=4,
        ttft_s=0.1, itl_s=(0.1, 0.2),
    ),
    RequestResult(request_id="b", arrival_s=1.0, node_id="", outcome=Outcome.NO_NODE, prompt_tokens=3, output_tokens=0),
]  # fmt: skip


def test_what_was_added_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "runs.jsonl"
    with RunLog(path) as log:
        log.add(line("x", 1.0, ttft_p99_s=2.5))
        log.add(line("y", 2.0))
    assert [(found.variant, found.measures) for found in read_lines(path)] == [("x", {"ttft_p99_s": 2.5}), ("y", {})]


def test_a_torn_last_line_does_not_count_and_goes_before_the_next_is_added(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with RunLog(path) as log:
        log.add(line("x", 1.0))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert len(read_lines(path)) == 1
    with RunLog(path) as log:
        log.add(line("y", 2.0))
    assert [found.variant for found in read_lines(path)] == ["x", "y"]


def test_lines_of_another_schema_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with RunLog(path) as log:
        log.add(line("x", 1.0))
    path.write_bytes(path.read_bytes().replace(b'"schema_version":2', b'"schema_version":99'))
    with pytest.raises(ResultFileError, match="line 1: results of schema 99, this version reads 2; move the file away"):
        read_lines(path)


def test_summaries_without_a_p95_are_read(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    given = msgspec.structs.replace(line("x", 1.0), summary=summarise(ROWS))
    with RunLog(path) as log:
        log.add(given)
    document = json.loads(path.read_text())
    for name, spread in document["summary"].items():
        if name.endswith("_s") and isinstance(spread, dict):
            del spread["p95"]
    path.write_text(json.dumps(document) + "\n")
    (found,) = read_lines(path)
    assert found.summary.ttft_s is not None
    assert (found.summary.ttft_s.p95, found.summary.ttft_s.p99) == (None, 0.1)


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("nonsense\n")
    with pytest.raises(ResultFileError, match="line 1: not a result line"):
        read_lines(path)


def test_a_full_disk_loses_nothing_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.jsonl"
    with RunLog(path) as log:
        log.add(line("x", 1.0))
        before = path.read_bytes()

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ResultFileError, match=r"the disk is full.*what was finished before is safe"):
            log.add(line("y", 2.0))
        assert path.read_bytes() == before
        monkeypatch.undo()
        log.add(line("z", 3.0))
    assert [found.variant for found in read_lines(path)] == ["x", "z"]


def test_a_line_of_which_only_a_part_fits_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunLog(path) as log:
        log.add(line("x", 1.0))
        before = path.read_bytes()
        # As a disk with 100 bytes left: the kernel writes so many and refuses the rest.
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
        try:
            with pytest.raises(ResultFileError, match="what was finished before is safe"):
                log.add(line("y", 2.0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResultFileError, match="cannot be written"):
        RunLog(tmp_path / "file" / "runs.jsonl")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_requests_of_a_run_come_back_with_what_the_run_was(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow.parquet", reason="needs the extra `parquet`")
    path, head = tmp_path / "a" / f"run.{kind}", header({"policy": "random"}, seed=3)
    write_results(path, head, ROWS)
    assert read_results(path) == (head, ROWS)


def test_requests_of_the_first_schema_are_read_and_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_results(path, header({}), ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"schema_version":2', b'"schema_version":1'))
    assert read_results(path)[1] == ROWS
    path.write_bytes(whole.replace(b'"schema_version":2', b'"schema_version":99'))
    with pytest.raises(ResultFileError, match="line 1: results of schema 99, this version reads 2"):
        read_results(path)


def test_parquet_has_a_column_per_field(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `parquet`")
    write_results(tmp_path / "run.parquet", header({}), ROWS)
    table = parquet.read_table(tmp_path / "run.parquet")
    assert table.schema.names == list(RequestResult.__struct_fields__)
    first, second = table.to_pylist()
    assert (first["request_id"], first["outcome"], first["itl_s"], first["ttft_s"]) == ("a", "stop", [0.1, 0.2], 0.1)
    assert (second["outcome"], second["ttft_s"]) == ("no_node", None)

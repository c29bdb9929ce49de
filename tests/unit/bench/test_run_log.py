"""Result lines on disk: whole or not there."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from bench.run.log import RunLog, RunLogError, read_lines
from tests.unit.bench.run_lines import line


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
    with pytest.raises(RunLogError, match="line 1: results of schema 99, this version reads 2; move the file away"):
        read_lines(path)


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("nonsense\n")
    with pytest.raises(RunLogError, match="line 1: not a result line"):
        read_lines(path)


def test_a_full_disk_loses_nothing_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.jsonl"
    with RunLog(path) as log:
        log.add(line("x", 1.0))
        before = path.read_bytes()

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunLogError, match=r"the disk is full.*what was finished before is safe"):
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
            with pytest.raises(RunLogError, match="what was finished before is safe"):
                log.add(line("y", 2.0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunLogError, match="cannot be written"):
        RunLog(tmp_path / "file" / "runs.jsonl")
